import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

import fewbit
from fewbit.cli import main


@pytest.fixture(autouse=True)
def demos(monkeypatch, colours):
    """The tiny pipeline is judged by colours, as a demo is by its classifier."""
    monkeypatch.setattr("fewbit.demo.names", lambda: ["shapes"])
    monkeypatch.setattr(
        "fewbit.judge.features.net_for",
        lambda _, inception: None if inception else colours,
    )


@pytest.fixture
def small(pipeline_folder, pipe) -> Path:
    fewbit.quantize(pipe, "rtn", bits="w4a4", progress=False)
    fewbit.save(pipe, "small")
    return Path("small")


def evaluate(*arguments: str) -> Result:
    words = ["evaluate", "small", "--reference", "tiny", "--steps", "1", "--n", "8", *arguments]
    result = CliRunner().invoke(main, words)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_it_prints_scores_and_keeps_pictures(small):
    result = evaluate("--output", "out", "--npz", "--together", "4")
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == "small (rtn:w4a4) beside tiny"
    assert lines[-1] == "  gate: passed"
    assert max(map(len, lines)) <= 80
    assert len(list(Path("out/model").iterdir())) == len(list(Path("out/reference").iterdir())) == 8
    assert np.load("out/model.npz")["arr_0"].shape == (8, 16, 16, 3)


def test_json_is_what_is_kept_and_nothing_else(small):
    result = evaluate("--output", "out", "--json", "--quiet")
    content = json.loads(result.stdout)
    assert content == json.loads(Path("out/evaluation.json").read_text())
    assert content["passed"]
    assert {score["name"] for score in content["scores"]} > {"PSNR", "SSIM", "distance"}
    assert result.stderr == ""


def test_without_an_output_nothing_is_left(small):
    before = sorted(Path().iterdir())
    result = evaluate("--fidelity-only", "--quiet")
    assert (result.exit_code, result.output) == (0, "")
    assert sorted(Path().iterdir()) == before


def test_a_broken_model_exits_with_one_and_names_the_layer(pipeline_folder, pipe):
    pipe.transformer.transformer_blocks[1].attn1.to_v.weight.data[0, 0] = torch.nan
    pipe.save_pretrained("small")
    result = evaluate("--output", "out")
    assert result.exit_code == 1
    [line] = result.stderr.splitlines()
    layer = "transformer.transformer_blocks.1.attn1.to_v"
    assert line.startswith(f"broken: small: the output of {layer} is not finite")
    assert line.endswith(f"first bad layer: {layer}")
    assert json.loads(Path("out/evaluation.json").read_text())["first_bad_layer"] == layer


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--n", "3"], "needs at least 7 pictures, got 3"),
        (["--reference", "tiny/transformer"], "is no pipeline but a transformer alone"),
        (["--reference", "nowhere"], "nowhere does not exist"),
        (["--inception", "gone.pth", "--real", "tiny"], "--inception"),
        (["--real", "gone"], "gone does not exist; real pictures are a folder or ADM's .npz"),
        (["--npz"], "--npz writes to OUTPUT"),
        (["--fidelity-only", "--real", "tiny"], "--fidelity-only leaves no use"),
        (["--prompts", "gone.txt"], "cannot use gone.txt: No such file"),
        (["--steps", "0"], "steps must be a positive number, got 0"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(small, words, sentence):
    before = sorted(Path().rglob("*"))
    result = evaluate(*words)
    assert result.exit_code == 2
    assert result.stdout == ""
    [line] = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert sentence in line
    assert sorted(Path().rglob("*")) == before


def test_another_scheduler_is_refused(small, pipe):
    from diffusers import DDPMScheduler

    pipe.scheduler = DDPMScheduler()
    pipe.save_pretrained("other")
    result = evaluate("--reference", "other")
    assert result.exit_code == 2
    assert "the schedulers of small and other differ in" in result.stderr


def test_a_killed_run_goes_on(small, monkeypatch):
    from fewbit.judge.folder import Series

    real_draw = Series.draw
    left = iter(range(5))

    def dying(self, company):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return real_draw(self, company)

    monkeypatch.setattr(Series, "draw", dying)
    assert evaluate("--output", "out").exit_code == 130
    kept = {file: file.stat().st_mtime_ns for file in Path("out").rglob("*.png")}
    assert len(kept) == 5
    monkeypatch.setattr(Series, "draw", real_draw)
    assert evaluate("--output", "out").exit_code == 0
    assert {file: file.stat().st_mtime_ns for file in kept} == kept


def test_errors_by_timestep_and_layer_are_printed_and_kept(small):
    result = evaluate("--output", "out")
    lines = [line.split() for line in result.stdout.splitlines()]
    [times] = [line[1:] for line in lines if line[0] == "timestep"]
    [errors] = [line[1:] for line in lines if line[0] == "dB"]
    assert len(times) == len(errors) == 1  # one step
    content = json.loads(Path("out/evaluation.json").read_text())
    kept = content["trajectory"]["by_timestep"]
    assert f"{next(iter(kept.values())):.2f}" == errors[0]
    assert {layer["role"] for layer in content["trajectory"]["layers"]} >= {"q", "fc1", "fc2"}
    cost = content["cost"]
    assert min(cost["bf16_bytes"], cost["seconds"], cost["bf16_seconds"]) > 0
    assert min(cost["size"].values()) > 0


def test_what_is_inside_the_networks_can_be_left_out(small):
    result = evaluate("--output", "out", "--pictures-only")
    assert "timestep" not in result.stdout
    content = json.loads(Path("out/evaluation.json").read_text())
    assert content["trajectory"] is content["cost"] is None


def test_a_finite_model_that_draws_nothing_is_named_layer_and_all(pipeline_folder, pipe):
    pipe.vae.decoder.conv_out.weight.data.zero_()
    pipe.vae.decoder.conv_out.bias.data.fill_(-9)
    pipe.save_pretrained("small")
    result = evaluate("--output", "out", "--pictures-only")
    assert result.exit_code == 1
    [line] = result.stderr.splitlines()
    assert line.startswith("broken: small: 8 of 8 pictures are black; ")
    assert line.endswith("first bad layer: vae.decoder.conv_out")
