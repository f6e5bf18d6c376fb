"""What every quantizer of inputs is: x to its codes, and to the float32 values they stand for."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from fewbit.errors import BadArgument
from fewbit.formats import Spec
from fewbit.kernels.reference import Coder, Reference, Splitter
from fewbit.kernels.values import AdaLNInput, QuantizedRows, Rotation, SplitRows


class Activation(nn.Module):
    spec: Spec

    @property
    def code_spec(self) -> Spec | None:
        """How the codes are rounded that a product may get; None: it gets float32 values."""
        return None

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """x [..., in], rounded."""

    def coder(self, backend: Reference, rotation: Rotation | None) -> Coder:
        """What turns an input into what a product wants, bound to a backend and a rotation."""
        return partial(self.code, backend, rotation)

    def code(
        self, backend: Reference, rotation: Rotation | None, x: Tensor | AdaLNInput
    ) -> QuantizedRows | Tensor:
        """x, rotated and rounded: integers where the format has them, else float32 values; rows
        [tokens, in] either way."""
        x = rotated(backend, rotation, x)
        return self(x).reshape(-1, x.shape[-1])

    def splitter(
        self, backend: Reference, rotation: Rotation | None, directions: Tensor
    ) -> Splitter:
        """As `coder`, of an input that keeps its components along some directions apart."""
        return partial(_apart, self.coder(backend, None), backend.splitter(directions, rotation))

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """What, beside the stored tensors, builds it again; `kind` names its file's KIND."""

    def check_width(self, columns: int) -> None:
        """Refuse an input of a layer that has not this many columns."""

    def check(self, name: str) -> None:
        """Refuse stored numbers that no writer would write; `name` is where this stands."""

    __call__: Any = nn.Module.__call__


def _apart(code: Coder, split: Splitter, x: Tensor | AdaLNInput) -> SplitRows:
    parts = split(x)
    assert isinstance(parts.main, Tensor)
    return replace(parts, main=code(parts.main.view(x.shape)))


def refuse_stored_levels(spec: Spec) -> None:
    """A choice, a codebook and a table are stored with a matrix, and an input has no store."""
    if spec.format.beside(1):
        raise BadArgument(
            f"an input cannot be rounded to {spec!s:.100}; allowed: formats whose codes have "
            "one meaning"
        )


def rotated(backend: Reference, rotation: Rotation | None, x: Tensor | AdaLNInput) -> Tensor:
    x = backend.tokens(x)
    if rotation is None:
        return x
    return backend.rotate(x.reshape(-1, x.shape[-1]), rotation).view(x.shape)
