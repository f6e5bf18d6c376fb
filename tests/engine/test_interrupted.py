"""Whatever ends quantize() early leaves the model as it was, and it can be called again."""

from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module

import pytest
import tiny_transformers as tiny
import torch
from small_dit import bits_of, rows, run

import fewbit
from fewbit.calibration import Step
from fewbit.engine.run import _Run
from fewbit.errors import BadModel
from fewbit.methods import tq_dit, vq4dit
from fewbit.methods.method import BlockJob

pytestmark = pytest.mark.usefixtures("one_thread")

RECIPES = {
    "hq-dit": {"smooth": 0.5},
    "tq-dit": {"groups": 2, "candidates": 2, "rounds": 1},
    "vq4dit": {"bits": "w1.5", "steps": 1, "tuning": 1},
    "fp4dit": {"bits": "w4a8", "steps": 1, "softmax": "fp8"},
    "rtn": {},
}


LEFT_OUT = {
    "tq-dit": {**RECIPES["tq-dit"], "attention": "skip"},
    "fp4dit": {**RECIPES["fp4dit"], "attention": "skip", "softmax": "keep"},
}


class Stop(BaseException):
    """As a Ctrl-C, at a chosen place."""


def quantize(model, recipe, workdir=None):
    given = None if recipe == "rtn" else rows()
    settings = RECIPES[recipe]
    return fewbit.quantize(
        model, recipe, calibration=given, workdir=workdir, progress=False, **settings
    )


@contextmanager
def stopped_after(target, name, count=1):
    """The call is made so many times, and then everything ends."""
    method = getattr(target, "METHOD", None)
    method = method if hasattr(method, name) else None
    whole = getattr(target if method is None else method, name)
    left = iter(range(count - 1))

    def stopping(*arguments, **named):
        result = whole(*arguments, **named)
        if next(left, None) is None:
            raise Stop
        return result

    with pytest.MonkeyPatch.context() as patch:
        if method is None:
            patch.setattr(target, name, stopping)
        else:
            patch.setattr(target, "METHOD", replace(method, **{name: stopping}))
        with pytest.raises(Stop):
            yield


def everything(model):
    """Modules, their classes and attributes, and their tensors with all that belongs to them."""
    modules = {
        name: (id(module), type(module), sorted(vars(module)), len(module._forward_pre_hooks))
        for name, module in model.named_modules()
    }
    tensors = {
        name: (id(tensor), tensor.dtype, tensor.requires_grad, tensor.detach().clone())
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]
    }
    return modules, tensors, dict(model.config)


def assert_as_before(model, before):
    modules, tensors, config = everything(model)
    assert modules == before[0]
    assert config == before[2]
    assert tensors.keys() == before[1].keys()
    for name, (*facts, tensor) in tensors.items():
        *expected, value = before[1][name]
        assert facts == expected, name
        assert torch.equal(tensor, value), name


MOMENTS = {
    "within a block's solution": (None, "solve", 2),
    "after a block": (_Run, "_solve", 1),
    "while a block advances": (Step, "advance", 1),
    "at the very end": ("fewbit.engine.run", "mark", 1),
}


CASES = [(recipe, "within a block's solution") for recipe in RECIPES if recipe != "rtn"]
CASES += [("hq-dit", moment) for moment in [*MOMENTS][1:]]


@pytest.mark.parametrize(("recipe", "moment"), CASES)
def test_the_originals_come_back_and_the_same_call_goes_on(tmp_path, recipe, moment):
    model = tiny.make()
    picture, before = run(model), everything(model)
    target, name, count = MOMENTS[moment]
    if target is None:
        target = f"fewbit.methods.{recipe.replace('-', '_')}"
    if isinstance(target, str):
        target = import_module(target)
    with stopped_after(target, name, count):
        quantize(model, recipe, tmp_path)
    assert_as_before(model, before)
    assert torch.equal(run(model), picture)
    resumed = quantize(model, recipe, tmp_path)
    whole = tiny.make()
    expected = quantize(whole, recipe)
    assert bits_of(model) == bits_of(whole)
    assert resumed.layers == expected.layers
    assert torch.equal(run(model), run(whole))


def test_without_data_too():
    model = tiny.make()
    before = everything(model)
    with stopped_after(_Run, "_solve", 2):
        quantize(model, "rtn")
    assert_as_before(model, before)
    quantize(model, "rtn")


@pytest.mark.parametrize(("method", "phase"), [(tq_dit, "survey"), (vq4dit, "finish")])
def test_a_failure_in_the_other_phases(method, phase):
    model = tiny.make()
    before = everything(model)
    with stopped_after(method, phase):
        quantize(model, method.METHOD.name)
    assert_as_before(model, before)


def test_a_forward_that_somebody_put_on_an_attention_stays():
    """Quantized matmuls would be passed by, so they are refused; without them it is reached."""
    model, attention, calls = with_own_forward()
    own, before = attention.forward, everything(model)
    with pytest.raises(BadModel, match="forward of its own"):
        quantize(model, "tq-dit")
    assert_as_before(model, before)
    fewbit.quantize(model, "tq-dit", calibration=rows(), progress=False, **LEFT_OUT["tq-dit"])
    calls.clear()
    run(model)
    assert attention.forward is own
    assert len(calls) == 1


def test_a_method_that_trains_copies_refuses_such_a_forward_wherever_it_is():
    model, _, _ = with_own_forward()
    before = everything(model)
    with pytest.raises(BadModel, match="a copy is trained"):
        fewbit.quantize(model, "fp4dit", calibration=rows(), progress=False, **LEFT_OUT["fp4dit"])
    assert_as_before(model, before)


def with_own_forward():
    """A model, one of its attentions with a plain function as forward, and the calls of that."""
    model, calls = tiny.make(), []
    attention = model.transformer_blocks[1].attn1
    whole = attention.forward

    def own(*arguments, **named):
        calls.append(None)
        return whole(*arguments, **named)

    attention.forward = own
    return model, attention, calls


def test_what_a_method_writes_into_the_block_is_undone():
    """HQ-DiT folds rotations into value projections and their biases, in their own tensors."""
    model = tiny.make()
    before = everything(model)
    with stopped_after(BlockJob, "fold_into_values"):
        quantize(model, "hq-dit")
    assert_as_before(model, before)


def test_nothing_of_the_originals_is_kept_after_a_success():
    import gc
    import weakref

    model = tiny.make()
    kept = weakref.ref(model.transformer_blocks[0].ff.net[2])
    quantize(model, "hq-dit")
    gc.collect()
    assert kept() is None
