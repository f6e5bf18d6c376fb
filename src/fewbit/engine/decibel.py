"""Signal to quantization noise, the one unit of error in this project."""

import math

import torch
from torch import Tensor


def sqnr(reference: Tensor, actual: Tensor) -> float:
    """10 log10(signal / noise) in dB; infinite where nothing was lost."""
    signal, noise = energies(reference, actual)
    return ratio_db(signal, noise)


def energies(reference: Tensor, actual: Tensor) -> tuple[float, float]:
    """Summed squares of the signal and of the error, to be added up over batches."""
    reference = reference.detach().float()
    error = actual.detach().float() - reference
    return float(_energy(reference)), float(_energy(error))


def ratio_db(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


def _energy(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dtype=torch.float64).square()
