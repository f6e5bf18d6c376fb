"""A forward of an instance's own is lent, never lost."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from fewbit.errors import BadModel
from fewbit.models.fused_attention import standing_in
from fewbit.models.own_forward import (
    forget_leftover,
    is_wrapped,
    own_forward,
    refuse_bound_to_one,
)


class Attending(nn.Module):
    def forward(self, x):
        return scaled_dot_product_attention(x, x, x)


def test_what_was_there_before_comes_back():
    module = nn.Identity()
    with own_forward(module, lambda x: x + 1):
        assert module(1) == 2
        with own_forward(module, lambda x: x + 2):
            assert module(1) == 3
        assert module(1) == 2
    assert "forward" not in vars(module)
    assert module(1) == 1


def test_attention_is_answered_through_a_forward_that_was_put_there():
    module, called = Attending(), []
    own = module.forward
    module.forward = lambda x: (called.append(1), own(x))[1]
    before = vars(module)["forward"]
    with standing_in({"it": lambda *_: torch.tensor(7)}, {"it": module}):
        assert module(torch.ones(1, 1, 2, 4)) == 7
    assert called == [1]
    assert vars(module)["forward"] is before


def test_the_classs_own_forward_as_an_attribute_wraps_nothing():
    module = nn.Linear(2, 2)
    assert not is_wrapped(module)
    module.forward = module.forward
    assert "forward" in vars(module)
    assert not is_wrapped(module)
    module.forward = lambda x: x
    assert is_wrapped(module)


def test_only_what_nobody_put_there_is_forgotten():
    module = nn.Linear(2, 2)
    module.forward = module.forward
    forget_leftover(module)
    assert "forward" not in vars(module)
    module.forward = put = lambda x: x
    forget_leftover(module)
    assert vars(module)["forward"] is put


def test_a_function_put_there_by_hand_runs_the_original_of_a_copy():
    """What accelerate puts there is copied with its module."""
    hooks = pytest.importorskip("accelerate.hooks")
    model, x = nn.Sequential(nn.Linear(2, 2)), torch.ones(1, 2)
    hooks.add_hook_to_module(model[0], hooks.ModelHook())
    refuse_bound_to_one(model)
    copied = copy.deepcopy(model)
    copied[0].weight.data += 1
    assert not torch.equal(copied(x), model(x))
    hooks.remove_hook_from_module(model[0])
    own = model[0].forward
    model[0].forward = lambda x: own(x)
    copied = copy.deepcopy(model)
    copied[0].weight.data += 1
    assert torch.equal(copied(x), model(x))
    with pytest.raises(BadModel, match=r"^0 has a forward of its own.*a copy is trained"):
        refuse_bound_to_one(model)
