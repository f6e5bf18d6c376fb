"""Every code of every format: what it means, and which values round to it."""

import math

import pytest
import torch
from torch import Tensor

from fewbit.formats import FORMATS, Format, Integer

ALL = pytest.mark.parametrize("fmt", FORMATS.values(), ids=str)


def all_codes(fmt: Format) -> Tensor:
    return torch.arange(1 << fmt.bits, dtype=torch.uint8)


def midpoints(fmt: Format) -> Tensor:
    levels = torch.tensor(fmt.levels, dtype=torch.float64)
    exact = (levels[1:] + levels[:-1]) / 2
    assert torch.equal(exact.float().double(), exact)  # so a tie is a float32 for all formats
    return exact.float()


def neighbours(values: Tensor) -> tuple[Tensor, Tensor]:
    end = torch.full_like(values, torch.inf)
    return torch.nextafter(values, -end), torch.nextafter(values, end)


@ALL
def test_every_code_comes_back_from_its_value(fmt):
    """But for codes that are no finite numbers: -0 keeps its sign, only inf saturates."""
    codes = all_codes(fmt)
    values = fmt.decode(codes)
    finite = values.isfinite()
    assert torch.equal(fmt.encode(values)[finite], codes[finite])
    assert values.dtype == torch.float32
    assert values.tolist() == pytest.approx(fmt.code_values(), rel=0, abs=0, nan_ok=True)


@ALL
def test_rounding_twice_is_rounding_once(fmt):
    values = torch.linspace(fmt.min * 1.5 - 1, fmt.max * 1.5, 4097)
    once = fmt.round(values)
    assert torch.equal(fmt.round(once), once)


@ALL
def test_between_two_levels_the_nearer_and_at_a_tie_the_even_code(fmt):
    middle = midpoints(fmt)
    below, above = neighbours(middle)
    levels = torch.tensor(fmt.levels)
    assert torch.equal(fmt.round(below), levels[:-1])
    assert torch.equal(fmt.round(above), levels[1:])
    codes = fmt.encode(middle)
    assert torch.all(codes % 2 == 0)
    tied = fmt.decode(codes)
    assert torch.all((tied == levels[:-1]) | (tied == levels[1:]))


@ALL
def test_beyond_the_ends_lies_the_end(fmt):
    beyond = torch.tensor([1.01, 1e6, 1e30, torch.inf])
    assert torch.all(fmt.round(beyond * fmt.max) == fmt.max)
    assert torch.all(fmt.round(beyond * (fmt.min or -1)) == fmt.min)


@ALL
def test_the_step_divides_every_level_and_integer_max_counts_them(fmt):
    multiples = [level / fmt.step for level in fmt.levels]
    assert all(m == int(m) for m in multiples)
    assert max(abs(m) for m in multiples) == fmt.integer_max


@pytest.mark.parametrize("fmt", [f for f in FORMATS.values() if isinstance(f, Integer)], ids=str)
def test_the_integer_shortcut_is_the_definition(fmt):
    middle = midpoints(fmt)
    special = torch.tensor([0.0, -0.0, 1e-30, -1e-30, torch.inf, -torch.inf])
    spread = torch.linspace(2 * fmt.min - 3, 2 * fmt.max + 3, 10_001)
    values = torch.cat([middle, *neighbours(middle), torch.tensor(fmt.levels), special, spread])
    assert torch.equal(fmt.encode(values), Format.encode(fmt, values))


@pytest.mark.parametrize(
    ("name", "dtype", "overflow"),
    [("e4m3", torch.float8_e4m3fn, 464.0), ("e5m2", torch.float8_e5m2, 61440.0)],
)
class TestAgainstTorch:
    def test_all_codes_mean_the_same(self, name, dtype, overflow):
        codes = all_codes(FORMATS[name])
        theirs, ours = codes.view(dtype).float(), FORMATS[name].decode(codes)
        finite = theirs.isfinite()
        assert torch.equal(finite, ours.isfinite())
        assert torch.equal(ours[finite].view(torch.int32), theirs[finite].view(torch.int32))
        assert torch.equal(ours.isinf(), theirs.isinf())

    def test_all_ties_and_their_neighbours_round_the_same(self, name, dtype, overflow):
        """Where torch does not overflow: beyond, it turns to NaN or inf and we saturate."""
        fmt = FORMATS[name]
        middle = midpoints(fmt)
        values = torch.cat([middle, *neighbours(middle), torch.tensor([-0.0, -1e-30])])
        assert torch.equal(fmt.encode(values), values.to(dtype).view(torch.uint8))
        edge = torch.nextafter(torch.tensor([overflow]), torch.zeros(1))
        assert torch.equal(fmt.encode(edge), edge.to(dtype).view(torch.uint8))
        assert fmt.round(2 * edge).item() == fmt.max

    def test_nan_is_their_nan(self, name, dtype, overflow):
        nan = torch.tensor([torch.nan])
        assert torch.equal(FORMATS[name].encode(nan), nan.to(dtype).view(torch.uint8))
        assert FORMATS[name].round(nan).isnan().all()


# OCP Microscaling Formats v1.0, section 5.3; the positive half in the order of the codes.
OCP = {
    "e2m1": [0, 0.5, 1, 1.5, 2, 3, 4, 6],
    "e2m3": [
        *(0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875),
        *(1, 1.125, 1.25, 1.375, 1.5, 1.625, 1.75, 1.875),
        *(2, 2.25, 2.5, 2.75, 3, 3.25, 3.5, 3.75),
        *(4, 4.5, 5, 5.5, 6, 6.5, 7, 7.5),
    ],
    "e3m2": [
        *(0, 0.0625, 0.125, 0.1875, 0.25, 0.3125, 0.375, 0.4375),
        *(0.5, 0.625, 0.75, 0.875, 1, 1.25, 1.5, 1.75),
        *(2, 2.5, 3, 3.5, 4, 5, 6, 7),
        *(8, 10, 12, 14, 16, 20, 24, 28),
    ],
}


@pytest.mark.parametrize("name", OCP)
def test_the_published_tables_of_ocp_mx(name):
    values = FORMATS[name].decode(all_codes(FORMATS[name])).tolist()
    assert values == [*OCP[name], *(-value for value in OCP[name])]
    assert math.copysign(1, values[len(values) // 2]) == -1  # the code after the largest is -0


@pytest.mark.parametrize(
    ("name", "levels"),
    [
        ("int2", [-2, -1, 0, 1]),
        ("uint2", [0, 1, 2, 3]),
        ("int3", [-4, -3, -2, -1, 0, 1, 2, 3]),
        ("e1m2", [-3.5, -3, -2.5, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5]),
        ("e3m0", [-16, -8, -4, -2, -1, -0.5, -0.25, 0, 0.25, 0.5, 1, 2, 4, 8, 16]),
    ],
)
def test_the_levels_of_our_own_formats(name, levels):
    assert list(FORMATS[name].levels) == levels


@pytest.mark.parametrize(
    ("name", "largest", "smallest"),
    [("e3m4", 31, 2**-6), ("e4m3", 448, 2**-9), ("e5m2", 57344, 2**-16)],
)
def test_the_ends_of_the_8_bit_floats(name, largest, smallest):
    assert (FORMATS[name].max, FORMATS[name].step) == (largest, smallest)


@pytest.mark.parametrize(
    ("name", "step", "integers", "int8"),
    [
        ("e2m1", 2**-1, 12, True),
        ("e1m2", 2**-1, 7, True),
        ("e3m0", 2**-2, 64, True),
        ("e2m3", 2**-3, 60, True),
        ("e3m2", 2**-4, 448, False),
        ("e4m3", 2**-9, 229376, False),
        ("int6", 1, 32, True),
        ("int8", 1, 128, True),
        ("uint8", 1, 255, False),
    ],
)
def test_as_exact_integers(name, step, integers, int8):
    """The table of what fits an int8 multiplier."""
    fmt = FORMATS[name]
    assert (fmt.step, fmt.integer_max, fmt.exact_in(8)) == (step, integers, int8)


def test_the_library_holds_what_is_promised():
    promised = {f"{sign}int{bits}" for sign in ("", "u") for bits in range(2, 9)}
    promised |= {"e2m1", "e1m2", "e3m0", "e2m3", "e3m2", "e3m4", "e4m3", "e5m2"}
    assert promised <= FORMATS.keys()
    assert all(name == str(fmt) for name, fmt in FORMATS.items())


def test_a_format_is_a_value():
    assert Integer(4) == FORMATS["int4"] == FORMATS["int4"]
    assert hash(Integer(4)) == hash(FORMATS["int4"])
    assert Integer(4) != Integer(4, unsigned=True)


def test_any_layout_of_the_values_will_do(recwarn):
    values = torch.randn(6, 4).T
    for fmt in FORMATS.values():
        assert torch.equal(fmt.encode(values), fmt.encode(values.contiguous()))
    assert not recwarn
