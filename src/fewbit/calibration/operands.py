"""A sample of what the layers and attentions of a block receive, from one pass over all rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor, nn

from fewbit.calibration.stream import LayerInput, Rows, Step
from fewbit.calibration.tree import by_rows
from fewbit.layers.attention import attention_weights
from fewbit.models.fused_attention import AttentionCall, standing_in

TOKENS = 4096  # of each layer input, over all rows
QUERIES = 64  # of each row that shows its attention


@dataclass(frozen=True)
class Tokens:
    """The same number of tokens of every row."""

    x: Tensor  # float32 [rows, tokens, channels]
    places: Tensor  # int64 [rows, tokens], which tokens of the row
    real: Tensor  # float32 [rows, tokens], 0 where a token is padding


@dataclass(frozen=True)
class Operands:
    """Of one attention, for some of the rows: all keys and values, some queries."""

    query: Tensor  # float32 [some, heads, queries, width]
    key: Tensor  # float32 [some, heads, keys, width]
    value: Tensor
    mask: Tensor | None  # as the attention is given it, broadcast to [some, heads, queries, keys]
    scale: float | None
    places: Tensor  # int64 [queries], which queries
    rows: list[int]  # of each of them, which row it belongs to


class _TokenSampler:
    def __init__(self, rows: int, seed: int) -> None:
        self.rows, self.share = rows, -(-TOKENS // rows)
        self.generator = Generator("cpu").manual_seed(seed)
        self.parts: dict[int, list[Tokens]] = {}  # by the first row of a minibatch

    def update(self, given: LayerInput) -> None:
        rows = len(given.rows.indices)
        x = by_rows(given.x.detach(), rows)
        count = x.shape[1]
        order = torch.rand(rows, count, generator=self.generator).argsort(1)
        places = order[:, : self.share].sort(1).values
        picked = x.gather(1, places.to(x.device)[..., None].expand(-1, -1, x.shape[-1])).float()
        real = torch.ones(places.shape)
        if given.mask is not None:
            mask = by_rows(given.mask[..., None], rows)[..., 0].cpu()
            real = mask.gather(1, places).float()
            picked = picked.masked_fill(real.to(x.device)[..., None] == 0, 0)
        parts = self.parts.setdefault(given.rows.indices.start, [])
        parts.append(Tokens(picked.cpu(), places, real))

    def tokens(self) -> Tokens:
        """Rows that gave fewer tokens than others are padded; so are those that gave none."""
        names = ("x", "places", "real")
        given = [
            [torch.cat([getattr(one, name) for one in parts], 1) for name in names]
            for parts in self.parts.values()
        ]
        most = max(real.shape[1] for _, _, real in given)
        joined = [
            given[0][which].new_zeros(self.rows, most, *given[0][which].shape[2:])
            for which in range(3)
        ]
        for start, tensors in zip(self.parts, given, strict=True):
            for whole, tensor in zip(joined, tensors, strict=True):
                whole[start : start + len(tensor), : tensor.shape[1]] = tensor
        return Tokens(*joined)


class _OperandSampler:
    """Stands in for the fused attention, notes what it is given, and lets it work.

    Kept are those that look like the first: with calls of different lengths, some of them."""

    def __init__(self, rows: Sequence[int], seed: int) -> None:
        self.rows = set(rows)
        self.part = range(0)  # rows of the minibatch that is running
        self.generator = Generator("cpu").manual_seed(seed)
        self.places: Tensor | None = None
        self.parts: list[tuple[Tensor, ...]] = []
        self.masks: list[Tensor] = []
        self.taken: list[int] = []
        self.like: tuple[object, ...] = ()
        self.scale: float | None = None

    def __call__(
        self,
        call: AttentionCall,
    ) -> Tensor:
        query, key, value, mask = call.query, call.key, call.value, call.attn_mask
        like = query.shape[1:], key.shape[1:], mask is None
        if self.places is None:
            order = torch.randperm(query.shape[-2], generator=self.generator)
            self.places, self.scale = order[:QUERIES].sort().values, call.scale
            self.like = like
        rows = [self.part[entry * len(self.part) // len(query)] for entry in range(len(query))]
        here = [entry for entry, row in enumerate(rows) if row in self.rows]
        if here and like == self.like:
            self.taken += [rows[entry] for entry in here]
            parts = (query[here][..., self.places, :], key[here], value[here])
            self.parts.append(tuple(part.detach().float().cpu() for part in parts))
            if mask is not None:
                whole = mask.expand(*query.shape[:-1], key.shape[-2])
                self.masks.append(whole[here][..., self.places, :].cpu())
        return call.plainly()

    def operands(self) -> Operands:
        assert self.places is not None
        query, key, value = (torch.cat(parts) for parts in zip(*self.parts, strict=True))
        mask = torch.cat(self.masks) if self.masks else None
        return Operands(query, key, value, mask, self.scale, self.places, self.taken)


def sample_operands(
    step: Step,
    layers: Sequence[str],
    attentions: Mapping[str, nn.Module],
    rows: Sequence[int],
    seed: int,
) -> tuple[dict[str, Tokens], dict[str, Operands]]:
    """What `layers` (paths in the block) receive, and of `rows` what `attentions` multiply."""
    total = step.rows
    tokens = {name: _TokenSampler(total, seed + number) for number, name in enumerate(layers)}
    operands = {name: _OperandSampler(rows, seed) for name in attentions}

    def receive(given: LayerInput) -> None:
        tokens[given.name].update(given)

    def begin(rows: Rows) -> None:
        for one in operands.values():
            one.part = rows.indices

    with standing_in(operands, attentions):
        step.layer_inputs(layers, receive, begin=begin)
    return (
        {name: one.tokens() for name, one in tokens.items()},
        {name: one.operands() for name, one in operands.items()},
    )


def without_padding(seen: Operands) -> Operands:
    """Keys and values at which no query looks, as zeros."""
    shares = attention_weights(seen.query, seen.key, seen.mask, seen.scale)
    real = (shares > 0).any(2)[..., None]
    return replace(seen, key=seen.key * real, value=seen.value * real)
