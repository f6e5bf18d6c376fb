"""Flexible attention with gradients on a CPU: the numbers it has without them, and true slopes."""

import any_transformers
import pytest
import torch
from torch.nn.attention import flex_attention as flexible
from torch.nn.attention.flex_attention import create_block_mask
from torch.nn.functional import scaled_dot_product_attention

from fewbit.models.discover import discover
from fewbit.models.flexible_attention import differentiable


def operands(keys=2):
    random = torch.Generator().manual_seed(0)
    shapes = (2, 4, 128, 16), (2, keys, 128, 16), (2, keys, 128, 16)
    return [torch.randn(shape, generator=random) for shape in shapes]


def causal(batch, head, query, key):
    return (query >= key) & (query < 100)  # later queries see no key at all


MASK = create_block_mask(causal, None, None, 128, 128, "cpu")


@pytest.mark.parametrize("mask", [None, MASK])
def test_it_is_what_torch_gives_without_gradients(mask):
    own = flexible.flex_attention
    how = {"block_mask": mask, "enable_gqa": True, "scale": 0.3, "kernel_options": {"BLOCK_M": 64}}
    expected = own(*operands(), **how)
    with differentiable():
        found = flexible.flex_attention(*(x.requires_grad_() for x in operands()), **how)
        assert torch.equal(flexible.flex_attention(*operands(), **how), expected)
    assert flexible.flex_attention is own
    torch.testing.assert_close(found, expected)


def test_its_gradients_are_those_of_the_fused_attention():
    given, others = ([x.requires_grad_() for x in operands(4)] for _ in range(2))
    noise = torch.randn(2, 4, 128, 16)
    with differentiable():
        flexible.flex_attention(*given, block_mask=MASK).backward(noise)
    places = torch.arange(128)
    seen = causal(0, 0, places[:, None], places)
    scaled_dot_product_attention(*others, attn_mask=seen).backward(noise)
    for one, other in zip(given, others, strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    assert not given[0].grad[:, :, 100:].any()


@pytest.mark.parametrize("how", [{"score_mod": lambda score, *_: 2 * score}, {"return_lse": True}])
def test_what_it_cannot_write_out_is_refused_as_before(how):
    with differentiable(), pytest.raises(NotImplementedError, match="backward on CPU"):
        flexible.flex_attention(*(x.requires_grad_() for x in operands(4)), **how)


@pytest.mark.parametrize(
    ("name", "roles"),
    [
        ("AnyFlowFARTransformer3DModel", {"attn1.to_v": "v", "attn1.to_out.0": "attn_out"}),
        ("Kandinsky6SRTransformer3DModel", {"self_attention.to_value": "v"}),
    ],
)
def test_roles_are_found_behind_it(name, roles):
    spec = discover(any_transformers.make(name), any_transformers.call(name))
    assert {path: spec.role(path) for path in roles} == roles
