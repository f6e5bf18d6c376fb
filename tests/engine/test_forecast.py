"""What a run will take, known beforehand: the arithmetic, and words where it cannot be known."""

import pytest
import tiny_transformers as tiny

from fewbit.calibration import Calibration
from fewbit.engine import forecast
from fewbit.engine.forecast import Expected, cost_of, rows_of
from fewbit.engine.plan import make_plan
from fewbit.engine.recipe import Recipe
from fewbit.engine.source import PASSES, source_of
from fewbit.models import components_of


def planned(recipe, **settings):
    pipe = tiny.pipeline(tiny.make())
    chosen = Recipe.resolve(recipe, None, settings)
    [part] = components_of(pipe)
    plan = make_plan(part.network, chosen, None, allow_unknown=False)
    return pipe, part, plan


def test_rows_of_each_phase_by_hand():
    pipe, part, plan = planned("hq-dit", samples=8)
    source = source_of(pipe, part, plan.recipe, Calibration(steps=5), 0)
    assert rows_of(plan.recipe, source) == {
        "calibration": source.rows_run,
        "blocks": PASSES * 8,
    }
    best = Recipe.resolve("best", None, {"samples": 8})
    assert rows_of(best, source)["survey"] == 3 * 8
    assert rows_of(plan.recipe, None) == {"blocks": 0.0}


def test_the_time_is_that_of_rows_and_weights(monkeypatch):
    pipe, part, plan = planned("hq-dit", samples=8)
    monkeypatch.setattr(forecast, "_of_a_row", lambda *_: (0.5, 1000.0))
    monkeypatch.setattr(forecast, "resident_bytes", lambda: 10**9)
    asked = Calibration(steps=5)
    source = source_of(pipe, part, plan.recipe, asked, 0)
    weights = sum(rows * columns for rows, columns in (one.shape for one in plan.layers))
    found = cost_of(pipe, part, plan, asked, 0)
    threads = forecast.torch.get_num_threads()
    rows = source.rows_run + PASSES * 8
    assert found.seconds == pytest.approx(0.5 * rows + weights / forecast.SOLVED / threads)
    block = sum(one.bytes for one in plan.layers if one.block == 0)
    beside = forecast.WORKING + forecast.COPIES * block + forecast.STREAMS * 8 * 1000
    assert found.peak_bytes == round(10**9 + beside)


def test_a_call_is_timed_where_there_are_data_and_none_where_not(monkeypatch):
    pipe, part, plan = planned("hq-dit", samples=8)
    assert cost_of(pipe, part, plan, Calibration(steps=5), 0).seconds > 0
    assert not part.network.transformer_blocks[0]._forward_pre_hooks
    pipe, part, plan = planned("rtn")
    monkeypatch.setattr(forecast, "_of_a_row", None)
    assert 0 < cost_of(pipe, part, plan, None, 0).seconds < 1


def test_what_cannot_be_known_is_told_in_words():
    model = tiny.make()
    plan = make_plan(model, Recipe.resolve("hq-dit", None, {}), None, allow_unknown=False)
    [part] = components_of(model)
    said = cost_of(model, part, plan, None, 0)
    assert said.startswith("  time and memory are not known: hq-dit needs to see data")


def test_the_words():
    text = str(Expected(83.0, 812_000_000))
    assert text == "  about 1:23 and 0.8 GB of memory here, within 2x on the demo shapes"
