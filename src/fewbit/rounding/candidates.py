"""Codebook, assignments and bias trained together.

A vector of the weight is a mean of its candidates, the codebook entries nearest to it, by ratios
that a softmax gives (VQ4DiT, section 3.2). Little by little the vectors whose ratios have decided
are frozen to one candidate; what is left at the end is a code for each vector.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad, softmax

from fewbit.formats import Codebook, QTensor
from fewbit.formats.codebook import nearest
from fewbit.formats.pack import pack
from fewbit.rounding.vector import Units, sums_of

DECIDED = 1e4  # a logit from which nothing comes back


class VectorLinear(nn.Module):
    """Stands where the linear stood while its codebook is trained; computes in float32."""

    def __init__(self, start: QTensor, bias: Tensor | None, stage: nn.Module | None = None) -> None:
        super().__init__()
        assert isinstance(start.spec.format, Codebook)
        assert start.scales.codebook is not None
        self.start, self.stage = start, stage
        self.codebook = nn.Parameter(start.scales.codebook.float().clone())
        scale = start.spec.load(start.scales)
        self.register_buffer("scale", scale)
        self.gain = nn.Parameter(torch.ones_like(scale), requires_grad=start.spec.span != "tensor")
        self.bias = None if bias is None else nn.Parameter(bias.detach().float().clone())
        codes = start.codes().flatten()[:, None].int()
        self.register_buffer("candidates", codes)
        self.logits = nn.Parameter(codes.new_empty(len(codes), 0, dtype=torch.float32))

    scale: Tensor
    candidates: Tensor  # int32 [vectors, n], the nearest first

    def consider(self, weight: Tensor, moments: Tensor | None, count: int, uniform: bool) -> None:
        """`count` candidates for each vector, at ratios by inverse distance or all the same."""
        units = Units.of(weight.float(), self.start.spec, self.start.scales, moments)
        entries = self.codebook.detach()
        found = nearest(units.vectors, entries, units.importance, min(count, len(entries)))
        distances = [units.distance(entries[one]) for one in found]
        logits = [(distances[0] / (one + 1e-12)).clamp(min=1e-4).log() for one in distances[1:]]
        self.candidates = torch.stack(found, 1).int()
        self.logits = nn.Parameter(torch.stack(logits, 1) * (0.0 if uniform else 1.0))

    def ratios(self) -> Tensor:
        """[vectors, n], of which the first has the logit 0."""
        return softmax(pad(self.logits, (1, 0)), 1)

    def weight(self) -> Tensor:
        """float32 [out, in]"""
        units: Tensor = Mean.apply(self.codebook, self.candidates, self.ratios())
        scale = (self.scale * self.gain)[..., None]
        rows, columns = self.start.shape
        return (units.view(rows, scale.shape[1], -1) * scale).view(rows, columns)

    def forward(self, x: Tensor) -> Tensor:
        """Gradients pass a rounded input as if it were not rounded."""
        staged = x if self.stage is None else x + (self.stage(x) - x).detach()
        return linear(staged.float(), self.weight(), self.bias)

    @property
    def undecided(self) -> bool:
        """Whether there are candidates left to choose from."""
        return self.candidates.shape[1] > 1

    def indecision(self) -> Tensor:
        """0 where every vector has one candidate, 1 where all ratios are the same."""
        count = self.candidates.shape[1]
        return (1 - self.ratios().square().sum(1)).mean() * (count / max(count - 1, 1))

    @torch.no_grad()
    def freeze(self, share: float) -> None:
        """Decide at least for this share of the vectors, the surest first."""
        ratios = self.ratios()
        surest, choice = ratios.max(1)
        rank = min(max(round((1 - share) * len(surest)), 1), len(surest))
        frozen = surest >= surest.kthvalue(rank).values
        one_hot = torch.where(torch.arange(ratios.shape[1]) == choice[:, None], DECIDED, -DECIDED)
        self.logits[frozen] = (one_hot[:, 1:] - one_hot[:, :1])[frozen]
        if share >= 1:
            self.candidates = self.candidates.gather(1, choice[:, None])
            self.logits = nn.Parameter(self.logits.new_empty(len(self.logits), 0))

    def packed(self) -> QTensor:
        """What the weight is once every vector is frozen."""
        spec, start = self.start.spec, self.start
        codes = self.candidates.to(torch.uint8).view(start.shape[0], -1)
        scales = replace(
            spec.store(self.scale * self.gain.detach()), codebook=self.codebook.detach().half()
        )
        return QTensor(pack(codes, spec.format.bits), scales, spec, start.columns)


class Mean(torch.autograd.Function):
    """units[v] = sum over i of ratios[v, i] * codebook[candidates[v, i]]."""

    @staticmethod
    def forward(ctx: Any, codebook: Tensor, candidates: Tensor, ratios: Tensor) -> Tensor:
        ctx.save_for_backward(codebook, candidates, ratios)
        if candidates.shape[1] == 1:
            return codebook[candidates[:, 0]]
        parts = (codebook[c] * r[:, None] for c, r in _pairs(candidates, ratios))
        return sum_of(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, Tensor | None]:
        codebook, candidates, ratios = ctx.saved_tensors
        (grad,) = grads
        count = len(codebook)
        if candidates.shape[1] == 1:
            return sums_of(candidates[:, 0], grad, count), None, None
        pairs = list(_pairs(candidates, ratios))
        entries = sum_of(sums_of(c, grad * r[:, None], count) for c, r in pairs)
        towards = [(grad * codebook[c]).sum(1) for c, _ in pairs]
        return entries, None, torch.stack(towards, 1)


def _pairs(candidates: Tensor, ratios: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(candidates.unbind(1), ratios.unbind(1), strict=True)


def sum_of(parts: Iterable[Tensor]) -> Tensor:
    return reduce(Tensor.add_, parts)
