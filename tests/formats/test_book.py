"""Books of small integers: literal levels and codes, the search that found them, rows of zeros."""

import importlib
from pathlib import Path

import pytest
import torch

from fewbit.formats import FORMATS, SCALES, QTensor, Spec
from fewbit.formats.book import Book

STUDIES = Path(__file__).parents[2] / "studies"
POSITIVE = {"book2": (1, 3), "book3": (1, 3, 5, 8), "book4": (1, 3, 5, 7, 9, 12, 15, 20)}
ALL = pytest.mark.parametrize("name", POSITIVE)


@ALL
def test_the_levels_and_their_codes(name):
    book, positive = FORMATS[name], POSITIVE[name]
    negative = [-level for level in reversed(positive)]
    assert book.code_values() == (*positive, *negative)
    assert book.levels == (*negative, *positive)
    assert (1 << book.bits, book.step, book.integer_max) == (2 * len(positive), 1, positive[-1])


@ALL
def test_the_complement_of_a_code_is_the_negative_level(name):
    codes = torch.arange(1 << FORMATS[name].bits, dtype=torch.uint8)
    assert torch.equal(FORMATS[name].decode(codes), -FORMATS[name].decode(codes.flip(0)))


@ALL
def test_products_of_two_fit_the_pairs_of_int16(name):
    """As AVX2 sums them: a code of a magnitude times a byte, which is a level plus its offset."""
    assert 2 * 2 * FORMATS[name].integer_max * 127 < 1 << 15


def test_literal_bytes():
    packed = QTensor.quantize(
        torch.tensor([[20.0, -20, 1, -1, 0, 10.5, -10.5, 4]]), Spec(FORMATS["book4"])
    )
    assert packed.scales.stored.item() == 1
    assert packed.codes().tolist() == [[7, 8, 0, 15, 0, 4, 10, 2]]  # ties to even codes
    assert packed.packed.tolist() == [[0x87, 0xF0, 0x40, 0x2A]]


@ALL
def test_it_is_what_the_study_finds(name, monkeypatch):
    monkeypatch.syspath_prepend(STUDIES)
    study = importlib.import_module("books")
    assert study.smallest_book(len(POSITIVE[name])) == POSITIVE[name]


def test_no_set_of_integers_up_to_20_is_better(monkeypatch):
    """Neither are its neighbours, whose gaps may shrink: one level moved by one."""
    monkeypatch.syspath_prepend(STUDIES)
    study = importlib.import_module("books")
    book = POSITIVE["book4"]
    moved = {(*book[:at], book[at] + by, *book[at + 1 :]) for at in range(7) for by in (-1, 1)}
    near = [one for one in moved if list(one) == sorted(set(one)) and one[0]]
    found = study.at_best_scale(torch.tensor([book, *near], dtype=torch.float64))
    assert found[0] > found[1:].max()


@ALL
@pytest.mark.parametrize("scale", [name for name in SCALES if name != "table"])
def test_a_matrix_of_zeros_is_nearly_zero(name, scale):
    """Zero is no level: the smallest scale there is makes it negligible beside any weight."""
    rounded = Spec(FORMATS[name], 4, SCALES[scale]).round(torch.zeros(2, 8))
    assert rounded.abs().max() < 1e-6


def test_formats_that_have_a_zero_keep_the_scale_of_zeros():
    for fmt in FORMATS.values():
        assert (fmt.zero_scale == 1) == (0.0 in fmt.levels) == (not isinstance(fmt, Book))


@ALL
def test_a_normal_distribution_is_rounded_as_well_as_the_study_says(name):
    """To 0.15 dB with the best scale of each row of 4096 values."""
    x = torch.randn(16, 4096, generator=torch.Generator().manual_seed(0))
    book, best = FORMATS[name], torch.inf
    for top in torch.linspace(1.3, 3.2, 40):
        scale = float(top) / book.max
        best = min(best, float((book.round(x / scale) * scale - x).square().mean()))
    promised = {"book2": 9.25, "book3": 14.57, "book4": 20.14}
    assert -10 * torch.tensor(best).log10().item() == pytest.approx(promised[name], abs=0.15)


@ALL
def test_rounding_by_the_table_is_the_definition(name):
    book = FORMATS[name]
    ties = torch.arange(-100, 101) / 4
    far = torch.tensor([torch.inf, -torch.inf, 3e38, 1e-45, -0.0])
    random = 10 * torch.randn(2, 5000, generator=torch.Generator().manual_seed(0))
    lower, upper = torch.nextafter(ties, ties - 1), torch.nextafter(ties, ties + 1)
    for values in (ties, lower, upper, far, random, random.bfloat16()):
        assert torch.equal(book.round(values), book.decode(book.encode(values)))
    assert book.round(torch.tensor([torch.nan])).item() in book.levels
