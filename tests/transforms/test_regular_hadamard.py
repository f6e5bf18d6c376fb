"""ConvRot's rotation: the law of every transform, the matrix it says, every backend alike."""

import pytest
import torch
from torch.testing import assert_close

from fewbit import registry
from fewbit.errors import BadArgument
from fewbit.formats import FORMATS
from fewbit.kernels.choose import BACKENDS, backend_named
from fewbit.transforms.regular_hadamard import RegularHadamard, allowed_blocks, usual_block

EXACT = {"rtol": 0, "atol": 1e-11}  # float64 sums of at most 4608 terms of size one
FOUR = torch.tensor([[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]])
CPU = torch.device("cpu")


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(("width", "block"), [(4, 4), (48, 16), (1152, 64), (4608, 256)])
def test_the_product_is_unchanged(width, block):
    x, weight = normal(3, width), normal(5, width, seed=1) / width**0.5
    rotation = RegularHadamard(width, block)
    assert_close(rotation(x) @ rotation.weight(weight).T, x @ weight.T, **EXACT)
    assert_close(rotation(rotation(x)), x, **EXACT)


def test_it_is_the_matrix_it_says():
    h = torch.kron(torch.kron(FOUR, FOUR), FOUR).double() / 8
    assert torch.equal(h, h.T)
    assert h.sum(0).unique().tolist() == [1.0]  # regular: one sum of all rows
    x = normal(2, 192)
    dense = torch.block_diag(h, h, h)
    assert_close(RegularHadamard(192, 64)(x), x @ dense, **EXACT)


@pytest.mark.parametrize("name", [b.name for b in BACKENDS if b.why_not(CPU) is None])
@pytest.mark.parametrize(("width", "block"), [(1152, 64), (512, 256), (48, 4)])
def test_backends_rotate_and_round_alike_to_the_last_bit(name, width, block):
    x, rotation = normal(37, width).float(), RegularHadamard(width, block).rotation
    backend, definition = backend_named(name), backend_named("reference")
    assert torch.equal(backend.rotate(x, rotation), definition.rotate(x, rotation))
    for fmt in (FORMATS["int8"], FORMATS["int4"]):
        found, exact = (one.quantize(x, fmt, rotation) for one in (backend, definition))
        assert torch.equal(found.integers, exact.integers)
        assert torch.equal(found.scales, exact.scales)


def test_blocks_are_powers_of_four_that_divide():
    assert allowed_blocks(1152) == [64, 16, 4]
    assert [usual_block(width) for width in (4608, 1152, 12, 4096, 6)] == [256, 64, 4, 256, None]
    for width, block in ((1152, 256), (1152, 8), (1152, 0), (6, 4)):
        with pytest.raises(BadArgument, match=f"width {width} has no .* blocks of {block}"):
            RegularHadamard(width, block)


def test_it_is_built_again_from_its_description_and_stores_nothing():
    rotation = RegularHadamard(48, 16)
    assert not rotation.state_dict()
    again = registry.build("transforms", rotation.config())
    x = normal(2, 48)
    assert torch.equal(again(x), rotation(x))
    with pytest.raises(BadArgument, match="a whole number, got True"):
        registry.build("transforms", {**rotation.config(), "block": True})


def test_casting_the_model_leaves_it_exact():
    x = normal(2, 64)
    assert torch.equal(RegularHadamard(64, 64).half().bfloat16()(x), RegularHadamard(64, 64)(x))


def test_it_traces_without_breaks():
    rotation = RegularHadamard(64, 16)
    compiled = torch.compile(rotation, backend="eager", fullgraph=True)
    x = normal(4, 64).float()
    assert torch.equal(compiled(x), rotation(x))
