"""Weighted k-means: the codebook of a matrix, and its vectors' first assignment to it.

Lloyd's rounds from a k-means++ seeding (Arthur and Vassilvitskii 2007), on a sample of the vectors
and at last on all of them. An entry that nobody chose takes the place of the worst served vector.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from fewbit.errors import BadArgument
from fewbit.formats import QTensor, Scales, Spec
from fewbit.formats.codebook import nearest
from fewbit.formats.pack import pack

SAMPLE, SEEDING = 64, 8  # vectors for each entry that Lloyd's rounds and the seeding look at
WHOLE_ROUNDS = 2  # on all vectors in the end
TINY = torch.finfo(torch.float32).tiny
ROUNDS, CONVERGED = 30, 1e-3  # at most; a round that gains a smaller share is the last


def vector_quantize(
    weight: Tensor, spec: Spec, seed: int, moments: Tensor | None = None
) -> QTensor:
    """The weight [out, in] by k-means. With `moments` [in], the mean square of each input, an
    error counts by what it does to the output."""
    if not weight.isfinite().all():
        raise BadArgument("a codebook cannot be made for weights with NaN or infinity")
    scales = _scales(weight.float(), spec)
    units = Units.of(weight.float(), spec, spec.load(scales), moments)
    generator = Generator("cpu").manual_seed(seed)
    codebook = k_means(units.vectors, 1 << spec.format.bits, generator, units.importance)
    codebook, unit = spec.format.settled(codebook)
    codes = nearest(units.vectors, codebook.float() * unit, units.importance)[0]
    stored = replace(spec.store(spec.load(scales) * unit), codebook=codebook)
    packed = pack(codes.to(torch.uint8).view(len(weight), -1), spec.format.bits)
    return QTensor(packed, stored, spec, weight.shape[1])


@dataclass(frozen=True)
class Units:
    """A matrix as a codebook sees it: vectors in units of the scale, and what an error in each of
    their values costs; both [vectors, columns]."""

    vectors: Tensor
    importance: Tensor | None

    @classmethod
    def of(cls, weight: Tensor, spec: Spec, scales: Tensor, moments: Tensor | None) -> Units:
        rows, columns = weight.shape
        width = columns // spec.groups(columns)
        scale = scales.repeat_interleave(width, 1).expand(rows, columns)
        shape = -1, spec.format.columns_per_code
        if moments is None and spec.span == "tensor":
            return cls((weight / scale).reshape(shape), None)
        cost = scale.square() * (1 if moments is None else moments.clamp(min=_floor(moments)))
        return cls((weight / scale).reshape(shape), (cost / cost.mean()).reshape(shape))

    def distance(self, centres: Tensor) -> Tensor:
        """[vectors], squared, of each vector from its own centre."""
        return _distance(self.vectors, centres, self.importance)


def k_means(
    vectors: Tensor, count: int, generator: Generator, importance: Tensor | None = None
) -> Tensor:
    """`count` centres of vectors [n, d]."""
    order = torch.randperm(len(vectors), generator=generator)[: SAMPLE * count].to(vectors.device)
    some, few = vectors[order], order[: SEEDING * count]
    weigh = None if importance is None else importance[order]
    first = None if importance is None else importance[few]
    centres = _seeding(vectors[few], first, count, generator)
    before = torch.inf
    for _ in range(ROUNDS):
        centres, error = _lloyd(some, centres, weigh)
        if error >= before * (1 - CONVERGED):
            break
        before = error
    if len(some) == len(vectors):
        return centres
    for _ in range(WHOLE_ROUNDS):
        centres, _ = _lloyd(vectors, centres, importance)
    return centres


def _seeding(
    vectors: Tensor, importance: Tensor | None, count: int, generator: Generator
) -> Tensor:
    """Each next centre is a vector drawn in proportion to its distance from those before it."""
    chosen = [int(torch.randint(len(vectors), (1,), generator=generator))]
    distance = torch.full_like(vectors[:, 0], torch.inf)
    for _ in range(count - 1):
        distance = distance.minimum(_distance(vectors, vectors[chosen[-1]], importance))
        reach = distance.double().cumsum(0)
        drawn = torch.rand((), dtype=torch.float64, generator=generator).to(reach.device)
        chosen.append(min(int(torch.searchsorted(reach, drawn * reach[-1])), len(vectors) - 1))
    return vectors[chosen]


def _lloyd(vectors: Tensor, centres: Tensor, importance: Tensor | None) -> tuple[Tensor, float]:
    """Every centre becomes the mean of the vectors nearest to it; their error before that."""
    codes = nearest(vectors, centres, importance)[0]
    distance = _distance(vectors, centres[codes], importance)
    count = len(centres)
    weigh = torch.ones_like(vectors) if importance is None else importance
    means = sums_of(codes, weigh * vectors, count) / sums_of(codes, weigh, count).clamp(min=TINY)
    empty = (torch.bincount(codes, minlength=count) == 0).nonzero()[:, 0]
    worst = distance.topk(min(len(empty), len(distance))).indices
    means[empty[: len(worst)]] = vectors[worst]
    return means, float(distance.sum(dtype=torch.float64))


def sums_of(codes: Tensor, values: Tensor, count: int) -> Tensor:
    """[count, d]: values [n, d] added up by their codes [n]."""
    columns = [torch.bincount(codes, column.contiguous(), count) for column in values.unbind(1)]
    return torch.stack(columns, 1)


def _distance(vectors: Tensor, centres: Tensor, importance: Tensor | None) -> Tensor:
    squares = (vectors - centres).square()
    return (squares if importance is None else squares * importance).sum(1)


def _scales(weight: Tensor, spec: Spec) -> Scales:
    """The root mean square of what a scale spans, so that entries are around 1."""
    groups = weight.view(len(weight), spec.groups(weight.shape[1]), -1)
    square = groups.square().mean(-1)
    rms = (square.mean().view(1, 1) if spec.span == "tensor" else square).sqrt()
    return spec.store(torch.where(rms == 0, 1.0, rms))


def _floor(moments: Tensor) -> float:
    """A channel that was silent in calibration still counts a little."""
    return max(1e-3 * float(moments.mean()), TINY)
