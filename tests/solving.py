"""What tests of solvers share: a rounder to whole numbers, and inputs that go together."""

import torch


class Integers:
    """The integers; no scale to fix."""

    group = None

    def begin(self, columns, weight):
        pass

    def round(self, weight, column):
        return weight.round()


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def correlated(inputs, seed=0):
    """Second moments of inputs that share a few strong directions."""
    x = normal(4 * inputs, inputs, seed=seed) @ normal(inputs, inputs, seed=seed + 1)
    return x.T @ x / len(x)
