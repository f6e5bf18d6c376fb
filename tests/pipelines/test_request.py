"""Samples, prompts, steps and guidance of a calibration, given from Python and the command line."""

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import fewbit
from fewbit import Calibration
from fewbit.calibration import Sampling
from fewbit.cli import main

FAST = {"recipe": "hq-dit:W4A4", "progress": False}


@pytest.fixture
def drawn(monkeypatch):
    """The calibration sets that are made from now on."""
    made = []

    def noted(*arguments, **named):
        made.append(draw(*arguments, **named))
        return made[-1]

    draw = Sampling.draw
    monkeypatch.setattr(Sampling, "draw", noted)
    return made


def test_a_number_is_short_for_its_samples(pipe, made_pipeline, drawn):
    from diffusers import DiTPipeline

    fewbit.quantize(pipe, calibration=Calibration(samples=4, steps=2, guidance=1.0), **FAST)
    other = DiTPipeline.from_pretrained(made_pipeline)
    fewbit.quantize(other, calibration=Calibration(4, None, 2, 1.0), seed=0, **FAST)
    assert drawn[0].fingerprint() == drawn[1].fingerprint()
    assert len(drawn[0]) == 4
    assert set(drawn[0].conditional.tolist()) == {True}  # guidance 1 has one half
    assert drawn[0].timesteps().unique().numel() == 2
    state, same = pipe.transformer.state_dict(), other.transformer.state_dict()
    assert all(torch.equal(state[name], same[name]) for name in state)


def test_what_is_left_out_is_as_the_recipe_has_it(pipe, drawn):
    fewbit.quantize(pipe, calibration=Calibration(steps=2), samples=6, **FAST)
    assert len(drawn[0]) == 6
    assert set(drawn[0].conditional.tolist()) == {True, False}


def test_the_command_line_takes_the_same(pipeline_folder, drawn, pipe):
    words = ["quantize", "tiny", "--recipe", "hq-dit:w4a4", "--output", "out", "--quiet"]
    result = CliRunner().invoke(
        main, [*words, "--samples", "4", "--steps", "2", "--guidance", "1.0"]
    )
    assert result.exit_code == 0, result.output
    fewbit.quantize(pipe, calibration=Calibration(4, steps=2, guidance=1.0), **FAST)
    assert drawn[0].fingerprint() == drawn[1].fingerprint()


def test_prompts_of_a_file_reach_the_pipeline(pipeline_folder):
    """A pipeline that draws classes says that it has no use for them."""
    Path("prompts.txt").write_text("a cat\n\na dog\n")
    words = [
        "quantize",
        "tiny",
        "--recipe",
        "hq-dit",
        "--output",
        "out",
        "--prompts",
        "prompts.txt",
    ]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 2
    assert "DiTPipeline draws classes; leave prompts out" in result.stderr


def test_prompts_are_what_is_drawn(monkeypatch):
    """The reading pipeline among the demos is asked for just these."""
    asked = []

    def noted(manner, pipe, subjects, generators):
        asked.extend(subjects)
        raise RuntimeError("enough")

    monkeypatch.setattr("fewbit.pipelines.asking.Manner.ask", noted)
    prompts = ["a small red circle above a large blue square"]
    with pytest.raises(RuntimeError, match="enough"):
        fewbit.quantize(fewbit.load("scenes"), calibration=Calibration(4, prompts, steps=2), **FAST)
    assert asked == prompts
