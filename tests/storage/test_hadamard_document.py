"""docs/format.md is enough to build the Hadamard matrices: a builder written from it, in numpy."""

from itertools import combinations
from math import isqrt, prod, sqrt

import numpy as np
import pytest
import torch

from fewbit.transforms.hadamard import Hadamard

TWO = np.array([[1, 1], [1, -1]])


def is_prime(p, remainder):
    return p > 1 and p % 4 == remainder and all(p % d for d in range(2, isqrt(p) + 1))


def is_base(order):
    paley = is_prime(order - 1, 3) or (order % 2 == 0 and is_prime(order // 2 - 1, 1))
    return order == 2 or (12 <= order <= 256 and order % 4 == 0 and paley)


def products(n, most):
    """All ways to write n as a product of bases, descending."""
    if n == 1:
        yield ()
    for base in range(min(n, most), 1, -1):
        if n % base == 0 and is_base(base):
            yield from ((base, *rest) for rest in products(n // base, base))


def bases(n):
    found = min(products(n, n), key=lambda f: (sum(1 if b == 2 else b for b in f), f))
    if n <= 64:
        return found
    groups = [g for count in range(len(found)) for g in combinations(found, count)]
    fitting = [g for g in groups if prod(g) <= sqrt(n)]
    first = max(fitting, key=lambda g: (prod(g), -len(g)))
    others = list(found)
    for base in first:
        others.remove(base)
    return (*first, *others)


def conference(p):
    squares = {i * i % p for i in range(1, p)}
    c = np.ones((p + 1, p + 1), int)
    for i in range(p):
        for j in range(p):
            c[1 + i, 1 + j] = 0 if i == j else 1 if (i - j) % p in squares else -1
    c[0, 0] = 0
    return c


def matrix(base):
    if base == 2:
        return TWO
    if is_prime(base - 1, 3):
        c = conference(base - 1)
        c[1:, 0] = -1
        return c + np.eye(base, dtype=int)
    identity = np.eye(base // 2, dtype=int)
    return np.kron(conference(base // 2 - 1), TWO) + np.kron(identity, [[1, -1], [-1, -1]])


@pytest.mark.parametrize("width", [12, 28, 36, 48, 64, 72, 96, 192, 240, 288, 384, 768, 1152, 1408])
def test_the_matrix_of_the_document_is_that_of_the_library(width):
    h = np.ones((1, 1), int)
    for base in bases(width):
        h = np.kron(h, matrix(base))
    rotation = Hadamard(width, None, seed=0)
    x = torch.eye(width, dtype=torch.float64) * rotation.signs()
    expected = torch.from_numpy(h / sqrt(width))
    assert torch.allclose(rotation.input(x), expected, atol=1e-12)
