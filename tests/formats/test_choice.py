"""A format per row: every row is coded as its own option codes it."""

import pytest
import torch

from fewbit.errors import BadArgument
from fewbit.formats import FORMATS, FormatChoice, QTensor, Scales, Spec

NAMES = ("e3m0", "e2m1", "e1m2")
OPTIONS = tuple(FORMATS[name] for name in NAMES)
SPEC = Spec(FormatChoice(OPTIONS))


def scales(matrix, choices):
    parts = [Spec(OPTIONS[c]).fit(row[None]).stored for c, row in zip(choices, matrix, strict=True)]
    return Scales(torch.cat(parts), choices=torch.tensor(choices, dtype=torch.uint8)[:, None])


def test_every_row_by_its_own_option():
    matrix = torch.randn(6, 40, generator=torch.Generator().manual_seed(0))
    choices = [0, 1, 2, 2, 1, 0]
    fitted = scales(matrix, choices)
    packed = QTensor.quantize(matrix, SPEC, fitted)
    for row, choice in enumerate(choices):
        alone = Spec(OPTIONS[choice])
        assert torch.equal(packed.dequantize()[row], alone.round(matrix[[row]])[0])
        assert torch.equal(
            packed.codes()[[row]], alone.encode(matrix[[row]], alone.fit(matrix[[row]]))
        )
    assert torch.equal(SPEC.round(matrix, fitted), packed.dequantize())


@pytest.mark.parametrize("choice", range(3))
def test_every_code_of_every_option(choice):
    codes = torch.arange(16, dtype=torch.uint8)[None]
    decoded = SPEC.format.decode_rows(
        codes, Scales(torch.ones(1, 1), choices=torch.tensor([[choice]]))
    )
    assert torch.equal(decoded, OPTIONS[choice].decode(codes))


def test_it_has_a_name_that_is_read_back():
    assert str(SPEC) == "e3m0|e2m1|e1m2/row/fp32"
    assert Spec.parse(str(SPEC)) == SPEC


@pytest.mark.parametrize("mixed", ["e2m1|int8", "int4|uint4", "e2m1|e9m9", "e2m1|", "|"])
def test_options_of_one_width_and_sign(mixed):
    with pytest.raises(BadArgument, match="not a number format"):
        Spec.parse(f"{mixed}/row/fp32")


def test_bytes_count_the_choices():
    matrix = torch.randn(6, 40)
    packed = QTensor.quantize(matrix, SPEC, scales(matrix, [0] * 6))
    assert packed.nbytes == SPEC.bytes(6, 40) == 6 * 20 + 6 * 4 + 6
