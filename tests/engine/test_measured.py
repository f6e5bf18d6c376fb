"""A quantized network beside what it was: measured by a few calls, which never end a run."""

import copy
import math

import pytest
import small_models as small
import tiny_transformers as tiny
import torch

import fewbit
from fewbit.calibration import CallSet
from fewbit.engine import measured
from fewbit.engine.measured import Measured, Measurement, attempted, seconds_in_turns

ROWS = [small.arguments(tiny.DIT, 1, seed) for seed in range(4)]
MEASURED = {"calibration": ROWS, "progress": False, "measure": True}


def rows() -> CallSet:
    return CallSet.from_items(ROWS)


def test_the_error_of_a_network_that_is_what_it_was_is_none():
    model = tiny.make()
    found = Measurement(model, rows(), drawn=True).end(model)
    assert found.db == math.inf
    assert found.rows == 4
    assert found.faster > 0
    assert found.why_not == ""


def test_the_error_by_hand():
    """Twice the output: as much error as signal."""
    model = tiny.make()
    begun = Measurement(model, rows(), drawn=True)
    twice = copy.deepcopy(model)
    twice.proj_out_2.weight.data *= 2
    twice.proj_out_2.bias.data *= 2
    assert begun.end(twice).db == pytest.approx(0.0, abs=1e-4)


def test_the_twin_shares_all_tensors_and_nothing_of_it_reaches_the_network():
    model = tiny.make()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    begun = Measurement(model, rows(), drawn=False)
    shared = {tensor.data_ptr() for tensor in begun.twin.parameters()}
    assert shared == {tensor.data_ptr() for tensor in model.parameters()}
    found = begun.end(model)
    assert (found.db, found.rows) == (None, 0)
    assert all(torch.equal(before[name], now) for name, now in model.state_dict().items())
    assert next(begun.twin.parameters()).dtype == torch.bfloat16


def test_where_memory_is_short_only_the_error_is_measured(monkeypatch):
    monkeypatch.setattr(measured, "available_bytes", lambda: 1000)
    model = tiny.make()
    found = Measurement(model, rows(), drawn=True).end(model)
    assert found.db == math.inf
    assert found.seconds is None
    assert "for a copy in bfloat16, 0.0 MB are free" in found.why_not


def test_calls_as_long_as_all_may_take_are_timed_once(monkeypatch):
    monkeypatch.setattr(measured, "SECONDS", 0.0)
    called = []
    monkeypatch.setattr(measured, "_seconds", lambda network, _: called.append(network) or 1.0)
    one, other = tiny.make(), tiny.make()
    assert seconds_in_turns(one, other, {}) == (1.0, 1.0)
    assert called == [one, other]


def test_what_fails_is_told_and_ends_nothing(monkeypatch):
    def broken(*_):
        raise RuntimeError("no such kernel\nwith a long story")

    assert attempted(lambda: broken()) == "RuntimeError: no such kernel"
    monkeypatch.setattr(measured, "seconds_in_turns", broken)
    report = fewbit.quantize(tiny.make(), "hq-dit", **MEASURED)
    [found] = report.measured.values()
    assert found.db > 0
    assert found.why_not == "RuntimeError: no such kernel"
    assert "not measured (RuntimeError: no such kernel)" in str(report)


def test_quantize_measures_if_told_to():
    report = fewbit.quantize(tiny.make(), "hq-dit", **MEASURED)
    [found] = report.measured.values()
    assert found.db > 0
    assert found.faster > 0
    report = fewbit.quantize(tiny.make(), "hq-dit", calibration=ROWS, progress=False)
    assert report.measured == {"transformer": Measured(why_not="not asked for")}


def test_measuring_changes_no_bit():
    one, other = tiny.make(), tiny.make()
    for model, measure in ((one, True), (other, False)):
        fewbit.quantize(model, "hq-dit", calibration=ROWS, progress=False, measure=measure)
    ours, theirs = one.state_dict(), other.state_dict()
    assert all(torch.equal(ours[name].view(torch.uint8), theirs[name].view(torch.uint8))
               for name in ours)  # fmt: skip


def test_without_data_the_pipeline_gives_a_call_and_a_bare_network_none(capfd):
    pipe = tiny.pipeline(tiny.make())
    [found] = fewbit.quantize(pipe, "rtn", progress=False, measure=True).measured.values()
    assert found.faster > 0
    assert found.db is None
    assert "it/s" not in capfd.readouterr().err
    [found] = fewbit.quantize(tiny.make(), "rtn", progress=False, measure=True).measured.values()
    assert found.faster is None
    assert found.why_not == "nothing says how the network is called"
