"""The law of every transform: input(x) @ weight(W).T == x @ W.T."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from fewbit.errors import BadArgument
from fewbit.transforms.hadamard import Hadamard, HadamardTransform, allowed_blocks
from fewbit.transforms.hadamard_matrix import halves, kronecker

EXACT = {"rtol": 0, "atol": 1e-11}  # float64 sums of at most 12288 terms of size one


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("width", [2, 12, 48, 72, 88, 192, 768, 1152, 1408, 4608, 12288])
def test_the_product_is_unchanged(width):
    x, weight = normal(3, width), normal(5, width, seed=1) / width**0.5
    rotation = Hadamard.for_width(width, seed=7)
    assert_close(rotation.input(x) @ rotation.weight(weight).T, x @ weight.T, **EXACT)
    assert_close(rotation.inverse(rotation.input(x)), x, **EXACT)


@settings(max_examples=40, deadline=None)
@given(
    block=st.sampled_from([2, 4, 12, 28, 64, 96, 128, 144]),
    blocks=st.integers(1, 5),
    lead=st.lists(st.integers(0, 3), max_size=3),
    seed=st.integers(-(2**63), 2**63 - 1),
)
def test_block_rotations_obey_the_law_for_every_shape(block, blocks, lead, seed):
    x, weight = normal(*lead, block * blocks), normal(4, block * blocks, seed=1)
    rotation = Hadamard(block * blocks, block, seed)
    rotated = rotation.input(x)
    assert rotated.shape == x.shape
    assert_close(rotated @ rotation.weight(weight).T, x @ weight.T, **EXACT)


@pytest.mark.parametrize(("width", "block"), [(1152, None), (48, 12), (144, None)])
def test_it_is_the_matrix_it_says(width, block):
    """x·diag(s)·(I ⊗ H)/√n, written out densely."""
    rotation = Hadamard(width, block, seed=3)
    left, right = halves(rotation.order)
    h = kronecker(left + right).double() / rotation.order**0.5
    dense = torch.block_diag(*[h] * (width // rotation.order))
    x = normal(2, width)
    assert_close(rotation.input(x), (x * rotation.signs()) @ dense, **EXACT)


def test_signs_are_fixed_by_the_seed_alone():
    signs = Hadamard(16, None, seed=0).signs()
    state = torch.random.get_rng_state()
    assert signs.tolist() == [1, -1, -1, 1, -1, -1, -1, -1, -1, -1, -1, 1, 1, -1, 1, 1]
    assert not torch.equal(signs, Hadamard(16, None, seed=1).signs())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_signs_spread_a_common_mean():
    """Without them one row of H collects the mean of all channels."""
    constant = torch.ones(1, 1152)
    assert Hadamard(1152, None, seed=0).input(constant).abs().max() < 6 < 1152**0.5


@pytest.mark.parametrize("width", [1152, 4608, 64])
def test_bfloat16_rounds_no_more_than_three_times(width):
    """Input, middle, output: the error stays within √3 of rounding the input alone."""
    x = normal(256, width)
    rotation = Hadamard.for_width(width, seed=0)
    exact, rounded = rotation.input(x), x.bfloat16()
    once = (rounded.double() - x).norm()
    assert (rotation.input(rounded).double() - exact).norm() < 1.05 * 3**0.5 * once


def test_float16_does_not_overflow_on_massive_channels():
    x = torch.zeros(1, 4608, dtype=torch.float16)
    x[0, ::96] = 20_000 * Hadamard.for_width(4608, seed=0).signs()[::96]
    assert Hadamard.for_width(4608, seed=0).input(x).isfinite().all()


@pytest.mark.parametrize(
    ("width", "asked", "got"),
    [(1152, None, None), (1152, "auto", None), (1152, 128, 128), (1150, "auto", 2), (832, 64, 64)],
)
def test_block_choice(width, asked, got):
    assert Hadamard.for_width(width, 0, block=asked).block == got


@pytest.mark.parametrize(
    ("width", "block", "message"),
    [
        (1160, None, "width 1160 has no full Hadamard .*; allowed: blocks of 40, 20, 8, 4, 2"),
        (1152, 100, "width 1152 has no .* blocks of 100; allowed: blocks of 96, 128, "),
        (1152, 0, "by blocks of 0"),
        (1151, "auto", "width 1151 has no full Hadamard rotation; allowed: no rotation"),
        (12, 24, "blocks of 24; allowed: blocks of 12, 4, 2"),
    ],
)
def test_impossible_rotations_name_the_possible_ones(width, block, message):
    with pytest.raises(BadArgument, match=message):
        Hadamard.for_width(width, 0, block=block)


def test_allowed_blocks_divide():
    assert allowed_blocks(24) == [24, 12, 8, 4, 2]


class TestModule:
    def test_it_is_the_value(self):
        rotation = Hadamard(96, 48, seed=5)
        x = normal(2, 3, 96).float()
        assert torch.equal(HadamardTransform(rotation)(x), rotation.input(x))

    def test_its_signs_come_from_the_checkpoint(self):
        saved, fresh = (HadamardTransform(Hadamard(96, None, seed)) for seed in (1, 2))
        assert list(saved.state_dict()) == ["signs"]
        fresh.load_state_dict(saved.state_dict())
        x = normal(2, 96)
        assert torch.equal(fresh(x), saved(x))

    def test_casting_the_model_leaves_it_exact(self):
        module = HadamardTransform(Hadamard(1152, None, 0)).half().bfloat16()
        x = normal(2, 1152)
        assert torch.equal(module(x), Hadamard(1152, None, 0).input(x))

    def test_it_traces_without_breaks(self):
        module = HadamardTransform(Hadamard(1152, None, 0))
        compiled = torch.compile(module, backend="eager", fullgraph=True)
        x = normal(4, 1152).float()
        assert torch.equal(compiled(x), module(x))

    def test_it_is_real_under_a_meta_device(self):
        with torch.device("meta"):
            module = HadamardTransform(Hadamard(24, None, 0))
        assert not any(buffer.is_meta for buffer in module.buffers())
