"""Reaching the fused attention of any module, and nothing else."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fewbit.errors import BadModel
from fewbit.models.fused_attention import AttentionCall, run_with, standing_in


class Calls(nn.Module):
    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    def forward(self, x):
        for _ in range(self.times):
            x = helper(x)
        return x


def helper(x):
    return F.scaled_dot_product_attention(x, x, value=x, scale=0.5)


def mean(call):
    return call.value.mean(-2, keepdim=True).expand_as(call.query)


def test_a_stand_in_answers_and_goes():
    module, x = Calls(1), torch.randn(2, 3, 4)
    with standing_in({"it": mean}, {"it": module}):
        assert torch.equal(module(x), mean(AttentionCall(x, x, x)))
    assert torch.equal(module(x), helper(x))
    assert "forward" not in vars(module)


@pytest.mark.parametrize("times", [0, 2])
def test_a_module_must_ask_once(times):
    with pytest.raises(BadModel, match=rf'here called .* {times} times .* attention="skip"'):
        run_with(mean, "here", Calls(times), torch.randn(2, 3, 4))


def test_who_stands_in_may_use_the_fused_attention_itself():
    module, x = Calls(1), torch.randn(2, 3, 4)
    with standing_in({"it": AttentionCall.plainly}, {"it": module}):
        assert torch.equal(module(x), helper(x))
