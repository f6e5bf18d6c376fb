"""Pipelines with several networks on the command line."""

import json

import pytest
from click.testing import CliRunner

from fewbit.cli.main import main

pytest.importorskip("diffusers")

import tiny_pipelines

NAMES = ["text_encoder", "transformer", "transformer_2"]
CALL = ["--call", "height=32", "--call", "width=32", "--call", "num_frames=5"]


@pytest.fixture(scope="module")
def wan(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wan") / "wan"
    tiny_pipelines.make("wan_2_2").save_pretrained(folder)
    return folder


def run(*words):
    done = CliRunner().invoke(main, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_a_dry_run_says_each(wan):
    told = run("quantize", wan, "--recipe", "rtn", "--dry-run", "--components", ",".join(NAMES))
    for name in NAMES:
        assert f"{name}:\nplan: rtn:w4a4 for " in told
    tables = json.loads(run("quantize", wan, "--recipe", "rtn", "--dry-run", "--json"))
    assert list(tables) == NAMES[1:]


def test_all_verbs_say_each(wan, tmp_path):
    small = tmp_path / "small"
    words = "quantize", wan, "--recipe", "rtn", "--components", ",".join(NAMES), "--quiet"
    run(*words, "--output", small)
    told = run("inspect", small)
    assert all(f"\n{name}: " in f"\n{told}" for name in NAMES)
    assert list(json.loads(run("inspect", small, "--spec"))) == NAMES
    assert "text_encoder.encoder.block.0" in run("doctor", small, "--device", "cpu")
    how = "--prompt", "a cat", "--steps", "2", *CALL, "--device", "cpu", "--quiet"
    run("generate", small, "--output", tmp_path / "frames.png", *how)
    assert (tmp_path / "frames.png").exists()


def test_what_is_no_network_is_one_sentence(wan):
    done = CliRunner().invoke(
        main, ["quantize", str(wan), "--recipe", "rtn", "--dry-run", "--components", "tokenizer"]
    )
    assert done.exit_code == 2
    assert "the component tokenizer of WanPipeline is no network" in done.stderr
