"""A forward of an instance's own is lent, never lost."""

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from fewbit.models.fused_attention import standing_in
from fewbit.models.own_forward import is_wrapped, own_forward


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
