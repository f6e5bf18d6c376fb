"""Codes in bytes: the literal layout, the way back, and not one byte too many."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fewbit.formats.pack import pack, packed_width, unpack

WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8)


@pytest.mark.parametrize(
    ("bits", "codes", "expected"),
    [
        (2, [1, 2, 3, 0, 3], "39 03"),  # 00 11 10 01 | 11
        (3, [1, 2, 3, 4, 5, 6, 7, 0, 7], "d1 58 1f 07"),
        (4, [0x1, 0x2, 0xF], "21 0f"),
        (5, [1, 2, 3, 4, 5, 6, 7, 31], "41 0c 52 cc f9"),
        (6, [1, 2, 3, 63], "81 30 fc"),
        (8, [1, 2, 255], "01 02 ff"),
    ],
)
def test_the_bytes(bits, codes, expected):
    packed = pack(torch.tensor([codes], dtype=torch.uint8), bits)
    assert bytes(packed[0].tolist()).hex(" ") == expected


@given(
    bits=st.sampled_from(WIDTHS),
    rows=st.integers(0, 3),
    columns=st.integers(1, 70),
    seed=st.integers(0, 99),
)
def test_unpack_undoes_pack(bits, rows, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(1 << bits, (rows, columns), dtype=torch.uint8, generator=generator)
    packed = pack(codes, bits)
    assert packed.shape == (rows, packed_width(columns, bits))
    assert torch.equal(unpack(packed, bits, columns), codes)


@pytest.mark.parametrize("bits", WIDTHS)
def test_a_row_wastes_less_than_a_byte(bits):
    for columns in range(1, 71):
        assert 0 <= 8 * packed_width(columns, bits) - columns * bits < 8


@pytest.mark.parametrize("bits", WIDTHS)
def test_more_dimensions_and_any_layout(bits):
    codes = torch.arange(24).view(2, 3, 4).transpose(0, 2) % (1 << bits)
    codes = codes.to(torch.uint8)
    assert torch.equal(unpack(pack(codes, bits), bits, 2), codes)
