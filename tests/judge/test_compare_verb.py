import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file

from fewbit.cli import main


@pytest.fixture(autouse=True)
def tiny_demo(monkeypatch, colours, pipeline_folder):
    """The tiny pipeline is judged by colours, as a demo is by its classifier."""
    monkeypatch.setattr("fewbit.demo.names", lambda: ["shapes"])
    monkeypatch.setattr("fewbit.judge.features.net_for", lambda *_: colours)


def compare(*arguments: str, recipes: str = "rtn,rtn:w8a8") -> Result:
    words = ["compare", "tiny", "--recipes", recipes, "--steps", "1", "--n", "8"]
    words += ["--output", "out", "--together", "4", *arguments]
    result = CliRunner().invoke(main, words)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def kept(*folders: str) -> dict[Path, int]:
    files = [file for folder in folders for file in Path("out", folder).rglob("*.*")]
    return {file: file.stat().st_mtime_ns for file in files if file.is_file()}


def test_each_recipe_is_quantized_drawn_scored_and_shown():
    result = compare()
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines[2:4]] == ["rtn:w8a8", "rtn:w4a4"]
    assert lines[-1] == "  see out/report.html"
    content = json.loads(Path("out/comparison.json").read_text())
    assert [row["label"] for row in content["recipes"]] == ["rtn:w8a8", "rtn:w4a4"]
    best, worst = (row["evaluation"]["trajectory"]["sqnr"] for row in content["recipes"])
    assert best > worst
    page = Path("out/report.html").read_text()
    assert all(label in page for label in ("rtn:w8a8", "rtn:w4a4", "full precision"))
    cards = re.findall(r"<dt>(.*?)</dt><dd><strong>(.*?)</strong>", page)
    assert [name for name, _ in cards] == [
        *("Closest to full precision", "Smallest", "Fastest", "On the front", "Quality gate")
    ]
    assert {label for _, label in cards[:3]} <= {"rtn:w8a8", "rtn:w4a4"}
    assert not list(Path("out/work").iterdir())
    from diffusers import DiTPipeline

    assert DiTPipeline.from_pretrained("out/models/rtn-w4a4").transformer.fewbit.recipe["bits"]


def test_the_second_time_nothing_is_made_and_a_new_recipe_joins():
    assert compare("--quiet", "--pictures-only").exit_code == 0
    before = kept("models", "pictures")
    result = compare("--json", "--quiet", "--pictures-only", recipes="rtn:w6a6,rtn,rtn:w8a8")
    assert result.exit_code == 0, result.stderr
    assert len(json.loads(result.stdout)["recipes"]) == 3
    assert {file: time for file, time in kept("models", "pictures").items() if file in before} == (
        before
    )


def test_a_killed_run_goes_on_and_ends_the_same(monkeypatch):
    from fewbit.engine.workdir import Workdir

    assert compare("--quiet", "--pictures-only").exit_code == 0
    weights = Path("out/models/rtn-w8a8/transformer/diffusion_pytorch_model.safetensors")
    whole = load_file(weights)
    Path("out").rename("whole")
    real_save, left = Workdir.save, iter(range(3))

    def dying(*arguments):
        if next(left, None) is None:
            raise KeyboardInterrupt
        real_save(*arguments)

    monkeypatch.setattr(Workdir, "save", dying)
    assert compare("--quiet", "--pictures-only").exit_code == 130
    finished = kept("models", "work")
    assert any("rtn-w8a8" in str(file) for file in finished)
    monkeypatch.setattr(Workdir, "save", real_save)
    assert compare("--quiet", "--pictures-only").exit_code == 0
    again = load_file(weights)
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    ours, theirs = (
        json.loads(Path(folder, "comparison.json").read_text()) for folder in ("out", "whole")
    )
    for one, other in zip(ours["recipes"], theirs["recipes"], strict=True):
        assert one["evaluation"]["scores"] == other["evaluation"]["scores"]


@pytest.mark.parametrize(
    ("words", "recipes", "sentence"),
    [
        ([], "rtn,nope", "unknown recipe 'nope'; recipes: "),
        ([], "rtn:w9a9", "rtn has no bits 'w9a9'; allowed: w4a4"),
        ([], "rtn,rtn:w4a4", "rtn:w4a4 is asked for twice"),
        ([], "best:tiny,best,best:tiny", "best:tiny is asked for twice"),
        ([], " , ", "--recipes lists one recipe or more"),
        ([], "no.json", "cannot read the recipe file no.json"),
        (["--n", "3"], "rtn", "needs at least 7 pictures, got 3"),
        (["--lpips", "gone"], "rtn", "vgg16-397923af.pth is missing; give --lpips a folder with"),
        (["--clip", "gone"], "rtn", "no CLIP score weights at gone; give --clip a folder"),
        (["--steps", "0"], "rtn", "steps must be a positive number, got 0"),
        (["--output", "tiny/model_index.json/x"], "rtn", "cannot write to tiny/model_index.json"),
    ],
)
def test_bad_input_is_one_sentence_and_makes_no_model(words, recipes, sentence):
    result = compare("--quiet", *words, recipes=recipes)
    assert result.exit_code == 2
    assert result.stdout == ""
    [line] = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert sentence in line
    assert not Path("out/models").exists()


def test_a_model_of_another_run_is_refused():
    assert compare("--quiet", "--pictures-only", recipes="rtn").exit_code == 0
    result = compare("--quiet", "--seed", "1", recipes="rtn")
    assert result.exit_code == 2
    assert "pictures/reference/000000.png is of another run" in result.stderr
    shutil.rmtree("out/pictures")
    result = compare("--quiet", "--seed", "1", recipes="rtn")
    assert result.exit_code == 2
    assert "out/models/rtn-w4a4 is of another run, which differs in: seed;" in result.stderr


def test_a_transformer_alone_is_no_pipeline():
    words = ["compare", "tiny/transformer", "--recipes", "rtn", "--output", "out"]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 2
    assert "pipeline" in result.stderr
