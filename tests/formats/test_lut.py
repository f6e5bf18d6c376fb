"""The table of 16 levels: by hand, the law that a row is one of int8, and the way to files."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbit.errors import BadArgument
from fewbit.formats import LUT16, QTensor, Scales, Spec, format_named
from fewbit.formats.lut import NORMAL
from fewbit.kernels.values import Weight, has_integers

SPEC = Spec.parse("lut16/g16/table")


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_its_name_is_known_and_goes_with_one_scale_alone():
    assert format_named("lut16") is LUT16
    assert str(SPEC) == "lut16/g16/table"
    for text in ("lut16/g16/fp32", "lut16/tensor/table", "int4/g16/table", "e2m1/row/table"):
        with pytest.raises(BadArgument, match=r"is no format: lut16 has the scale table"):
            Spec.parse(text)


def test_by_hand():
    table = torch.arange(-8.0, 8.0)[:, None]
    stored = torch.tensor([[1.5, 20.0]]).to(torch.float8_e4m3fn)
    scales = Scales(stored, torch.tensor([[0.5]]), codebook=table)
    spec = Spec.parse("lut16/g2/table")
    codes = torch.tensor([[9, 0, 15, 1]], dtype=torch.uint8)
    # 1 * 1.5 = 1.5 -> 2, -8 * 1.5 = -12, 7 * 20 = 140 -> 127, -7 * 20 = -140 -> -127
    assert spec.decode(codes, scales).tolist() == [[1.0, -6.0, 63.5, -63.5]]
    # 1 lies between 0 and 2: the lower; -2.1 is nearest to -3 and -1.5 -> -2
    given = torch.tensor([[0.5, -1.1, 9.0, -99.0]])
    assert spec.decode(spec.encode(given, scales), scales).tolist() == [[0.0, -1.0, 10.0, -63.5]]


def test_a_table_in_any_order_is_the_same():
    matrix = normal(3, 32)
    scales, mixed = SPEC.fit(matrix), torch.randperm(16, generator=torch.Generator().manual_seed(1))
    assert scales.codebook is not None
    other = Scales(scales.stored, scales.outer, codebook=scales.codebook[mixed])
    assert torch.equal(SPEC.round(matrix, other), SPEC.round(matrix, scales))
    assert not torch.equal(SPEC.encode(matrix, other), SPEC.encode(matrix, scales))


@settings(max_examples=100, deadline=None)
@given(
    rows=st.integers(1, 5),
    groups=st.integers(1, 6),
    width=st.sampled_from([1, 4, 16]),
    seed=st.integers(0, 999),
    spread=st.floats(0, 12),
)
def test_a_row_is_one_of_int8_with_one_scale(rows, groups, width, seed, spread):
    """Bit for bit, and every value is the nearest of what its group can be."""
    loud = (normal(rows, groups, 1, seed=seed + 1) * spread).exp2()
    matrix = (normal(rows, groups, width, seed=seed) * loud).flatten(1)
    spec = Spec.parse(f"lut16/g{width}/table")
    packed = QTensor.quantize(matrix, spec)
    weight = Weight(packed)
    assert has_integers(spec)
    assert weight.integer_scales().shape == (rows, 1)
    values = weight.integers().float() * weight.integer_scales()
    assert torch.equal(values, packed.dequantize())
    assert torch.equal(values, spec.round(matrix, packed.scales))
    levels = [
        spec.decode(torch.full_like(packed.codes(), code), packed.scales) for code in range(16)
    ]
    least = (torch.stack(levels) - matrix).abs().amin(0)
    found = (values - matrix).abs()
    assert ((found - least) <= 1e-6 * matrix.abs().amax(1, keepdim=True)).all()


def test_rounding_at_the_same_scales_is_idempotent_whatever_the_loudness():
    for seed in range(20):
        matrix = normal(4, 64, seed=seed) * (normal(4, 64, seed=seed + 50) * 3).exp2()
        scales = SPEC.fit(matrix)
        once = SPEC.round(matrix, scales)
        assert torch.equal(SPEC.round(once, scales), once)


def test_a_matrix_of_zeros_and_rows_that_are_no_numbers():
    assert not SPEC.round(torch.zeros(2, 32)).any()
    matrix = normal(3, 32)
    matrix[1, 20] = torch.nan
    rounded = SPEC.round(matrix)
    assert rounded.isnan().any(1).tolist() == [False, True, False]


def test_bytes_are_codes_scales_and_one_table():
    packed = QTensor.quantize(normal(10, 256), SPEC)
    assert packed.nbytes == SPEC.bytes(10, 256) == 10 * (128 + 16 + 4) + 64
    assert {name: tuple(t.shape) for name, t in packed.tensors().items()} == {
        "codes": (10, 128),
        "scales": (10, 16),
        "outer_scales": (10, 1),
        "codebook": (16, 1),
    }


def test_the_levels_are_the_best_for_normal_groups():
    """Lloyd's condition: each level is the mean of what is rounded to it."""
    x = normal(1 << 16, 16)
    x = (x / x.abs().amax(1, keepdim=True)).flatten()
    table = torch.tensor(NORMAL)
    nearest = (x[:, None] - table).abs().argmin(1)
    means = torch.stack([x[nearest == code].mean() for code in range(16)])
    torch.testing.assert_close(means, table, rtol=0, atol=0.005)


def test_it_loses_less_than_other_four_bits():
    """On normal weights, at nearly the same bytes."""
    matrix, lost = normal(64, 512), {}
    for text in ("lut16/g16/table", "book4/g16/e4m3row", "e2m1/g16/e4m3row", "int4/g16/e4m3row"):
        lost[text] = float((Spec.parse(text).round(matrix) - matrix).square().mean())
    assert min(lost, key=lost.__getitem__) == "lut16/g16/table"


def test_an_input_has_no_store_for_a_table():
    from fewbit.activations.dynamic import Dynamic

    with pytest.raises(BadArgument, match="an input cannot be rounded to lut16"):
        Dynamic(SPEC)
