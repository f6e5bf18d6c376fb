"""Transforms one after another obey the law of each, and come back from their config."""

import pytest
import torch

from fewbit import registry
from fewbit.transforms.chain import Chain
from fewbit.transforms.hadamard import Hadamard, HadamardTransform
from fewbit.transforms.smooth import Smooth


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def chain(width, *kinds):
    parts = {
        "smooth": Smooth(normal(width, seed=3).exp()),
        "hadamard": HadamardTransform(Hadamard.for_width(width, 1)),
    }
    return Chain([parts[kind] for kind in kinds])


@pytest.mark.parametrize("kinds", [("smooth", "hadamard"), ("hadamard", "smooth"), ()])
@pytest.mark.parametrize("width", [12, 72])
def test_the_product_is_unchanged(width, kinds):
    x, weight, both = normal(5, width), normal(7, width, seed=1), chain(width, *kinds)
    torch.testing.assert_close(both(x) @ both.weight(weight).T, x @ weight.T, rtol=0, atol=1e-11)


def test_the_order_counts():
    x = normal(2, 12)
    first, second = chain(12, "smooth", "hadamard"), chain(12, "hadamard", "smooth")
    assert not torch.allclose(first(x), second(x))


def test_it_is_built_again_from_config_and_tensors():
    both = chain(24, "smooth", "hadamard").float()
    again = registry.build("transforms", both.config())
    again.load_state_dict(both.state_dict())
    assert torch.equal(again(normal(3, 24).float()), both(normal(3, 24).float()))
    assert both.extra_repr() == "smooth > hadamard 24"
