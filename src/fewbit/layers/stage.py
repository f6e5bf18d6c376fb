"""What happens to an input before the product, computed once for all layers that share it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn

from fewbit import registry
from fewbit.activations.activation import Activation
from fewbit.kernels.choose import backend_for
from fewbit.kernels.precision import without_autocast
from fewbit.kernels.reference import Reference
from fewbit.kernels.values import AdaLNInput, QuantizedRows, Rotation, SplitRows
from fewbit.layers.bound import RowsOf
from fewbit.layers.offload import brought, is_offloaded
from fewbit.layers.snapshot import Snapshot
from fewbit.transforms.principal import Principal
from fewbit.transforms.transform import Transform

Coded = QuantizedRows | Tensor | SplitRows


class InputStage(nn.Module):
    """Transform, then quantize, to what a product wants: integers where the format has them.

    `principal` keeps the transformed input's components along a few directions in int8, and only
    what they leave of it is quantized.

    `folded` describes a transform that needs no run time: whoever gives x has it in its weights.
    Layers that read one tensor, as q, k and v do, hold the same stage and share its codes.
    """

    def __init__(
        self,
        transform: Transform | None = None,
        activation: Activation | None = None,
        folded: str | None = None,
        principal: Principal | None = None,
    ) -> None:
        super().__init__()
        self.transform = transform
        self.principal = principal
        self.activation = activation
        self.folded = folded
        self._shared: SharedCodes | None = None

    def forward(self, x: Tensor) -> Coded:
        with without_autocast(x):
            return self.coder(backend_for(x))(x)

    def values(self, x: Tensor, consumer: object = None) -> Tensor:
        """What a layer multiplies in place of x, as float32 like x: for whoever calibrates. It is
        computed once for all consumers of x that say who they are."""
        code = self if consumer is None else self.shared(backend_for(x), consumer)
        with without_autocast(x):
            result = code(x)
        if isinstance(result, SplitRows):
            assert self.principal is not None
            return result.values(self.principal.directions).view(x.shape)
        rows = result if isinstance(result, Tensor) else result.values()
        return rows.view(x.shape)

    def coder(self, backend: Reference) -> RowsOf:
        """The whole stage as one callable, bound to a backend."""
        if self.activation is None and self.principal is None:
            return partial(_unrounded, self.transform, backend)
        first, rotation = (None, None) if self.transform is None else self.transform.split()
        code = self._coder(backend, rotation)
        return code if first is None else partial(_after, first, code, backend)

    def _coder(self, backend: Reference, rotation: Rotation | None) -> RowsOf:
        """Of all but the first transforms."""
        if self.principal is None:
            assert self.activation is not None
            return self.activation.coder(backend, rotation)
        if self.activation is None:
            return backend.splitter(self.principal.directions, rotation)
        return self.activation.splitter(backend, rotation, self.principal.directions)

    def shared(self, backend: Reference, consumer: object) -> RowsOf:
        """As `coder`, for one of the layers that hold this stage."""
        if any(map(is_offloaded, self.modules())):
            return partial(_brought, self, backend)
        shared = self._shared
        if shared is None or shared.backend is not backend or not shared.made_of.holds():
            shared = self._shared = SharedCodes(self, backend)
        return shared.of(consumer)

    def unshare(self, consumer: object) -> None:
        """The others share on; when none is left, whoever comes gets a callable made anew."""
        if self._shared is not None:
            self._shared.leave(consumer)
            self._shared = self._shared if self._shared.consumers else None

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_shared": None}

    def check_width(self, columns: int) -> None:
        """Refuse to be the stage of a layer that reads this many columns."""
        for part in (self.transform, self.principal, self.activation):
            if part is not None:
                part.check_width(columns)

    def __str__(self) -> str:
        """What an input goes through, as `inspect` shows it."""
        parts = [self.transform, self.principal, self.activation]
        shown = [part.extra_repr() for part in parts if part is not None]
        return " > ".join(shown if self.folded is None else [f"({self.folded})", *shown])

    def config(self) -> dict[str, Any]:
        """The parts that are there, each by its own config."""
        named = {
            "transform": self.transform,
            "principal": self.principal,
            "activation": self.activation,
        }
        config = {name: part.config() for name, part in named.items() if part is not None}
        return config if self.folded is None else {**config, "folded": self.folded}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> InputStage:
        homes = {"transform": "transforms", "activation": "activations"}
        folded = config.get("folded")
        if not isinstance(folded, str | None):
            raise TypeError(f"folded must be a text, got {folded!r}")
        principal = config.get("principal")
        parts = {name: config[name] for name in config if name not in ("folded", "principal")}
        built = {name: registry.build(homes[name], part) for name, part in parts.items()}
        built["principal"] = None if principal is None else Principal.from_config(principal)
        return cls(**built, folded=folded)


@dataclass(frozen=True)
class _Last:
    """The codes of the last input, for the layers that have not had them yet."""

    x: ref[Tensor | AdaLNInput]
    version: int
    codes: Coded
    left: set[int]

    def is_for(self, consumer: int, x: Tensor | AdaLNInput, version: int) -> bool:
        if self.x() is not x or self.version != version:
            return False
        try:
            self.left.remove(consumer)  # in one step, for another thread may ask as the same
        except KeyError:
            return False
        return True


class SharedCodes:
    """The codes of one input, computed for the first of its consumers and handed once to each of
    the others; they are kept no longer than the input itself.

    A consumer that comes a second time has a new input, a new timestep or new parameters, even if x
    is the same object. Nothing is shared where a result must not outlive its graph, and nothing of
    inference tensors, which cannot tell that they were written to.
    """

    def __init__(self, stage: InputStage, backend: Reference) -> None:
        self.code, self.backend, self.made_of = stage.coder(backend), backend, Snapshot(stage)
        self.consumers: set[int] = set()
        self.last: _Last | None = None

    def of(self, consumer: object) -> RowsOf:
        self.consumers.add(id(consumer))
        return partial(self.codes, id(consumer))

    def leave(self, consumer: object) -> None:
        self.consumers.discard(id(consumer))
        self.last = None

    def codes(self, consumer: int, x: Tensor | AdaLNInput) -> Coded:
        tensor = x.x if isinstance(x, AdaLNInput) else x
        if len(self.consumers) == 1 or torch.is_grad_enabled() or tensor.is_inference():
            return self.code(x)
        last = self.last
        if last is not None and last.is_for(consumer, x, tensor._version):
            self.last = last if last.left else None
            return last.codes
        codes = self.code(x)
        if codes is not x:
            left = self.consumers - {consumer}
            self.last = _Last(ref(x, self._forget), tensor._version, codes, left)
        return codes

    def _forget(self, x: ref[Tensor | AdaLNInput]) -> None:
        last = self.last
        if last is not None and last.x is x:
            self.last = None


def _unrounded(transform: Transform | None, backend: Reference, x: Tensor | AdaLNInput) -> Tensor:
    tokens = backend.tokens(x)
    tokens = tokens if transform is None else transform(tokens.float())
    return tokens.reshape(-1, tokens.shape[-1])


def _after(
    first: Callable[[Tensor], Tensor], code: RowsOf, backend: Reference, x: Tensor | AdaLNInput
) -> Coded:
    return code(first(backend.tokens(x)))


def _brought(stage: InputStage, backend: Reference, x: Tensor | AdaLNInput) -> Coded:
    """Parts of the stage are used by other ways than their forward, which would bring them."""
    with brought(stage.transform, stage.principal, stage.activation):
        return stage.coder(backend)(x)
