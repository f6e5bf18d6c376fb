"""Every instruction set of this machine gives the bits of the definition in torch."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, scaled_dot_product_attention

from fewbit.activations.clock import Clock, TimeBins
from fewbit.activations.multi_region import MultiRegion, two_regions
from fewbit.errors import BadArgument
from fewbit.formats import FORMATS, Format, FormatChoice, Spec
from fewbit.kernels.native import ops as native
from fewbit.kernels.native.library import FILE, ISAS, LinearTask, failure, load
from fewbit.kernels.reference import Reference
from fewbit.kernels.values import AdaLNInput, Epilogue, OperandRounding, Rotation
from fewbit.transforms.hadamard import Hadamard

if not native.available():
    pytest.skip(f"no native kernels: {native.why_not()}", allow_module_level=True)

HERE = [isa for isa in ISAS if native.functions().fewbit_supports(isa.encode())]
FP4 = ("e2m1", "e1m2", "e3m0")
BOOKS = ("book2", "book3", "book4")
ACTIVATIONS = (*FP4, *BOOKS, "e2m3", "int4", "int6", "int8", "e1m1", "e2m0", "int2")
CHOICE = FormatChoice(tuple(FORMATS[name] for name in FP4))
MOST_DEPTH = native.most_depth()
SHAPES = ((1, 1, 1), (7, 65, 33), (13, 64, 8), (8, 130, 384), (77, 200, 1160))


@pytest.fixture(autouse=True)
def same_numbers_every_time() -> None:
    torch.manual_seed(0)


def quantized(x: Tensor, fmt: Format) -> tuple[Tensor, Tensor]:
    """The library's own rounding, in steps."""
    spec = Spec(fmt, "row")
    scales = spec.load(spec.fit(x))
    codes = (fmt.round(x.float() * scales.reciprocal()) / fmt.step).to(torch.int8)
    return codes, scales * fmt.step


def levels(codes: Tensor, fmt: Format) -> Tensor:
    return fmt.decode(codes) / fmt.step


def product(codes: Tensor, weight: Tensor) -> Tensor:
    return (codes.double() @ weight.double().T).float()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_codes_and_scales_are_the_bits_of_the_definition(isa, name, dtype):
    fmt = FORMATS[name]
    x = (torch.randn(23, 211) * torch.logspace(-30, 30, 23)[:, None]).to(dtype)
    x[3] = 0
    codes, scales = native.quantize_rows(x, fmt)
    expected, expected_scales = quantized(x, fmt)
    assert torch.equal(codes, expected)
    assert torch.equal(scales, expected_scales)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_tie_goes_where_the_definition_sends_it(isa, name):
    fmt = FORMATS[name]
    ends = torch.tensor([v for v in fmt.levels if abs(v) <= fmt.max])
    middles = (ends[1:] + ends[:-1]) / 2
    near = [torch.nextafter(middles, torch.tensor(to)) for to in (-1e9, 1e9)]
    row = torch.cat([torch.tensor([fmt.max]), ends, middles, *near])[None]
    codes, _ = native.quantize_rows(row, fmt)
    assert torch.equal(codes, quantized(row, fmt)[0])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("at", [0, 16, 50])
def test_a_row_that_is_not_finite_is_lost_and_says_so(isa, bad, at):
    x, fmt = torch.randn(3, 51), FORMATS["e2m1"]
    x[1, at] = bad
    codes, scales = native.quantize_rows(x, fmt)
    packed = native.pack_codes(torch.ones(5, 51, dtype=torch.uint8), fmt)
    y = native.linear(codes, scales, packed, torch.ones(5, 1), torch.ones(5))
    assert scales.isnan().flatten().tolist() == [False, True, False]
    assert y.isnan().all(1).tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("width", "block"),
    [(72, None), (96, 24), (768, None), (1152, 128), (1152, 2), (2304, None), (4608, None)],
)
def test_rotation_sums_in_ascending_order(isa, width, block):
    hadamard, fmt, x = Hadamard(width, block, 3), FORMATS["e2m1"], torch.randn(5, width)
    signs, matrices, inner = hadamard.signs(), hadamard.matrices(), hadamard.order
    rotated = x * signs
    for matrix in matrices:
        inner //= len(matrix)
        tokens = rotated.view(-1, len(matrix), inner)
        rotated = torch.zeros_like(tokens)
        for k in range(len(matrix)):
            rotated += matrix[k].float()[:, None] * tokens[:, k, None]
    expected = (rotated * hadamard.order**-0.5).view(x.shape)
    codes, scales = native.hadamard_quantize_rows(x, Rotation(signs, matrices), fmt)
    assert torch.equal(codes, quantized(expected, fmt)[0])
    assert torch.equal(scales, quantized(expected, fmt)[1])


@pytest.mark.parametrize("name", ["e2m1", "int8", "book4", None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("modulate", [False, True])
@pytest.mark.parametrize(
    ("width", "block", "rank"),
    [
        (211, 0, 8),
        (1, 0, 1),
        (16, 0, 16),
        (72, None, 8),
        (96, 24, 33),
        (1152, 128, 17),
        (1152, 2, 1),
    ],
)
def test_a_row_is_split_as_the_definition_splits_it(isa, width, block, rank, modulate, dtype, name):
    hadamard = None if block == 0 else Hadamard(width, block, 3)
    rotation = hadamard and Rotation(hadamard.signs(), tuple(hadamard.matrices()))
    x, directions = 3 * torch.randn(2, 7, width).to(dtype) + 1, _int8(rank, width)
    x[1, 2, 0], x[1, 3] = torch.nan, 0
    shift, scale = torch.randn(2, 2, width)
    given = (x, shift, scale, 1e-6) if modulate else (x,)
    fmt = None if name is None else FORMATS[name]
    aside, left, scales = native.Split(directions, rotation, fmt)(*given)
    exact = Reference().split(AdaLNInput(*given) if modulate else x, directions, rotation, fmt)
    assert torch.equal(aside[0], exact.side.integers)
    assert _same(aside[1], exact.side.scales)
    if fmt is None:
        assert _same(left, exact.main)
    else:
        assert torch.equal(left, exact.main.integers)
        assert _same(scales, exact.main.scales)


def _same(ours: Tensor, exact: Tensor) -> bool:
    """Lost rows alike."""
    return torch.equal(ours.nan_to_num(-1.0), exact.nan_to_num(-1.0))


@pytest.mark.parametrize("after", ["nothing", "gelu", "gated"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rank", [1, 8, 12, 64])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("rows", [1, 14, 131])
def test_a_side_is_a_product_that_is_added_first(isa, rows, groups, rank, dtype, after):
    """To the last bit: both products, the bias, the sum, and then what follows."""
    n, k = 70, 96
    main, by_group = native.pack_codes(*_codes(n, k)), torch.rand(n, groups)
    beside, by_row = native.pack_levels(_int8(n, rank)), torch.rand(n, 1)
    linear, side = native.Linear(main, by_group, torch.randn(n)), native.Linear(beside, by_row)
    given, aside = (_int8(rows, k), torch.rand(rows, 1)), (_int8(rows, rank), torch.rand(rows, 1))
    gate, residual = torch.randn(1, n), torch.randn(rows, n).to(dtype)
    epilogue = {
        "nothing": Epilogue(),
        "gelu": Epilogue(gelu=True),
        "gated": Epilogue(gate=gate, residual=residual),
    }[after]
    ours = linear(*given, dtype, epilogue.gelu, epilogue.gate, epilogue.residual, (side, *aside))
    alone = linear(*given, torch.float32) + side(*aside, torch.float32)
    expected = epilogue(alone).to(dtype)
    if after == "gelu":  # whose tanh is its own
        identity = native.gelu(alone).to(dtype)
        assert (ours.float() - identity.float()).abs().max() <= 2**-7 * identity.abs().max()
    else:
        assert torch.equal(ours, expected)


def _codes(rows: int, columns: int) -> tuple[Tensor, Format]:
    return torch.randint(0, 16, (rows, columns), dtype=torch.uint8), FORMATS["e2m1"]


def _int8(rows: int, columns: int) -> Tensor:
    return torch.randint(-127, 128, (rows, columns), dtype=torch.int8)


def test_a_side_of_other_sizes_is_refused():
    linear = native.Linear(native.pack_codes(*_codes(70, 96)), torch.rand(70, 1))
    given = _int8(5, 96), torch.rand(5, 1)
    for channels, groups, rows in ((71, 1, 5), (70, 2, 5), (70, 1, 4)):
        beside = native.Linear(
            native.pack_levels(_int8(channels, 16)), torch.rand(channels, groups)
        )
        side = beside, _int8(rows, 16), torch.rand(rows, 1)
        with pytest.raises(BadArgument, match="another shape"):
            linear(*given, torch.float32, side=side)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layer_norm_and_modulation(isa, dtype):
    x, (shift, scale) = torch.randn(2, 5, 331).to(dtype) * 3 + 1, torch.randn(2, 2, 331)
    expected = layer_norm(x.float(), (331,), eps=1e-6) * (1 + scale[:, None]) + shift[:, None]
    y = native.layer_norm_modulate(x, shift, scale, 1e-6)
    assert y.dtype == dtype
    torch.testing.assert_close(y, expected.to(dtype), rtol=2e-6 if dtype == torch.float32 else 1e-2,
                               atol=4e-6)  # fmt: skip
    if dtype == torch.float32:
        codes, scales = native.modulate_quantize_rows(x, shift, scale, 1e-6, FORMATS["e2m1"])
        again = native.quantize_rows(y, FORMATS["e2m1"])
        assert torch.equal(codes, again[0])
        assert torch.equal(scales, again[1])


@pytest.mark.parametrize("name", [*FP4, *BOOKS, "int4", "uint3", "int8", "e2m3", "e1m1"])
def test_packing_is_invertible_for_every_code(name):
    fmt = FORMATS[name]
    codes = torch.randint(0, 1 << fmt.bits, (67, 37), dtype=torch.uint8)
    codes.view(-1)[: 1 << fmt.bits] = torch.arange(1 << fmt.bits)
    back = native.unpack(native.pack_codes(codes, fmt))
    assert torch.equal(back, codes if fmt.bits <= 4 else levels(codes, fmt).to(torch.int8))


@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
@pytest.mark.parametrize(("weight", "activation"), [
    *((w, a) for w in FP4 for a in FP4), ("int4", "int4"), ("e2m1", "int8"), ("e2m1", "e2m3"),
    ("int8", "int8"), ("e2m3", "int6"), *((w, a) for w in BOOKS for a in ("book4", "int8")),
])  # fmt: skip
def test_products_are_exact(isa, weight, activation, m, n, k):
    fmt = FORMATS[weight]
    codes = torch.randint(0, 1 << fmt.bits, (n, k), dtype=torch.uint8)
    x, scales = native.quantize_rows(torch.randn(m, k), FORMATS[activation])
    weight_scales, bias = torch.rand(n, 1), torch.randn(n)
    expected = product(x, levels(codes, fmt)) * scales * weight_scales.T + bias
    packed = native.pack_codes(codes, fmt)
    assert torch.equal(native.linear(x, scales, packed, weight_scales, bias), expected)
    half = native.linear(x, scales, packed, weight_scales, bias, out_dtype=torch.bfloat16)
    assert torch.equal(half, expected.bfloat16())
    unpacked = native.pack_levels(levels(codes, fmt).to(torch.int8))
    assert torch.equal(native.linear(x, scales, unpacked, weight_scales, bias), expected)


@pytest.mark.parametrize("depth", [1152, 20000, MOST_DEPTH])
def test_the_largest_sums_do_not_overflow(isa, depth):
    x = torch.full((2, depth), -128, dtype=torch.int8)
    x[1] = 127
    weight = torch.full((65, depth), 127, dtype=torch.int8)
    weight[1::2] = -128
    y = native.linear(x, torch.ones(2, 1), native.pack_levels(weight), torch.ones(65, 1))
    assert torch.equal(y, product(x, weight))


def test_more_columns_than_a_sum_can_hold_are_refused():
    assert 128 * 255 * MOST_DEPTH < 2**31 <= 128 * 255 * (MOST_DEPTH + 1)
    most, scale = MOST_DEPTH // 8 * 8, torch.ones(1, 1)
    native.Linear(native.pack_levels(torch.ones(1, 2 * most, dtype=torch.int8)), torch.ones(1, 2))
    beyond = native.pack_levels(torch.ones(1, MOST_DEPTH + 1, dtype=torch.int8))
    with pytest.raises(BadArgument, match=r"65794 columns in 1 groups: an int32 sum .* 65793"):
        native.Linear(beyond, scale)
    task = LinearTask(
        weight=beyond.data_ptr(), weight_bytes=beyond.numel(), n=1, k=MOST_DEPTH + 1, groups=1
    )
    assert "int32 sums" in str(failure(native.functions().fewbit_linear(task)))
    x = torch.ones(1, MOST_DEPTH + 1)
    assert native.float_linear(x, beyond, scale).item() == MOST_DEPTH + 1


def test_each_channel_may_choose_its_format(isa):
    codes, choices = torch.randint(0, 16, (150, 72), dtype=torch.uint8), torch.arange(150) % 3
    choices = choices.to(torch.uint8)
    by_row = [levels(codes, FORMATS[name]) for name in FP4]
    weight = torch.stack(by_row)[choices.int(), torch.arange(150)]
    packed = native.pack_codes(codes, CHOICE, choices[:, None])
    x, scales = native.quantize_rows(torch.randn(9, 72), FORMATS["e2m1"])
    y = native.linear(x, scales, packed, torch.ones(150, 1))
    assert torch.equal(y, product(x, weight) * scales)
    assert torch.equal(native.unpack(packed), codes)
    floats = torch.randn(3, 72)
    torch.testing.assert_close(
        native.float_linear(floats, packed, torch.ones(150, 1)), floats @ weight.T, rtol=1e-5,
        atol=1e-3,
    )  # fmt: skip


@pytest.mark.parametrize(("weight", "group"), [("e2m1", 128), ("int8", 24), ("int4", 8)])
def test_groups_are_summed_in_order(isa, weight, group):
    fmt, k = FORMATS[weight], 384
    codes = torch.randint(0, 1 << fmt.bits, (70, k), dtype=torch.uint8)
    x, scales = native.quantize_rows(torch.randn(11, k), FORMATS["e2m1"])
    weight_scales, total = torch.rand(70, k // group), torch.zeros(11, 70)
    for g in range(k // group):
        part = slice(g * group, (g + 1) * group)
        total = total + product(x[:, part], levels(codes[:, part], fmt)) * weight_scales[:, g]
    y = native.linear(x, scales, native.pack_codes(codes, fmt), weight_scales)
    assert torch.equal(y, total * scales)


def test_gelu_is_torchs(isa):
    x = torch.arange(-127, 128, dtype=torch.int8)[:, None].repeat(1, 8)
    packed = native.pack_levels(torch.ones(3, 8, dtype=torch.int8))
    scales = torch.full((255, 1), 0.02)
    y = native.linear(x, scales, packed, torch.ones(3, 1), gelu=True)
    exact = gelu((product(x, torch.ones(3, 8)) * scales).double(), approximate="tanh").float()
    # A negative result is the small difference of larger ones; torch itself is off by more.
    torch.testing.assert_close(y, exact, rtol=2e-6, atol=1e-7)
    wild = native.linear(x, torch.full((255, 1), 1e30), packed, torch.ones(3, 1), gelu=True)
    assert wild.isfinite().all()
    assert (wild[:127] == 0).all()


def test_gelu_that_becomes_bfloat16_is_off_by_no_more_than_that_rounds(isa):
    """Also where a negative result is the small difference of larger numbers."""
    x = torch.arange(-127, 128, dtype=torch.int8)[:, None].repeat(1, 8)
    packed, one = native.pack_levels(torch.ones(3, 8, dtype=torch.int8)), torch.ones(3, 1)
    for size in (1e-4, 2e-3, 0.005, 0.01, 0.02, 1.0, 1e30):
        scales = torch.full((255, 1), size)
        y = native.linear(x, scales, packed, one, gelu=True, out_dtype=torch.bfloat16)
        z = (product(x, torch.ones(3, 8)) * scales).double()
        exact = z * torch.sigmoid((8 / torch.pi) ** 0.5 * (z + 0.044715 * z**3))
        torch.testing.assert_close(y.double(), exact, rtol=2**-8 + 2**-11, atol=1e-36)
    lost = native.linear(x, scales * torch.nan, packed, one, gelu=True, out_dtype=torch.bfloat16)
    assert lost.isnan().all()


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("m", "n"), [(6, 65), (14, 64), (2, 130), (1, 3)])
def test_gate_and_residual(isa, m, n, dtype, groups):
    x = torch.randint(-12, 13, (m, 32), dtype=torch.int8)
    weight, weight_scales = torch.randint(-8, 8, (n, 32), dtype=torch.int8), torch.rand(n, groups)
    scales, bias = torch.rand(m, 1), torch.randn(n)
    gate, residual = torch.randn(2 - m % 2, n), torch.randn(m, n).to(dtype)
    packed = native.pack_levels(weight)
    y = native.linear(x, scales, packed, weight_scales, bias)
    gated = native.linear(
        x, scales, packed, weight_scales, bias, gate=gate, residual=residual, out_dtype=dtype
    )
    expected = residual.float() + gate.repeat_interleave(m // len(gate), 0) * y
    assert torch.equal(gated, expected.to(dtype))


@pytest.mark.parametrize("name", ["e2m1", "int8"])
@pytest.mark.parametrize("m", [*range(1, 10), 130])
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("dtype", native.DTYPES)
def test_floats_times_codes(isa, name, m, groups, dtype):
    fmt, n, k = FORMATS[name], 150, 320 if groups > 1 else 301
    codes = torch.randint(0, 1 << fmt.bits, (n, k), dtype=torch.uint8)
    x, weight_scales, bias = torch.randn(m, k).to(dtype), torch.rand(n, groups), torch.randn(n)
    weight = (levels(codes, fmt).view(n, groups, -1) * weight_scales[..., None]).view(n, k)
    packed = native.pack_codes(codes, fmt)
    y = native.float_linear(x, packed, weight_scales, bias, out_dtype=torch.float32)
    exact = x.double() @ weight.double().T + bias
    naive = (x.float() @ weight.T + bias - exact).abs().max()
    assert (y - exact).abs().max() <= 16 * naive  # one after another, where torch sums in parts


@pytest.mark.parametrize(("entries", "length"), [(256, 4), (64, 2), (7, 3), (5, 1)])
@pytest.mark.parametrize("m", [1, 9, 130])
@pytest.mark.parametrize("dtype", native.DTYPES)
def test_vectors_of_a_codebook(isa, entries, length, m, dtype):
    assignments = torch.randint(0, entries, (70, 100), dtype=torch.uint8)
    codebook, x = torch.randn(entries, length), torch.randn(m, 100 * length).to(dtype)
    weight = codebook.to(dtype).float()[assignments.int()].view(70, -1)
    exact = x.double() @ weight.double().T
    y = native.vector_linear(x, assignments, codebook)
    naive = (x.float() @ weight.T - exact).abs().max()
    assert y.dtype == dtype
    if dtype == torch.float32:
        assert (y - exact).abs().max() <= 16 * naive  # one after another, torch sums in parts
    else:
        assert ((y - exact).abs() <= torch.finfo(dtype).eps * exact.abs() + 16 * naive).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("queries", "keys", "width"), [(256, 256, 72), (5, 7, 16), (50, 333, 64), (1, 1, 9)]
)
def test_attention_is_as_accurate_as_torchs(isa, dtype, queries, keys, width):
    q = torch.randn(2, queries, 3, width).to(dtype).transpose(1, 2)
    k, v = torch.randn(2, 2, keys, 3, width).to(dtype).transpose(2, 3)
    mask = torch.rand(2, 1, queries, keys) < 0.8
    mask[..., 0] = True
    for masked in (None, mask):
        exact = scaled_dot_product_attention(q.double(), k.double(), v.double(), attn_mask=masked)
        torchs = (scaled_dot_product_attention(q, k, v, attn_mask=masked) - exact).abs().max()
        y = native.attention(q, k, v, masked)
        assert y.dtype == dtype
        assert (y - exact).abs().max() <= 3 * torchs + 1e-7


def test_attention_to_nothing_is_zero_and_nan_spreads_no_further_than_its_row(isa):
    q, k, v = torch.randn(3, 1, 1, 30, 16)
    mask = torch.ones(30, 30, dtype=torch.bool)
    mask[4] = False
    assert (native.attention(q, k, v, mask)[0, 0, 4] == 0).all()
    q[0, 0, 7, 3] = torch.nan
    lost = native.attention(q, k, v).isnan().all(-1)
    assert lost.flatten().nonzero().flatten().tolist() == [7]


STEP = 1 / 16  # of queries, keys and values


def whole(*operands: Tensor) -> tuple[Tensor, ...]:
    return tuple((x / STEP).round().clamp(-128, 127) * STEP for x in operands)


def by_shares(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, low: list[float], high: list[float]
) -> Tensor:
    steps = torch.full((3, 1, q.shape[1]), STEP)
    rounding = OperandRounding(FORMATS["int8"], steps, regions_of(low, high))
    return native.attend(q, k, v, mask, None, rounding)


def regions_of(low: list[float], high: list[float], half: int = 128) -> Tensor:
    steps = torch.tensor([low, high])[..., None]
    spec = Spec.parse(f"uint{half.bit_length()}/tensor/fp32")
    bins = TimeBins(torch.arange(len(low)) * 100.0)
    bins.clock = Clock("t", 0)
    bins.clock.read(bins, (torch.arange(len(low)) * 100,), {})
    regions = MultiRegion(spec, "unit", steps, bins).of_weights()
    assert regions is not None
    return regions


def rounded_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, low, high) -> Tensor:
    """By the definition: one step after the other, the shares in double precision before."""
    scores = q.double() @ k.double().mT * q.shape[-1] ** -0.5
    scores = scores if mask is None else scores.masked_fill(~mask, -torch.inf)
    low, high = (torch.tensor(step)[:, None, None, None] for step in (low, high))
    spec = Spec.parse("uint8/tensor/fp32")
    return two_regions(scores.softmax(-1).float(), low, high, spec, "unit") @ v


@pytest.mark.parametrize(
    ("queries", "keys", "width"), [(256, 256, 72), (5, 7, 16), (50, 333, 64), (30, 700, 8)]
)
@pytest.mark.parametrize("steps", [([1 / 1024], [1 / 128]), ([2e-5, 0.003], [0.009, 1 / 128])])
def test_shares_may_be_rounded_to_two_regions(isa, queries, keys, width, steps):
    if not native.has_attention(torch.float32):
        pytest.skip("there is no such kernel")
    q = 2 * torch.randn(2, queries, 3, width).transpose(1, 2)
    k, v = torch.randn(2, 2, keys, 3, width).transpose(2, 3)
    q, k, v = whole(q, k, v)
    mask = torch.rand(2, 1, queries, keys) < 0.8
    mask[..., 0] = True
    for masked in (None, mask):
        exact = rounded_attention(q, k, v, masked, *steps)
        error = (by_shares(q, k, v, masked, *steps) - exact).abs()
        # A share in the very middle of two levels may become either.
        assert (error > 1e-5).float().mean() < 0.02
        assert error.max() <= 2 * max(steps[1]) * v.abs().max()
        assert (native.attention(q, k, v, masked) - exact).abs().mean() > 10 * error.mean()


def test_rounded_shares_of_a_query_that_sees_no_key_are_zeros(isa):
    if not native.has_attention(torch.float32):
        pytest.skip("there is no such kernel")
    q, k, v = torch.randn(3, 1, 1, 30, 16)
    mask = torch.ones(30, 30, dtype=torch.bool).index_fill(0, torch.tensor([4, 29]), False)
    found = by_shares(q, k, v, mask, [1e-4], [1 / 128])
    assert found.isfinite().all()
    assert [row for row in range(30) if not found[0, 0, row].any()] == [4, 29]


def test_equal_shares_become_the_nearest_level(isa):
    if not native.has_attention(torch.float32):
        pytest.skip("there is no such kernel")
    for keys in (1, 2, 3, 50, 128, 129, 300, 1000):
        zeros, ones = torch.zeros(1, 1, 4, 16), torch.ones(1, 1, keys, 16)
        share = two_regions(
            torch.tensor([1 / keys]), torch.tensor(1e-4), torch.tensor(1 / 128),
            Spec.parse("uint8/tensor/fp32"), "unit",
        )  # fmt: skip
        y = by_shares(zeros, 0 * ones, ones, None, [1e-4], [1 / 128])
        torch.testing.assert_close(y, (share * keys).expand_as(y), rtol=1e-5, atol=0)


def test_rounded_shares_of_a_lost_row_are_lost_and_of_no_other(isa):
    if not native.has_attention(torch.float32):
        pytest.skip("there is no such kernel")
    q, k, v = torch.randn(3, 1, 1, 30, 16)
    q[0, 0, 7, 3] = torch.nan
    lost = by_shares(q, k, v, None, [1e-4], [1 / 128]).isnan().all(-1)
    assert lost.flatten().nonzero().flatten().tolist() == [7]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("images", "keys", "width"), [(1, 7, 16), (2, 300, 72), (2, 5, 9)])
def test_operands_become_whole_steps(isa, images, keys, width, dtype):
    if not native.has_attention(dtype):
        pytest.skip("there is no such kernel")
    q, k, v = (3 * torch.randn(3, 2, keys, 4, width)).to(dtype).transpose(2, 3)
    steps = torch.rand(3, images, 4) / 20 + 0.01
    rounding = OperandRounding(FORMATS["int8"], steps, None)
    found = native.attend(q, k, v, None, 0.3, rounding).float()
    by = steps.expand(-1, 2, -1)[..., None, None]
    q, k, v = (
        (x.float() / by[n]).round().clamp(-128, 127) * by[n] for n, x in enumerate((q, k, v))
    )
    exact = scaled_dot_product_attention(q, k, v, scale=0.3)
    assert (found - exact).abs().max() <= (2e-5 if dtype == torch.float32 else 0.02) * v.abs().max()


@pytest.mark.parametrize("name", ["int8", "int4", "e2m3", "e3m2", "e2m1"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("keys", "width"), [(7, 16), (300, 72), (5, 9)])
def test_operands_are_rounded_row_by_row(isa, keys, width, dtype, name):
    if not native.has_attention(dtype):
        pytest.skip("there is no such kernel")
    fmt = FORMATS[name]
    given = (3 * torch.randn(3, 2, keys, 4, width)).to(dtype).transpose(2, 3)
    if not fmt.exact_in(8):
        assert not native.has_rounding(OperandRounding(fmt, None, None), width)
        return
    found = native.attend(*given, None, 0.3, OperandRounding(fmt, None, None)).float()
    q, k, v = Spec(fmt).round(given.float().reshape(-1, width)).view(given.shape)
    exact = scaled_dot_product_attention(q, k, v, scale=0.3)
    bound = 2e-5 if dtype == torch.float32 else 0.03
    assert (found - exact).abs().max() <= bound * v.abs().max()


def test_an_operand_that_is_not_finite_does_not_look_like_a_number(isa):
    if not native.has_attention(torch.float32):
        pytest.skip("there is no such kernel")
    for steps in (torch.full((3, 1, 1), STEP), None):
        for operand in range(3):
            given = torch.randn(3, 1, 1, 6, 16)
            given[operand, 0, 0, 2, 5] = torch.inf
            found = native.attend(*given, None, None, OperandRounding(FORMATS["int8"], steps, None))
            assert found[0, 0, 2].isnan().any()


@pytest.mark.parametrize("steps", [(3, 1, 2), (3, 4, 3), (2, 1, 3)])
def test_steps_for_other_heads_are_refused(steps):
    q = torch.randn(2, 3, 4, 8)
    with pytest.raises(BadArgument, match="rounded natively to integers"):
        native.attend(
            q, q, q, None, None, OperandRounding(FORMATS["int4"], torch.ones(steps), None)
        )


@pytest.mark.parametrize("regions", [(3, 8), (1, 7)])
def test_regions_of_another_form_are_refused(regions):
    q, steps = torch.randn(2, 3, 4, 8), torch.ones(3, 1, 3)
    with pytest.raises(BadArgument, match="regions"):
        native.attend(
            q, q, q, None, None, OperandRounding(FORMATS["int4"], steps, torch.ones(regions))
        )


def test_zero_sizes_give_empty_results(isa):
    fmt = FORMATS["e2m1"]
    packed = native.pack_codes(torch.zeros(5, 16, dtype=torch.uint8), fmt)
    codes, scales = native.quantize_rows(torch.zeros(0, 16), fmt)
    assert native.linear(codes, scales, packed, torch.ones(5, 1)).shape == (0, 5)
    assert native.float_linear(torch.zeros(0, 16), packed, torch.ones(5, 1)).shape == (0, 5)
    narrow, bias = native.pack_codes(torch.zeros(5, 0, dtype=torch.uint8), fmt), torch.ones(5)
    for m in (3, 9):
        x, vectors = torch.zeros(m, 0), torch.zeros(5, 0, dtype=torch.uint8)
        y = native.float_linear(x, narrow, torch.ones(5, 1), bias)
        assert torch.equal(y, torch.ones(m, 5))
        y = native.vector_linear(x, vectors, torch.zeros(3, 4), None, bias)
        assert torch.equal(y, torch.ones(m, 5))
    none = native.pack_codes(torch.zeros(0, 16, dtype=torch.uint8), fmt)
    codes, scales = native.quantize_rows(torch.zeros(4, 16), fmt)
    assert native.linear(codes, scales, none, torch.ones(0, 1)).shape == (4, 0)
    q = torch.zeros(2, 3, 0, 8)
    assert native.attention(q, q, q).shape == q.shape


def test_strided_inputs(isa):
    fmt, x = FORMATS["e2m1"], torch.randn(40, 30).T
    codes, scales = native.quantize_rows(x, fmt)
    assert torch.equal(codes, quantized(x.contiguous(), fmt)[0])
    weight = torch.randint(-8, 8, (40, 70), dtype=torch.int8).T
    y = native.linear(codes, scales, native.pack_levels(weight), torch.ones(70, 2)[:, :1])
    assert torch.equal(y, product(codes, weight) * scales)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 40), st.integers(1, 150), st.integers(1, 200), st.integers(0, 2**31),
    st.sampled_from(HERE),
)  # fmt: skip
def test_any_shape(m, n, k, seed, isa):
    native.functions().fewbit_choose(isa.encode())
    generator = torch.Generator().manual_seed(seed)
    fmt = FORMATS[FP4[seed % 3]]
    codes = torch.randint(0, 16, (n, k), dtype=torch.uint8, generator=generator)
    x, scales = native.quantize_rows(torch.randn(m, k, generator=generator), fmt)
    packed = native.pack_codes(codes, fmt)
    y = native.linear(x, scales, packed, torch.ones(n, 1))
    native.functions().fewbit_choose(native.isa().encode())
    assert torch.equal(y, product(x, levels(codes, fmt)) * scales)
    assert torch.equal(native.unpack(packed), codes)


def test_bad_arguments_are_named():
    fmt = FORMATS["e2m1"]
    x, packed = torch.zeros(2, 16), native.pack_codes(torch.zeros(5, 16, dtype=torch.uint8), fmt)
    codes, scales = native.quantize_rows(x, fmt)
    with pytest.raises(BadArgument, match="another shape"):
        native.linear(codes, scales, packed, torch.ones(6, 1))
    with pytest.raises(BadArgument, match="not made by"):
        native.unpack(packed[:-1])
    with pytest.raises(BadArgument, match="not made by"):
        native.unpack(torch.zeros(500, dtype=torch.uint8))
    with pytest.raises(BadArgument, match=r"float32 and bfloat16, got torch\.float64"):
        native.quantize_rows(x.double(), fmt)
    with pytest.raises(BadArgument, match="no native kernel"):
        native.quantize_rows(x, FORMATS["e4m3"])
    with pytest.raises(BadArgument, match=r"2 rows need scales \[2, 1\]"):
        native.linear(codes, scales.expand(2, 3), packed, torch.ones(5, 1))
    with pytest.raises(BadArgument, match="multiples of 8"):
        native.linear(codes, scales, packed, torch.ones(5, 4))
    with pytest.raises(BadArgument, match="int8"):
        native.linear(codes.float(), scales, packed, torch.ones(5, 1))
    with pytest.raises(BadArgument, match="beyond"):
        native.quantize_rows(torch.zeros(1).expand(2**16, 2**16), fmt)
    many = torch.zeros(1, 1, dtype=torch.int8).expand(2**28, 16)
    with pytest.raises(BadArgument, match="beyond"):
        native.linear(many, torch.ones(1, 1).expand(2**28, 1), packed, torch.ones(5, 1))
    with pytest.raises(BadArgument, match="beyond"):
        native.float_linear(torch.zeros(1, 1).expand(2**28, 16), packed, torch.ones(5, 1))
    for gate, residual in (((2, 4), (2, 5)), ((3, 5), (2, 5)), ((1, 5), (3, 5)), ((0, 5), (2, 5))):
        given = {"gate": torch.ones(gate), "residual": torch.ones(residual)}
        with pytest.raises(BadArgument, match="is gated by"):
            native.linear(codes, scales, packed, torch.ones(5, 1), **given)
    with pytest.raises(BadArgument, match="as many biases"):
        native.linear(codes, scales, packed, torch.ones(5, 1), torch.ones(4))
    vectors = torch.zeros(5, 4, dtype=torch.uint8)
    with pytest.raises(BadArgument, match="assignments are uint8"):
        native.vector_linear(x, vectors.to(torch.int8), torch.zeros(3, 4))
    with pytest.raises(BadArgument, match="as many scales"):
        native.vector_linear(x, vectors, torch.zeros(3, 4), torch.ones(1, 1))
    with pytest.raises(BadArgument, match="beyond the 3 entries"):
        native.vector_linear(x, torch.full((5, 4), 3, dtype=torch.uint8), torch.zeros(3, 4))


def test_compiles_into_one_graph():
    fmt = FORMATS["e2m1"]
    packed = native.pack_codes(torch.randint(0, 16, (24, 16), dtype=torch.uint8), fmt)
    scales, bias = torch.rand(24, 1), torch.rand(24)
    assignments, codebook = torch.randint(0, 7, (24, 4), dtype=torch.uint8), torch.randn(7, 4)

    def block(x: Tensor) -> Tensor:
        codes, by_row = native.quantize_rows(x, fmt)
        y = native.linear(codes, by_row, packed, scales, bias, gelu=True)
        z = native.float_linear(x, packed, scales, bias)
        z = z + native.vector_linear(x, assignments, codebook)
        q = (y + z).view(1, 2, -1, 8)
        return (
            native.attention(q, q, q)
            + native.layer_norm_modulate(x[None], x[:1], x[:1], 1e-6).sum()
        )

    x = torch.randn(6, 16)
    with torch.no_grad():
        compiled = torch.compile(block, fullgraph=True, backend="aot_eager")(x)
    assert torch.equal(compiled, block(x))


@pytest.fixture
def fresh_load() -> Iterator[None]:
    load.cache_clear()
    yield
    load.cache_clear()
    load()


def test_the_environment_picks_the_instruction_set(fresh_load, monkeypatch):
    monkeypatch.setenv("FEWBIT_ISA", "scalar")
    assert native.isa() == "scalar"
    load.cache_clear()
    monkeypatch.setenv("FEWBIT_ISA", "sse9")
    with pytest.raises(BadArgument, match="FEWBIT_ISA is 'sse9', which does not run here; allowed"):
        native.available()
    monkeypatch.delenv("FEWBIT_ISA")


def test_a_damaged_library_is_no_library(fresh_load, tmp_path, monkeypatch):
    damaged = tmp_path / "_native.so"
    with monkeypatch.context() as patch:
        patch.setattr("fewbit.kernels.native.library.FILE", damaged)
        assert "was not built" in native.why_not()
        for content in _damaged(FILE.read_bytes()):
            damaged.write_bytes(content)
            load.cache_clear()
            assert "cannot be loaded" in native.why_not()
        with pytest.raises(BadArgument, match=r"cannot run: _native\.so cannot be loaded"):
            native.pack_levels(torch.zeros(1, 1, dtype=torch.int8))


def test_a_library_with_other_structs_is_no_library(fresh_load, monkeypatch):
    monkeypatch.setattr("fewbit.kernels.native.library.sizeof", lambda task: 8)
    assert "belongs to another version" in native.why_not()


def _damaged(library: bytes) -> Iterator[bytes]:
    """What copies that were broken off leave behind, and files of other kinds."""
    yield from (
        library[:size] for size in (0, 3, 40, 64, 4096, len(library) // 2, len(library) - 1)
    )
    yield from (b"\x7fELF and no more", b"not a library at all")


THREADS = """
import os, torch
from fewbit.formats import FORMATS
from fewbit.kernels.native import ops as native
torch.set_num_threads(7)
assert native.threads() == 7
x, fmt = torch.randn(64, 256), FORMATS["e2m1"]
packed = native.pack_codes(torch.randint(0, 16, (512, 256), dtype=torch.uint8), fmt)
def work():
    codes, scales = native.quantize_rows(x, fmt)
    return native.linear(codes, scales, packed, torch.ones(512, 1))
many = work()
child = os.fork()
if child == 0:
    os._exit(0 if native.threads() == 1 and torch.equal(work(), many) else 1)
assert os.waitpid(child, 0)[1] == 0
torch.set_num_threads(1)
assert native.threads() == 1 and torch.equal(work(), many)
print("good")
"""


def test_threads_are_torchs_and_a_forked_child_does_not_wait_for_them():
    done = subprocess.run(
        [sys.executable, "-c", THREADS], capture_output=True, text=True, timeout=60,
        env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},
    )  # fmt: skip
    assert done.stdout.strip() == "good", done.stderr


@pytest.mark.parametrize("name", ["book4", "book2", "e2m1", "int4"])
@pytest.mark.parametrize(
    ("m", "n", "k", "group"), [(1, 1, 8, 8), (13, 150, 384, 64), (7, 64, 96, 24)]
)
def test_factors_are_multiplied_into_levels(isa, name, m, n, k, group):
    fmt = FORMATS[name]
    codes = torch.randint(0, 1 << fmt.bits, (n, k), dtype=torch.uint8)
    factors = torch.randint(1, 127 // fmt.integer_max + 1, (n, k // group), dtype=torch.uint8)
    weight = levels(codes, fmt) * factors.repeat_interleave(group, 1)
    weight_scales, bias, packed = torch.rand(n, 1), torch.randn(n), native.pack_codes(codes, fmt)
    for activation in ("book4", "int8"):
        x, scales = native.quantize_rows(torch.randn(m, k), FORMATS[activation])
        expected = product(x, weight) * scales * weight_scales.T + bias
        ours = native.linear(x, scales, packed, weight_scales, bias, factors=factors)
        assert torch.equal(ours, expected)
    assert torch.equal(native.unpack(packed), codes)


def test_the_largest_sums_with_factors_do_not_overflow(isa):
    fmt = FORMATS["book4"]
    codes = torch.tensor([[7], [8]], dtype=torch.uint8).expand(2, 20_000)  # 20 and -20
    factors = torch.full((2, 1), 6, dtype=torch.uint8)
    x = torch.full((1, 20_000), -128, dtype=torch.int8)
    one = torch.ones(2, 1)
    y = native.linear(x, one[:1], native.pack_codes(codes, fmt), one, factors=factors)
    assert y.tolist() == [[-128 * 120 * 20_000, 128 * 120 * 20_000]]


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((5, 3), torch.uint8), ((4, 1), torch.uint8), ((5, 0), torch.uint8), ((5, 1), torch.int32)],
)
def test_factors_that_do_not_fit_are_refused(shape, dtype):
    packed = native.pack_codes(torch.zeros(5, 16, dtype=torch.uint8), FORMATS["e2m1"])
    with pytest.raises(BadArgument, match="factors"):
        native.Linear(packed, torch.ones(5, 1), None, torch.ones(shape, dtype=dtype))
    wide = native.pack_levels(torch.zeros(5, 16, dtype=torch.int8))
    with pytest.raises(BadArgument, match="in 8 bits: factors"):
        native.Linear(wide, torch.ones(5, 1), None, torch.ones(5, 1, dtype=torch.uint8))
