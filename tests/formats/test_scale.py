"""How scales are stored: the OCP rule with literal blocks, NVFP4 by hand, and the far ends."""

import pytest
import torch

from fewbit.formats import FORMATS, MXFP4, NVFP4, SCALES, Spec

E8M0 = SCALES["e8m0"]
ALL_SPECS = [
    f"{fmt}/{span}/{scale}"
    for fmt in ("e2m1", "uint4", "int8")
    for span in ("row", "g4", "tensor")
    for scale in SCALES
    if scale != "table"  # which is of a table alone
    if scale != "factor" or (fmt != "int8" and span != "tensor")
]


@pytest.mark.parametrize("byte", range(255))
def test_every_e8m0_byte_is_its_exponent_plus_127(byte):
    stored = torch.tensor([byte], dtype=torch.uint8)
    value = E8M0.load(stored)
    assert value.item() == 2.0 ** (byte - 127)
    assert E8M0.store(value).item() == byte


def test_byte_255_of_e8m0_is_nan_both_ways():
    assert E8M0.load(torch.tensor([255], dtype=torch.uint8)).isnan().all()
    assert E8M0.store(torch.tensor([torch.nan])).item() == 255


@pytest.mark.parametrize("name", ["e8m0", "e4m3", "e4m3row"])
@pytest.mark.parametrize("byte", range(256))
def test_sound_bytes_are_those_of_positive_finite_scales(name, byte):
    scale = SCALES[name]
    stored, outer = torch.tensor([[byte]], dtype=torch.uint8).view(scale.dtype), torch.ones(1, 1)
    value = scale.load(stored, outer)
    assert scale.sound(stored, outer) == bool(value.isfinite() and value > 0)


@pytest.mark.parametrize("name", ["fp32", "fp16", "bf16"])
def test_sound_floats_are_positive_and_finite(name):
    scale = SCALES[name]
    for value in (0.0, -0.0, -1.0, torch.inf, torch.nan):
        assert not scale.sound(torch.tensor([[1.0, value]]).to(scale.dtype))
    assert scale.sound(torch.tensor([[1.0, 2.0**-14]]).to(scale.dtype))


@pytest.mark.parametrize("outer", [0.0, -1.0, torch.inf, torch.nan, 1e38, 1e-45])
def test_an_outer_scale_that_makes_no_scale(outer):
    stored = torch.ones(1, 1).to(torch.float8_e4m3fn)
    assert not SCALES["e4m3"].sound(stored, torch.tensor([[outer]]))


@pytest.mark.parametrize(
    ("name", "absmax", "exponent"),
    [
        ("e2m1", 6.0, 0),  # floor(log2 6) - emax = 2 - 2
        ("e2m1", 4.0, 0),
        ("e2m1", 3.999, -1),
        ("e2m1", 7.999, 0),  # and what lies beyond 6 saturates
        ("e2m1", 0.75, -3),
        ("e2m3", 7.5, 0),
        ("e3m2", 28.0, 0),
        ("e3m2", 32.0, 1),
        ("e4m3", 448.0, 0),
        ("e5m2", 57344.0, 0),
        ("int8", 127.0, 0),  # MXINT8 counts in 1/64: 2^(floor(log2 absmax) - 6) per integer step
        ("e2m1", 2.0**-126, -127),  # no byte is smaller
        ("e2m1", 0.0, 0),
    ],
)
def test_the_mx_rule(name, absmax, exponent):
    scale = E8M0.from_absmax(torch.tensor([absmax]), FORMATS[name].max)
    assert scale.item() == 2.0**exponent


def test_an_mxfp4_block_by_hand():
    block = torch.zeros(1, 32)
    block[0, :8] = torch.tensor([9.0, -5.0, 2.5, 1.0, 0.9, 0.6, 0.5, -0.4])
    scales = MXFP4.fit(block)
    assert scales.stored.tolist() == [[128]]  # 2^(3 - 2) = 2
    codes = MXFP4.encode(block, scales)
    assert codes[0, :8].tolist() == [6, 8 + 4, 2, 1, 1, 1, 0, 8]  # 4.5 -> 4, 2.5 -> 2, .25 -> 0
    expected = [8.0, -4.0, 2.0, 1.0, 1.0, 1.0, 0.0, -0.0]
    assert MXFP4.decode(codes, scales)[0, :8].tolist() == expected


def test_an_nvfp4_matrix_by_hand():
    matrix = torch.zeros(1, 32)
    matrix[0, :3] = torch.tensor([2688.0, 1344.0, -448.0])  # 2688 = 6 * 448
    matrix[0, 16:19] = torch.tensor([60.0, 30.0, 6.0])
    scales = NVFP4.fit(matrix)
    assert scales.outer is not None
    assert scales.outer.tolist() == [[1.0]]
    assert scales.stored.dtype == torch.float8_e4m3fn
    assert scales.stored.float().tolist() == [[448.0, 10.0]]
    rounded = NVFP4.round(matrix)
    assert rounded[0, :3].tolist() == [2688.0, 1344.0, -448.0]
    assert rounded[0, 16:19].tolist() == [60.0, 30.0, 5.0]  # 6 / 10 -> 0.5


def test_the_outer_scale_of_nvfp4_puts_the_largest_scale_on_448():
    matrix = torch.tensor([[0.06] * 16, [0.6] * 16])
    scales = NVFP4.fit(matrix)
    assert scales.outer is not None
    assert scales.stored.float().amax() == 448
    assert scales.outer.item() == pytest.approx(0.6 / 6 / 448, rel=1e-6)


def test_a_group_of_zeros_has_no_say_in_the_outer_scale():
    small = torch.randn(1, 16, generator=torch.Generator().manual_seed(0)) * 1e-5
    with_zeros = torch.cat([small, torch.zeros(1, 16)], 1)
    assert torch.equal(NVFP4.round(with_zeros)[:, :16], NVFP4.round(small))


@pytest.mark.parametrize("span", ["tensor", "row"])
def test_what_one_outer_scale_spans(span):
    spec = Spec.parse(f"e2m1/g16/e4m3{'' if span == 'tensor' else 'row'}")
    outer = spec.fit(torch.tensor([[1.0] * 32, [100.0] * 32])).outer
    assert outer is not None
    expected = [100 / 6 / 448] if span == "tensor" else [1 / 6 / 448, 100 / 6 / 448]
    assert outer[:, 0].tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("text", ALL_SPECS)
class TestFarEnds:
    def test_zeros_stay_zero(self, text):
        assert Spec.parse(text).round(torch.zeros(2, 8)).eq(0).all()

    @pytest.mark.parametrize("size", [1e-45, 1e-40, 1.2e-38, 1e-36, 1e-30])
    def test_the_smallest_numbers_stay_finite_and_small(self, text, size):
        matrix = torch.tensor([[size, -size, 0, size / 2, 0, 0, 0, 0], [0.0] * 8])
        rounded = Spec.parse(text).round(matrix)
        assert rounded.isfinite().all()
        assert rounded.abs().max() <= 2 * size
        assert rounded[1].eq(0).all()

    @pytest.mark.parametrize("lost", [torch.nan, torch.inf, -torch.inf])
    def test_what_is_no_number_makes_its_group_nan(self, text, lost):
        matrix = torch.ones(1, 8)
        matrix[0, 2] = lost
        rounded = Spec.parse(text).round(matrix)
        assert rounded[0, :4].isnan().all()

    def test_large_and_small_groups_beside_each_other(self, text):
        """A scale 2^-9 times the smallest outer scale still has a finite reciprocal."""
        matrix = torch.tensor([[1e-34] * 4 + [1e-42, 0, 0, 1e-42]])
        assert Spec.parse(text).round(matrix).isfinite().all()


def test_only_the_row_that_lost_its_numbers_is_lost():
    matrix = torch.ones(3, 8)
    matrix[1, 0] = torch.nan
    for text in ("e2m1/row/fp32", "e2m1/g4/e4m3row", "e2m1/g4/e8m0", "uint8/row/fp16"):
        lost = Spec.parse(text).round(matrix).isnan().any(1)
        assert lost.tolist() == [False, True, False]


def test_fp16_scales_serve_small_weights():
    """Eight bits of a row of 1e-3 need scales of 8e-6, subnormal in fp16: its 2^-24 step moves
    them by at most 0.4 %, so the error is at most half a step plus 0.4 % of the value."""
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(0)).clamp(-1, 1) * 1e-3
    error = (Spec.parse("int8/row/fp16").round(weight) - weight).abs()
    assert error.max() <= 1e-3 * (0.5 / 127 + 0.004) * 1.01
