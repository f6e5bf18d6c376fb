"""How large a network is: the bytes of its tensors as they are saved and loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from fewbit.formats.names import megabytes
from fewbit.layers.linear import quantized_layers
from fewbit.models.structure import is_layer
from fewbit.storage.tensors import stored_once

BFLOAT16 = 2  # bytes of a number


@dataclass(frozen=True)
class Size:
    """Bytes as saved and loaded; equal tensors of a quantized network are held once.

    Attributes:
        packed: Of quantized layers: codes, scales, biases, and what prepares their inputs.
        kept: Of linear layers and convolutions in high precision.
        other: Of embedding tables, norms and free parameters.
    """

    packed: int = 0
    kept: int = 0
    other: int = 0

    @property
    def bytes(self) -> int:
        return self.packed + self.kept + self.other

    def __add__(self, more: Size) -> Size:
        return Size(self.packed + more.packed, self.kept + more.kept, self.other + more.other)

    def __str__(self) -> str:
        own = f"packed {self.packed / 1e6:.1f}, kept layers" if self.packed else "layers"
        rest = f"{self.kept / 1e6:.1f}, other {self.other / 1e6:.1f}"
        return f"{megabytes(self.bytes)} saved and loaded: {own} {rest}"


def smaller(size: int, bf16_bytes: int) -> float:
    """How many times smaller than the same network in bfloat16: the one factor that is shown."""
    return bf16_bytes / max(size, 1)


def told(size: Size, bf16_bytes: int) -> list[str]:
    """Two lines for people."""
    factor = smaller(size.bytes, bf16_bytes)
    return [
        f"  {size}",
        f"  {factor:.2f}x smaller than in bfloat16 ({megabytes(bf16_bytes)})",
    ]


def size_of(network: nn.Module, aliases: Collection[str] | None = None) -> Size:
    """`aliases` are the names of repeated tensors, where a file tells them."""
    layers = [name for name, module in network.named_modules() if is_layer(module)]
    return sized(bytes_by_name(network, aliases), layers, quantized_layers(network))


def bytes_by_name(network: nn.Module, aliases: Collection[str] | None = None) -> dict[str, int]:
    """Of each tensor that is stored under its own name."""
    state = _state(network)
    if aliases is None:
        aliases = equal(state) if quantized_layers(network) else repeated(state)
    return {name: tensor.nbytes for name, tensor in state.items() if name not in aliases}


@dataclass(frozen=True)
class Stored:
    """A network in full precision, as it is stored, to tell what it will be.

    Attributes:
        bytes: In its own dtype.
        bf16_bytes: In bfloat16.
        once: Of each tensor by its name, equal ones once.
    """

    bytes: int
    bf16_bytes: int
    once: Mapping[str, int]

    @classmethod
    def of(
        cls,
        network: nn.Module,
        weights: Collection[str] = (),
        read: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> Stored:
        """`weights` are tensors that will be quantized: those are not searched for equals. What a
        file has of others is `read`, where the network itself holds no data."""
        state = _state(network)
        twice = repeated(state)
        alike = twice | equal({n: read.get(n, t) for n, t in state.items() if n not in weights})
        unique = {name: tensor for name, tensor in state.items() if name not in twice}
        return cls(
            sum(tensor.nbytes for tensor in unique.values()),
            sum(map(_in_bfloat16, unique.values())),
            {name: tensor.nbytes for name, tensor in unique.items() if name not in alike},
        )

    def quantized(self, layers: Collection[str], weights: Mapping[str, int]) -> Size:
        """With the bytes of the packed weight of each layer that is quantized."""
        replaced = {f"{name}.weight" for name in weights}
        rest = {name: count for name, count in self.once.items() if name not in replaced}
        return sized(rest, layers, weights) + Size(packed=sum(weights.values()))


def sized(sizes: Mapping[str, int], layers: Collection[str], packed: Collection[str]) -> Size:
    """Bytes of tensors by what they belong to."""
    total: Counter[str] = Counter()
    for owner, count in by_owner(sizes, {*layers, *packed}).items():
        total["packed" if owner in packed else "kept" if owner is not None else "other"] += count
    return Size(**total)


def by_owner(sizes: Mapping[str, int], owners: Collection[str]) -> Counter[str | None]:
    """The bytes of each owner, the nearest module that holds the tensor; None for no owner."""
    total: Counter[str | None] = Counter()
    for name, count in sizes.items():
        total[next((one for one in _around(name) if one in owners), None)] += count
    return total


def repeated(state: Mapping[str, Tensor]) -> set[str]:
    """The names of tensors that are there under another name before."""
    seen: set[Any] = set()
    again = set()
    for name, tensor in state.items():
        place = id(tensor) if tensor.is_meta else (tensor.data_ptr(), tensor.nbytes)
        if place in seen:
            again.add(name)
        seen.add(place)
    return again


def equal(state: Mapping[str, Tensor]) -> set[str]:
    """The names of tensors that equal others; those without data equal none but themselves."""
    again = repeated(state)
    there = {n: t.detach() for n, t in state.items() if n not in again and not t.is_meta}
    return again | stored_once(there)[1].keys()


def _state(network: nn.Module) -> dict[str, Tensor]:
    return network.state_dict(keep_vars=True)


def _in_bfloat16(tensor: Tensor) -> int:
    return BFLOAT16 * tensor.numel() if tensor.is_floating_point() else tensor.nbytes


def _around(name: str) -> Iterator[str]:
    """The modules a tensor is inside of, the nearest first."""
    while name:
        name = name.rpartition(".")[0]
        yield name
