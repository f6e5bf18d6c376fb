"""A disk without room: one sentence, exit code 2, and what to do; nothing half-written is left."""

import json
import resource
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from safetensors import SafetensorError

from fewbit import files
from fewbit.cli import main
from fewbit.errors import DiskFull
from fewbit.files import keeping, new_folder, replacing

LIMIT = 20_000  # bytes in one file: less than the weights, more than a configuration


def limited(*words: str, limit: int = LIMIT) -> Result:
    """What a command says where the system lets nobody write longer files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        return CliRunner().invoke(main, words)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def refused(done: Result) -> str:
    assert isinstance(done.exception, SystemExit), done.exception
    assert done.exit_code == 2
    *_, sentence = done.stderr.splitlines()
    assert sentence.startswith("error: no room to write ")
    assert "make room and do the same again" in sentence
    assert not list(Path().rglob(".fewbit-*"))
    return sentence


def test_quantize_says_what_the_work_folder_keeps(pipeline_folder):
    words = ["quantize", "tiny", "--recipe", "rtn", "--output", "out"]
    sentence = refused(limited(*words))
    assert "no room to write out (File too large)" in sentence
    assert sentence.endswith("; with a workdir the finished blocks are kept")
    sentence = refused(limited(*words, "--workdir", "work", limit=60_000))
    assert "no room to write out" in sentence
    assert sentence.endswith("the finished blocks in work are kept and not computed again")
    assert len(list(Path("work").glob("block-*"))) == 2
    sentence = refused(limited(*words, "--workdir", "other"))
    assert "other/block-0000.entry" in sentence
    assert "blocks in other are kept" in sentence
    assert not Path("out").exists()


def test_generate_and_compare(pipeline_folder):
    words = ["--n", "1", "--steps", "1"]
    assert "no room to write a.png" in refused(
        limited("generate", "tiny", "--output", "a.png", *words, limit=100)
    )
    compare = [
        "compare",
        "tiny",
        "--recipes",
        "rtn",
        "--output",
        "out",
        "--fidelity-only",
        "--quiet",
    ]
    sentence = refused(limited(*compare, *words, limit=60_000))
    assert "no room to write out/models/rtn-w4a4" in sentence
    assert f"blocks in {Path('out', 'work', 'rtn-w4a4')} are kept" in sentence


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        OSError(122, "Disk quota exceeded"),
        SafetensorError("I/O error: No space left on device (os error 28)"),
        Exception("No space left on device (os error 28)"),  # as tokenizers say it
    ],
    ids=repr,
)
def test_every_way_to_say_it_is_understood(tmp_path, error):
    """The folder that was asked for is named, not the hidden file that had no room."""

    def fill():
        with new_folder(tmp_path / "out") as folder, replacing(folder / "inner"):
            raise error

    with pytest.raises(
        DiskFull, match=r"no room to write \S*out \((No space|Disk quota)"
    ) as caught:
        fill()
    assert caught.value.__cause__ is error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [OSError(13, "Permission denied"), SafetensorError("bad header")])
def test_other_errors_are_left_alone(tmp_path, error):
    def fill():
        with keeping(tmp_path), new_folder(tmp_path / "out"):
            raise error

    with pytest.raises(type(error)) as caught:
        fill()
    assert caught.value is error


def test_a_name_may_be_as_long_as_names_can_be(tmp_path):
    path = tmp_path / ("n" * files.LONGEST_NAME)
    files.write_text(path, json.dumps("whole"))
    assert json.loads(path.read_text()) == "whole"
