"""Inputs quantized at run time, each token by its own range: no calibration, no batch mates."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fewbit.activations.activation import Activation, refuse_stored_levels
from fewbit.errors import BadArgument
from fewbit.formats import Spec
from fewbit.kernels.choose import backend_for
from fewbit.kernels.reference import Coder, Reference, Splitter
from fewbit.kernels.values import Rotation

KIND = "dynamic"


class Dynamic(Activation):
    """Rounds every row to `spec`, the scales taken from the row itself."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        refuse_stored_levels(spec)
        if spec.span == "tensor" or spec.scale.outer == "tensor":
            raise BadArgument(
                f"dynamic activations cannot use {spec}: one range for a whole batch would make "
                "an image depend on its batch mates; give each row or group its own"
            )
        self.spec = spec

    @property
    def code_spec(self) -> Spec:
        return self.spec

    def check_width(self, columns: int) -> None:
        self.spec.groups(columns)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        backend = backend_for(x)
        if backend.accepts_codes(self.spec):
            return self.coder(backend, None)(rows).values().view(x.shape)
        return self.spec.round(rows).view(x.shape)

    def coder(self, backend: Reference, rotation: Rotation | None) -> Coder:
        if not backend.accepts_codes(self.spec):
            return super().coder(backend, rotation)
        return backend.coder(self.spec, rotation)

    def splitter(
        self, backend: Reference, rotation: Rotation | None, directions: Tensor
    ) -> Splitter:
        if not backend.accepts_codes(self.spec):
            return super().splitter(backend, rotation, directions)
        return backend.splitter(directions, rotation, self.spec)

    def config(self) -> dict[str, Any]:
        return {"kind": KIND, "spec": str(self.spec)}

    def extra_repr(self) -> str:
        return str(self.spec)


def from_config(config: dict[str, Any]) -> Dynamic:
    return Dynamic(Spec.parse(config["spec"]))
