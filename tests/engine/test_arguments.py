"""Arguments are judged before work begins, in Python and on the command line alike."""

from pathlib import Path

import numpy as np
import pytest
import tiny_transformers as tiny
import torch
from click.testing import CliRunner

import fewbit
from fewbit import Calibration
from fewbit.cli import main
from fewbit.engine import run as engine
from fewbit.errors import BadArgument, BadCalibration, BadModel

LONG = "n" * 256


@pytest.fixture
def idle(monkeypatch):
    """Whoever begins to calibrate or to solve fails."""
    for work in ("_Run", "Originals", "size_of"):
        monkeypatch.setattr(engine, work, None)


@pytest.fixture(scope="module")
def model():
    return tiny.make()


def refused(match, error, *arguments, **named):
    with pytest.raises(error, match=match) as caught:
        fewbit.quantize(*arguments, progress=False, **named)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("seed", ["x", 1.5, True, 2**70, 2**32, -1, None, np.int64(3)], ids=repr)
def test_a_seed_that_is_none(model, idle, seed):
    refused("seed must be a whole number from 0 to 4294967295, got", BadArgument, model, "rtn",
            seed=seed)  # fmt: skip


@pytest.mark.parametrize("seed", [0, 2**32 - 1])
def test_the_first_and_the_last_seed(tmp_path, seed):
    model = tiny.make()
    fewbit.quantize(model, "rtn", seed=seed, progress=False)
    fewbit.save(model, tmp_path / "model")
    assert fewbit.load(tmp_path / "model").fewbit.seed == seed


@pytest.mark.parametrize(
    ("calibration", "match"),
    [
        (True, "samples must be a positive integer, got True"),
        (-1, "samples must be a positive integer, got -1"),
        (0, "samples must be a positive integer, got 0"),
        (2.5, "calibration must be a number of samples, a fewbit.Calibration, or a list .*float"),
        ("shapes", "calibration must be a number of samples.* got str"),
        ({"hidden_states": torch.zeros(1)}, "or a list of dicts .* got dict"),
        (print, "got builtin_function_or_method"),
    ],
    ids=repr,
)
def test_calibration_that_is_none(pipe, idle, calibration, match):
    refused(match, (BadArgument, BadCalibration), pipe, "hq-dit", calibration=calibration)


def rows(**changes):
    item = {
        "hidden_states": torch.zeros(2, 4, 8, 8),
        "timestep": torch.tensor([1, 2]),
        "class_labels": torch.tensor([1, 2]),
        **changes,
    }
    return {key: value for key, value in item.items() if value is not None}


@pytest.mark.parametrize(
    ("item", "match"),
    [
        (rows(latents=torch.zeros(2, 4)), "got an unexpected keyword argument 'latents'; it takes"),
        (rows(hidden_states=None), "missing a required argument: 'hidden_states'; it takes"),
        (rows() | {7: torch.zeros(2)}, "a key that is no string: 7"),
        (rows(hidden_states=torch.zeros(0, 4, 8, 8)), "no tensor with rows"),
    ],
    ids=["unknown", "missing", "number", "empty"],
)
def test_calibration_dicts_that_do_not_suit_the_forward(model, monkeypatch, item, match):
    monkeypatch.setattr(engine, "_Run", None)
    refused(match, BadCalibration, model, "hq-dit", calibration=[item])


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"spec": {"blocks": "b"}}, "a spec needs blocks and roles, got"),
        ({"spec": 3}, "spec must be a fewbit.ModelSpec, a table of its fields or the path"),
        ({"workdir": 3}, "workdir must be a path, got 3"),
        ({"workdir": ""}, "workdir must not be empty"),
        ({"workdir": "a\0b"}, r"workdir must not be empty or hold NUL, got 'a\\x00b'"),
        ({"workdir": LONG}, "workdir has a name of 256 bytes, 'n+'…; allowed: 255"),
    ],
)
def test_other_arguments(model, idle, arguments, match):
    refused(match, BadArgument, model, "rtn", **arguments)


def test_a_model_without_numbers():
    with torch.device("meta"):
        model = tiny.make()
    refused("is on the meta device and holds no numbers; load the weights", BadModel, model, "rtn")


@pytest.mark.parametrize("path", [None, 3, "", "a\0b", LONG, Path("deep") / LONG / "er"], ids=repr)
def test_paths_that_cannot_be(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = tiny.quantized()
    for call in (lambda: fewbit.load(path), lambda: fewbit.save(model, path)):
        with pytest.raises(BadArgument, match=r"(path|model) (must|has a name)"):
            call()
    if isinstance(path, str | Path):
        with pytest.raises(BadArgument, match=r"the model (must|has a name)"):
            fewbit.inspect(path)
    assert not list(tmp_path.iterdir())


def test_a_report_that_is_none(tmp_path):
    with pytest.raises(BadArgument, match=r"report must be a fewbit\.Report, got dict"):
        fewbit.save(tiny.quantized(), tmp_path / "out", report={})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("asked", "error", "match"),
    [
        ({"samples": True}, BadArgument, "samples must be a positive integer, got True"),
        ({"steps": 0}, BadArgument, "steps must be a positive integer, got 0"),
        ({"steps": 2.0}, BadArgument, "steps must be a positive integer, got 2.0"),
        ({"guidance": True}, BadArgument, "guidance must be a number from 0 on, got True"),
        ({"guidance": float("nan")}, BadArgument, "guidance must be a number from 0 on, got nan"),
        ({"guidance": "7"}, BadArgument, "guidance must be a number from 0 on, got '7'"),
        ({"prompts": "a cat"}, BadCalibration, "prompts must be one string or more in a list"),
        ({"prompts": []}, BadCalibration, "prompts must be one string or more in a list"),
        ({"prompts": ["a", 3]}, BadCalibration, "prompts must be one string or more in a list"),
        ({"prompts": 3}, BadCalibration, "prompts must be one string or more in a list"),
    ],
    ids=repr,
)
def test_a_calibration_that_cannot_be(asked, error, match):
    with pytest.raises(error, match=match):
        Calibration(**asked)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--seed x", "'x' is not a valid integer"),
        ("--seed 1.5", "'1.5' is not a valid integer"),
        ("--seed -1", "-1 is not in the range"),
        (f"--seed {2**70}", "is not in the range"),
        ("--samples -1", "samples must be a positive integer, got -1"),
        ("--samples 0", "samples must be a positive integer, got 0"),
        ("--steps 0", "steps must be a positive integer, got 0"),
        ("--guidance nan", "guidance must be a number from 0 on, got nan"),
        ("--prompts none.txt", "cannot use none.txt: No such file"),
        ("--prompts empty.txt", "prompts must be one string or more"),
        ("--prompts binary.txt", "binary.txt is no UTF-8 text: invalid start byte at byte 0"),
        (f"--workdir {LONG}", "a path to write has a name of 256 bytes"),
        (f"--output {LONG}", "a path to write has a name of 256 bytes"),
        ("--workdir empty.txt/x", "cannot write to empty.txt/x"),
        ("--bits w4a4 --recipe rtn:w8a8", "names its bits, so bits='w4a4' is one too many"),
    ],
)
def test_the_command_line_judges_before_it_opens_the_model(words, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fewbit.pipelines.opening.open_model", None)
    Path("empty.txt").write_text("\n")
    Path("binary.txt").write_bytes(b"\xff\xfe")
    defaults = ["quantize", "shapes", "--recipe", "hq-dit", "--output", "out"]
    result = CliRunner().invoke(main, [*defaults, *words.split()])
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 2
    [line] = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert sentence in line


@pytest.mark.parametrize("name", [LONG, "a\0b", ""], ids=repr)
@pytest.mark.parametrize("verb", ["inspect", "doctor"])
def test_a_model_that_cannot_be_named_so(verb, name):
    result = CliRunner().invoke(main, [verb, name])
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 2
    assert "error: the model " in result.stderr
