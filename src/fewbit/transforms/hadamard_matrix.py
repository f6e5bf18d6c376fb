"""Hadamard matrices by construction: Sylvester, Paley I and II, and their Kronecker products.

A matrix of ±1 whose rows are mutually orthogonal. Paley's first kind is not symmetric: a
matrix and its transpose must not be confused anywhere.
"""

from __future__ import annotations

from collections import Counter
from functools import cache, reduce
from itertools import combinations, groupby
from math import isqrt, prod

import torch
from torch import Tensor

DENSE_ORDERS = range(12, 257, 4)  # a larger one adds more per element than any width here needs
UNDIVIDED = 64  # up to here the bases stand in descending order
TOGETHER = 3  # bases of 2 that are applied as one matrix: it costs no more than its passes


@cache
def factors(order: int) -> tuple[int, ...] | None:
    """The orders whose Kronecker product has this order at the fewest adds per element.

    Descending, each 2 or one of Paley's; None where these constructions give no matrix.
    """
    if order <= 1:
        return () if order == 1 else None
    found = [
        tuple(sorted((base, *rest), reverse=True))
        for base in (2, *filter(_is_paley, DENSE_ORDERS))
        if order % base == 0 and (rest := factors(order // base)) is not None
    ]
    return min(found, key=lambda bases: (adds(bases), bases), default=None)


def adds(bases: tuple[int, ...]) -> int:
    """Adds per element when the bases are applied one after another."""
    return sum(1 if base == 2 else base for base in bases)


@cache
def halves(order: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The factors in two groups, one after another in H, their products as near as can be."""
    bases = factors(order)
    assert bases is not None
    if order <= UNDIVIDED:
        return (), bases
    groups = (g for count in range(len(bases)) for g in combinations(bases, count))
    left = max((g for g in groups if prod(g) <= isqrt(order)), key=prod)
    right = Counter(bases) - Counter(left)
    return left, tuple(right.elements())


def steps(order: int) -> list[tuple[int, ...]]:
    """The factors of H from left to right, grouped as they are applied: few by few."""
    found: list[tuple[int, ...]] = []
    for half in halves(order):
        for base, run in groupby(half):
            count = len(list(run))
            most = TOGETHER if base == 2 else 1
            found += [(base,) * min(most, count - at) for at in range(0, count, most)]
    return found


def kronecker(bases: tuple[int, ...]) -> Tensor:
    """H(bases[0]) ⊗ H(bases[1]) ⊗ …, as int8."""
    one = torch.ones(1, 1, dtype=torch.int8, device="cpu")
    return reduce(torch.kron, map(_matrix, bases), one)


def _matrix(base: int) -> Tensor:
    if base == 2:
        return _int8([[1, 1], [1, -1]])
    return _paley_one(base) if _is_paley_one(base) else _paley_two(base)


def _paley_one(order: int) -> Tensor:
    """C + I with a skew-symmetric C: Paley (1933), first kind."""
    conference = _conference(order - 1)
    conference[1:, 0] = -1
    return conference + _identity(order)


def _paley_two(order: int) -> Tensor:
    """C ⊗ [[1, 1], [1, -1]] + I ⊗ [[1, -1], [-1, -1]]: Paley (1933), second kind."""
    conference = _conference(order // 2 - 1)
    identity = _identity(order // 2)
    return torch.kron(conference, _matrix(2)) + torch.kron(identity, _int8([[1, -1], [-1, -1]]))


def _conference(prime: int) -> Tensor:
    """Whether i - j is a square modulo the prime (1), or not (-1), bordered by ones."""
    index = torch.arange(prime, device="cpu")
    character = -torch.ones(prime, dtype=torch.int8, device="cpu")
    character[index * index % prime] = 1
    character[0] = 0
    bordered = 1 - _identity(prime + 1)
    bordered[1:, 1:] = character[(index[:, None] - index) % prime]
    return bordered


def _is_paley(order: int) -> bool:
    return _is_paley_one(order) or _is_prime(order // 2 - 1, modulo_four=1)


def _is_paley_one(order: int) -> bool:
    return _is_prime(order - 1, modulo_four=3)


def _is_prime(odd: int, modulo_four: int) -> bool:
    return odd % 4 == modulo_four and all(odd % d for d in range(3, isqrt(odd) + 1, 2))


def _identity(order: int) -> Tensor:
    return torch.eye(order, dtype=torch.int8, device="cpu")


def _int8(rows: list[list[int]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.int8, device="cpu")
