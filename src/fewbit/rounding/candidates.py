"""Codebook, assignments and bias trained together.

A vector of the weight is a mean of its candidates, the codebook entries nearest to it, by ratios
that a softmax gives (VQ4DiT, section 3.2). Little by little the vectors whose ratios have decided
are frozen to one candidate; what is left at the end is a code for each vector.
"""

from __future__ import annotations

from dataclasses import replace
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, pad, softmax

from fewbit.formats import QTensor
from fewbit.formats.codebook import nearest
from fewbit.formats.pack import pack
from fewbit.rounding.trainable import TrainableLinear
from fewbit.rounding.vector import Units, sums_of

DECIDED = 1e4  # a logit from which nothing comes back


class VectorLinear(TrainableLinear):
    """A linear layer whose codebook is being trained."""

    def __init__(self, start: QTensor, bias: Tensor | None, stage: nn.Module | None = None) -> None:
        super().__init__(bias, stage)
        assert start.scales.codebook is not None
        self.start = start
        codebook = start.scales.codebook.float()
        unit = codebook.square().mean().sqrt() if start.spec.format.exact_in(8) else 1.0
        self.codebook = nn.Parameter(codebook / unit)  # entries of about 1, for the learning rate
        scale = start.spec.load(start.scales) * unit
        self.register_buffer("scale", scale)
        self.gain = nn.Parameter(torch.ones_like(scale), requires_grad=start.spec.span != "tensor")
        codes = start.codes().flatten()[None].int()
        self.register_buffer("candidates", codes)
        self.logits = nn.Parameter(codes.new_empty(0, codes.shape[1], dtype=torch.float32))

    scale: Tensor
    candidates: Tensor  # int32 [n, vectors], the nearest first

    def consider(self, weight: Tensor, moments: Tensor | None, count: int, uniform: bool) -> None:
        """`count` candidates for each vector, at ratios by inverse distance or all the same."""
        units = Units.of(weight.float(), self.start.spec, self.scale, moments)
        entries = self.codebook.detach()
        found = nearest(units.vectors, entries, units.importance, min(count, len(entries)))
        distances = [units.distance(entries[one]) for one in found]
        logits = [(distances[0] / (one + 1e-12)).clamp(min=1e-4).log() for one in distances[1:]]
        self.candidates = torch.stack(found).int()
        self.logits = nn.Parameter(torch.stack(logits) * (0.0 if uniform else 1.0))

    def ratios(self) -> Tensor:
        """[n, vectors], of which the first has the logit 0."""
        return softmax(pad(self.logits, (0, 0, 1, 0)), 0)

    def weight(self) -> Tensor:
        units: Tensor = Mean.apply(self.codebook, self.candidates, self.ratios())
        scale = (self.scale * self.gain)[..., None]
        rows, columns = self.start.shape
        return (units.view(rows, scale.shape[1], -1) * scale).view(rows, columns)

    @property
    def undecided(self) -> bool:
        """Whether there are candidates left to choose from."""
        return len(self.candidates) > 1

    def indecision(self) -> Tensor:
        """0 where every vector has one candidate, 1 where all ratios are the same."""
        count = len(self.candidates)
        return (1 - self.ratios().square().sum(0)).mean() * (count / max(count - 1, 1))

    @torch.no_grad()
    def freeze(self, share: float) -> None:
        """Decide at least for this share of the vectors, the surest first."""
        ratios = self.ratios()
        surest, choice = ratios.max(0)
        rank = min(max(round((1 - share) * len(surest)), 1), len(surest))
        frozen = surest >= surest.kthvalue(rank).values
        one_hot = torch.full_like(ratios, -DECIDED).scatter_(0, choice[None], DECIDED)
        self.logits.copy_(torch.where(frozen, one_hot[1:] - one_hot[0], self.logits))
        if share >= 1:
            self.candidates = self.candidates.gather(0, choice[None])
            self.logits = nn.Parameter(self.logits.new_empty(0, len(choice)))

    def packed(self) -> QTensor:
        """What the weight is once every vector is frozen."""
        spec, start = self.start.spec, self.start
        codes = self.candidates.to(torch.uint8).view(start.shape[0], -1)
        codebook, unit = spec.format.settled(self.codebook.detach())
        scales = replace(spec.store(self.scale * self.gain.detach() * unit), codebook=codebook)
        return QTensor(pack(codes, spec.format.bits), scales, spec, start.columns)


class Mean(torch.autograd.Function):
    """units[v] = sum over i of ratios[i, v] * codebook[candidates[i, v]]."""

    @staticmethod
    def forward(ctx: Any, codebook: Tensor, candidates: Tensor, ratios: Tensor) -> Tensor:
        ctx.save_for_backward(codebook, candidates, ratios)
        if len(candidates) == 1:
            return embedding(candidates[0], codebook)
        parts = (
            embedding(c, codebook).mul_(r[:, None]) for c, r in zip(candidates, ratios, strict=True)
        )
        return reduce(Tensor.add_, parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, Tensor | None]:
        codebook, candidates, ratios = ctx.saved_tensors
        (grad,) = grads
        count, ones = len(codebook), grad.new_ones(grad.shape[1])
        if len(candidates) == 1:
            return sums_of(candidates[0], grad, count), None, None
        pairs = zip(candidates, ratios, strict=True)
        entries = reduce(Tensor.add_, (sums_of(c, grad * r[:, None], count) for c, r in pairs))
        towards = torch.stack([embedding(c, codebook).mul_(grad) @ ones for c in candidates])
        return entries, None, towards
