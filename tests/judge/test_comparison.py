import json
import math
import random

import pytest
from pages import sound

from fewbit.engine.report import Report
from fewbit.engine.stored_size import Size
from fewbit.judge.comparison import Candidate, compared
from fewbit.judge.cost import Cost
from fewbit.judge.page import About, shown_of, write_page
from fewbit.judge.scores import Basis, Evaluation, Score

BASIS = Basis(200, 0, "the same seeds in full precision", "ab" * 32)
RANDOM = random.Random(0)
NOISE = [RANDOM.gauss(0, 3) for _ in range(200)]


def candidate(label, size, psnr, better=0.0, broken=False):
    """All of the same difficulty in each picture; `better` is a share of pictures 1 dB up."""
    each = tuple(psnr + noise + (i < 200 * better) for i, noise in enumerate(NOISE))
    score = Score("PSNR", sum(each) / 200, "higher", BASIS, "dB", each=each)
    evaluation = Evaluation(
        label,
        "shapes",
        label,
        200,
        0,
        "25",
        "3",
        scores=() if broken else (score,),
        findings=("all is black",) if broken else (),
        cost=None if broken else Cost(Size(size), 16_000_000, 0.01, 0.02),
    )
    method, bits = label.split(":")
    report = Report({"method": method, "bits": bits, "settings": {}}, "dit", "ab", 0, "0.1.0")
    report.size, report.bf16_bytes = Size(size), 16_000_000
    return Candidate(label, report, evaluation)


LARGE = candidate("rtn:w8a8", 8_000_000, 40)
SMALL = candidate("rtn:w4a4", 4_000_000, 20)
BETTER = candidate("hq-dit:w4a4", 4_100_000, 24)
ALIKE = candidate("other:w4a4", 4_050_000, 24)


def rows(*candidates):
    return {row.candidate.label: row for row in compared("shapes", candidates).rows}


def test_sorted_by_size_and_at_equal_size_by_quality():
    found = rows(SMALL, BETTER, LARGE)
    assert list(found) == ["rtn:w8a8", "hq-dit:w4a4", "rtn:w4a4"]
    assert [row.group for row in found.values()] == [0, 1, 1]
    assert [row.group for row in rows(LARGE, candidate("a:b", 7_600_000, 41)).values()] == [0, 1]


def test_what_cannot_be_told_apart_from_the_best_is_marked():
    found = rows(SMALL, BETTER, candidate("other:w4a4", 4_050_000, 24))
    assert [found[label].tied for label in found] == [False, True, False]
    found = rows(BETTER, candidate("other:w4a4", 4_050_000, 24, better=0.1))
    assert not any(row.tied for row in found.values())  # 0.1 dB, but on every tenth seed


def test_the_front_holds_what_nothing_as_small_beats():
    beaten = candidate("beaten:w8a8", 9_000_000, 30)
    found = rows(LARGE, SMALL, BETTER, beaten)
    assert [label for label in found if found[label].on_front] == [
        "rtn:w8a8",
        "hq-dit:w4a4",
        "rtn:w4a4",
    ]
    assert not rows(SMALL, candidate("a:b", 4_000_000, 19))["a:b"].on_front


def test_a_broken_model_is_last_of_its_size_and_on_no_front():
    comparison = compared("shapes", [candidate("bad:w4a4", 4_000_000, 0, broken=True), SMALL])
    last = comparison.rows[-1]
    assert last.candidate.label == "bad:w4a4"
    assert (last.on_front, last.quality, last.tied) == (False, None, False)
    assert "  ! bad:w4a4 is broken: all is black" in str(comparison)
    assert comparison.to_dict()["recipes"][1]["psnr"] is None


def test_a_comparison_of_broken_models_alone_has_a_page(tmp_path):
    broken = candidate("bad:w4a4", 4_000_000, 0, broken=True)
    shown = shown_of(compared("shapes", [broken]), {"bad:w4a4": []})
    write_page(tmp_path / "report.html", About("a comparison", [], "fewbit compare", {}), shown)
    assert "all is black" in "".join(sound((tmp_path / "report.html").read_text()).words)


def test_a_picture_without_any_error_does_not_make_the_mean_infinite():
    each = (math.inf, 40.0)
    score = Score("PSNR", math.inf, "higher", BASIS, "dB", each=each)
    evaluation = Evaluation("m", "r", "rtn:w8a8", 2, 0, "1", "1", scores=(score,))
    assert Candidate("rtn:w8a8", LARGE.report, evaluation).quality == 70


def test_it_prints_within_eighty_columns_and_saves(tmp_path):
    comparison = compared("shapes", [SMALL, BETTER, LARGE, ALIKE])
    lines = str(comparison).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == "shapes: 4 recipes, 200 pictures of seed 0"
    first = lines[2].split()
    assert first[:4] == ["rtn:w8a8", "8.00", "2.00", f"{LARGE.quality:.2f}"]
    assert lines[2].endswith("*")
    comparison.save(tmp_path / "comparison.json")
    content = json.loads((tmp_path / "comparison.json").read_text())
    assert content == comparison.to_dict()
    row = content["recipes"][0]
    assert row["psnr_interval"][0] < row["psnr"] < row["psnr_interval"][1]
    assert row["psnr"] == pytest.approx(LARGE.quality)
