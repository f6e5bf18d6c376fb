"""Which few small integers serve a normal distribution best?   python studies/books.py

A book has n positive levels, their negatives, and no zero. Every set of integers up to a largest
one whose gaps do not shrink outwards is tried, at its own best scale. The book is made of the
smallest integers that come within 0.1 dB of Lloyd and Max, whose levels are any numbers: then
products stay narrow, and the factor of a group has room below 127.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import combinations, count, pairwise

import torch
from demo import write_table
from torch import Tensor

NEAR = 0.1  # dB
LEVELS = (2, 4, 8)  # positive ones
TOPS = torch.linspace(1.3, 3.2, 96, dtype=torch.float64).tolist()  # where a largest level may lie


def cells(levels: Tensor) -> tuple[Tensor, Tensor]:
    """Probability and first moment of what rounds to each of the levels [..., n], float64, of the
    positive half of a normal distribution."""
    inner = (levels[..., 1:] + levels[..., :-1]) / 2
    ends = torch.zeros_like(levels[..., :1]), torch.full_like(levels[..., :1], torch.inf)
    edges = torch.cat([ends[0], inner, ends[1]], -1)
    below, density = torch.special.ndtr(edges), (-edges.square() / 2).exp() / math.tau**0.5
    return below.diff(dim=-1), -density.diff(dim=-1)


def decibel(levels: Tensor) -> Tensor:
    """The ratio of signal to rounding error."""
    mass, moment = cells(levels)
    error = 1 - 2 * (2 * levels * moment - levels.square() * mass).sum(-1)
    return -10 * error.log10()


def at_best_scale(books: Tensor) -> Tensor:
    """The dB of each book [n, levels] at the best place of its largest level."""
    return torch.stack([decibel(books / books[:, -1:] * top) for top in TOPS]).amax(0)


def lloyd_max(n: int) -> Tensor:
    levels = (torch.arange(n, dtype=torch.float64) + 0.5) * 3 / n
    for _ in range(2000):
        mass, moment = cells(levels)
        levels = moment / mass
    return levels


def rising(largest: int, n: int) -> Iterator[tuple[int, ...]]:
    """All sets of n levels up to this one that lie no closer together further out."""
    for rest in combinations(range(1, largest), n - 1):
        book = (*rest, largest)
        gaps = [above - below for below, above in pairwise(book)]
        if gaps == sorted(gaps):
            yield book


def best_with(largest: int, n: int) -> tuple[tuple[int, ...], float]:
    """The best book of n levels up to this one, and its dB."""
    books = list(rising(largest, n))
    found = at_best_scale(torch.tensor(books, dtype=torch.float64))
    return books[int(found.argmax())], float(found.max())


def smallest_book(n: int) -> tuple[int, ...]:
    enough = float(decibel(lloyd_max(n))) - NEAR
    best = (best_with(largest, n) for largest in count(n))
    return next(book for book, found in best if found >= enough)


def main() -> None:
    rows = []
    for n in LEVELS:
        chosen = smallest_book(n)
        for largest in range(max(chosen[-1] - 2, n), chosen[-1] + 3):
            book, found = best_with(largest, n)
            shown = ", ".join(map(str, book))
            title = f"{shown}: book{n.bit_length()}" if book == chosen else shown
            rows.append((title, found, 127 // largest))
        rows.append((f"any {n} numbers (Lloyd-Max)", float(decibel(lloyd_max(n))), "none"))
    write_table(
        "books",
        "Books of small integers",
        "Rounding a normal distribution at the best scale. The best set for each largest level; "
        f"the first that comes within {NEAR} dB of Lloyd and Max is the book. A group of weights "
        "may have a factor so large that its product with a level is at most 127.",
        ("positive levels", "SQNR, dB", "largest factor"),
        rows,
        plotted=("SQNR, dB",),
    )


if __name__ == "__main__":
    main()
