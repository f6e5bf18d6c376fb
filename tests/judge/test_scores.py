import json
import math

import pytest

from fewbit.judge.scores import Basis, Evaluation, Score


@pytest.fixture
def evaluation() -> Evaluation:
    pairs = Basis(256, 0, "the same seeds in full precision", "ab" * 32)
    sets = Basis(
        256, 0, "shapes data, seed 1000003", "cd" * 32, "none", "the classifier", "ef" * 32
    )
    return Evaluation(
        "shapes-hq-dit-w4a4",
        "shapes",
        recipe="hq-dit:w4a4",
        pictures=256,
        seed=0,
        steps="the pipeline's own",
        guidance="2.5",
        scores=(
            Score("PSNR", math.inf, "higher", pairs, "dB", each=(math.inf, 30.0)),
            Score("Fréchet, spatial", 12345.678, "lower", sets, full_precision=8.125, bias=0.25),
        ),
    )


def test_a_score_keeps_all_that_is_needed_to_repeat_it(evaluation, tmp_path):
    evaluation.save(tmp_path / "scores.json")
    content = json.loads((tmp_path / "scores.json").read_text())
    assert content == evaluation.to_dict()
    assert (content["passed"], content["recipe"]) == (True, "hq-dit:w4a4")
    psnr, distance = content["scores"]
    assert (psnr["value"], psnr["each"]) == ("inf", ["inf", 30.0])
    assert distance["basis"] == {
        "samples": 256,
        "seed": 0,
        "reference": "shapes data, seed 1000003",
        "reference_sha256": "cd" * 32,
        "resize": "none",
        "features": "the classifier",
        "features_sha256": "ef" * 32,
    }


def test_it_prints_within_eighty_columns(evaluation):
    lines = str(evaluation).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == "shapes-hq-dit-w4a4 (hq-dit:w4a4) beside shapes"
    assert lines[3].split() == ["PSNR", "inf", "dB", "-", "-", "higher"]
    assert lines[4].split() == ["Fréchet,", "spatial", "12345.7", "8.125", "0.250", "lower"]
    assert lines[-1] == "  gate: passed"


def test_a_broken_model_says_so():
    broken = Evaluation(
        "m", "r", "rtn:w4a4", 8, 0, "2", "1", findings=("all is black",), first_bad_layer="a.b"
    )
    assert not broken.passed
    assert broken.verdict == "all is black; first bad layer: a.b"
    assert str(broken).endswith("  gate: all is black\n  first bad layer: a.b")
    assert broken.to_dict()["passed"] is False
