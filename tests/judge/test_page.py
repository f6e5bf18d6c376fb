import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from pages import sound

import fewbit
from fewbit.cli import main
from fewbit.judge.alike import Named
from fewbit.judge.drawing import MODEL, REFERENCE
from fewbit.judge.evaluation import Judges, Setting, evaluate
from fewbit.judge.page import About, Shown, write_page
from fewbit.judge.reading import picture_files


@pytest.fixture
def about(tmp_path) -> About:
    return About("small beside whole", [], "fewbit evaluate small --n 4", {"system": "Linux"})


def test_an_evaluation_is_told_whole(pipe, other_pipe, tmp_path):
    fewbit.quantize(pipe, "rtn", bits="w4a4", progress=False)
    setting = Setting(count=4, steps=2)
    found = evaluate(Named(pipe, "small"), Named(other_pipe, "whole"), setting, tmp_path, Judges())
    drawn, exact = (picture_files(tmp_path / name) for name in (MODEL, REFERENCE))
    about = About("small beside whole", exact, "fewbit evaluate small --n 4", {"system": "Linux"})
    write_page(
        tmp_path / "report.html",
        about,
        [Shown("rtn:w4a4", found, drawn, pipe.transformer.fewbit.recipe)],
    )
    text = (tmp_path / "report.html").read_text()
    page = sound(text)
    words = "".join(page.words)
    for heading in ("Summary", "Pictures", "Scores", "Error by timestep", "Error by layer",
                    "Activations", "How to repeat it"):  # fmt: skip
        assert heading in words
    assert "fewbit evaluate small --n 4" in words
    assert "smaller than bfloat16" in words
    assert "Recipe of rtn:w4a4" in words
    assert '"method": "rtn"' in words
    rows = [line for line in text.splitlines() if line.startswith('<tr><th scope="row"')]
    assert any("SSIM" in row and "higher" in row for row in rows)
    assert [one["data-row"] for one in page.all("img") if "data-row" in one] == ["0"] * 4 + (
        ["1"] * 4
    )
    assert "circle #0, drawn by rtn:w4a4" in {one["alt"] for one in page.all("img")}
    layers = [layer.name for layer in found.trajectory.layers]
    assert all(name in text for name in layers)
    assert found.score("noise prediction").value == found.trajectory.sqnr
    assert json.dumps(found.to_dict(), allow_nan=False)
    printed = str(found).splitlines()
    assert max(map(len, printed)) <= 80
    assert sum(line.startswith("  note: ") for line in printed) == len(found.notes) == 1
    assert any(line.split()[:2] == ["fc1", "2"] for line in printed)


def test_a_broken_model_has_a_page_that_says_so(pipe, other_pipe, tmp_path, about):
    pipe.transformer.proj_out_2.bias.data[0] = float("nan")
    setting = Setting(count=2, steps=1)
    found = evaluate(Named(pipe, "small"), Named(other_pipe, "whole"), setting, tmp_path, Judges())
    write_page(tmp_path / "report.html", about, [Shown("full precision", found, [])])
    words = "".join(sound((tmp_path / "report.html").read_text()).words)
    assert "first bad layer: transformer.proj_out_2" in words


def test_the_verb_leaves_a_page_beside_the_scores(pipeline_folder, monkeypatch):
    monkeypatch.setattr("fewbit.demo.names", lambda: ["shapes"])
    words = ["evaluate", "tiny", "--reference", "tiny", "--steps", "1", "--n", "2", "--output",
             "out", "--pictures-only", "--quiet"]  # fmt: skip
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    sound(Path("out/report.html").read_text())
