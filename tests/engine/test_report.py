"""The report: text that reads well, JSON that comes back whole; and the unit of its errors."""

import json
import math
from dataclasses import replace

import pytest
import torch

from fewbit.engine.decibel import energies, ratio_db, sqnr
from fewbit.engine.report import LayerReport, Report
from fewbit.engine.stored_size import Size

LAYER = LayerReport(
    name="blocks.0.to_q",
    role="q",
    weight="e2m1/row/fp32",
    activation="int8/row/fp32",
    bits_per_weight=4.5,
    bytes_before=4000,
    bytes=500,
    weight_db=20.0,
    rounding_weight_db=18.0,
)
WORST = replace(LAYER, name="blocks.1.to_q", weight_db=10.0)
LOSSLESS = replace(LAYER, role="fc1", weight_db=math.inf, activation=None, output_db=-math.inf)
REPORT = Report(
    recipe={"method": "rtn", "bits": "w4a8", "settings": {}},
    family="dit",
    source="ab" * 32,
    seed=0,
    fewbit_version="0.1.0",
    layers=[LAYER, WORST, LOSSLESS],
    bytes_before=8_000_000,
    bf16_bytes=4_000_000,
    size=Size(packed=900_000, other=100_000),
    seconds={"plan": 0.5, "solve": 1.0},
    warnings=["look at this"],
)


def test_it_reads_well():
    lines = str(REPORT).splitlines()
    assert lines[0] == "dit quantized with rtn:w4a8 in 1.5 s, 3 layers"
    q, fc1 = lines[2].split(), lines[3].split()
    assert (q[:2], fc1[:2]) == (["q", "2"], ["fc1", "1"])
    assert "15.00" in q  # the mean of 20 and 10
    assert {"inf", "-inf"} <= set(fc1)
    assert "  dB are means against full precision" in lines
    assert "  warning: look at this" in lines
    assert [line.split()[:1] for line in lines[-6:]] == [
        ["size"], ["4.00x"], ["speed"], ["match"], ["measures"], ["closer"]
    ]  # fmt: skip
    assert all(len(line) <= 80 for line in lines)


def test_gain_says_over_what():
    known = replace(LAYER, output_db=20.0, rounding_output_db=15.0)
    assert "gain: dB of the output over plain\n  rounding" in str(replace(REPORT, layers=[known]))
    assert "gain:" not in str(REPORT)


def test_the_worst_layer_is_the_one_with_the_least_db():
    assert "worst layer: blocks.1.to_q at 10.00 dB" in str(replace(REPORT, layers=[LAYER, WORST]))


def test_nothing_quantized_is_no_trouble():
    assert "0 layers" in str(replace(REPORT, layers=[], size=Size(), bytes_before=0))


def test_json_there_and_back(tmp_path):
    REPORT.save(tmp_path / "report.json")
    text = (tmp_path / "report.json").read_text()

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    again = Report.from_dict(json.loads(text, parse_constant=refuse))
    assert again == REPORT
    assert str(again) == str(REPORT)
    assert Report.from_dict(REPORT.to_dict()) == REPORT


@pytest.mark.parametrize(
    ("signal", "noise", "db"),
    [
        (100.0, 1.0, 20.0),
        (1.0, 1.0, 0.0),
        (1.0, 0.0, math.inf),
        (0.0, 0.0, math.inf),
        (0.0, 1.0, -math.inf),
    ],
)
def test_decibel(signal, noise, db):
    assert ratio_db(signal, noise) == db


def test_sqnr_by_hand():
    reference = torch.tensor([3.0, 4.0])
    assert sqnr(reference, torch.tensor([3.0, 4.5])) == pytest.approx(20.0)
    assert sqnr(reference, reference) == math.inf
    assert energies(reference.half(), torch.tensor([3.0, 4.5])) == (25.0, 0.25)


def test_energies_of_many_large_numbers_do_not_overflow():
    big = torch.full((1000,), 6e4, dtype=torch.float16)
    signal, noise = energies(big, big * 0)
    assert signal == noise == pytest.approx(1000 * float(big[0]) ** 2, rel=1e-6)
