"""What a graph has words for: integer weights with scales, and inputs in steps known beforehand."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fewbit.activations.static import Static
from fewbit.errors import BadModel
from fewbit.formats import FORMATS, Spec
from fewbit.kernels.values import Weight, has_integers
from fewbit.layers.linear import QLinear
from fewbit.layers.stage import InputStage
from fewbit.transforms.smooth import Smooth

INT8 = Spec(FORMATS["int8"])
FITTING = (
    "recipes that make what it has: tq-dit with tgq=False, mrq=False and attention='skip'; "
    "portable with bits 'gguf-q8_0' or 'gguf-q4_0'; rtn with bits 'w8a8'"
)


@dataclass(frozen=True)
class GraphLayer:
    """The product of an input, divided by `smooth` and rounded, with codes times scales."""

    codes: Tensor  # int8 [rows, groups, columns of a group]
    scales: Tensor  # float32 [rows, groups, 1]
    bits: int  # that hold the codes, 4 or 8
    bias: Tensor | None
    smooth: Tensor | None = None
    step: float | None = None  # of the input, if it is rounded to steps
    levels: tuple[int, int] = (0, 0)  # the lowest and the highest, in steps
    dynamic: bool = False  # whether the runtime rounds the input to int8, in groups of its own

    @property
    def range(self) -> tuple[float, float] | None:
        """Beyond which the input is clipped."""
        if self.step is None:
            return None
        lowest, highest = self.levels
        return self.step * lowest, self.step * highest

    @property
    def rows(self) -> int:
        return len(self.codes)

    @property
    def group(self) -> int:
        return self.codes.shape[2]

    @property
    def columns(self) -> int:
        return self.codes.shape[1] * self.group


def graph_layer(name: str, layer: QLinear, graph: str) -> GraphLayer:
    """The layer for a graph of that kind; an error if there is more to it."""
    if not has_integers(layer.spec):
        raise BadModel(f"{name} is stored as {layer.spec}, {unfit(graph)}")
    weight = Weight(layer.packed_weight)
    scales = weight.integer_scales()[..., None].contiguous()
    codes = weight.integers().view(*scales.shape[:2], -1)
    bits = 4 if codes.min() >= -8 and codes.max() <= 7 else 8
    made = GraphLayer(codes, scales, bits, layer.bias)
    stage = layer.stage
    if stage is None:
        return made
    if stage.principal is not None or not isinstance(stage.transform, Smooth | None):
        raise _refused(name, stage, graph)
    smooth = None if stage.transform is None else stage.transform.scales
    step, levels, dynamic = _rounding(name, stage, graph)
    return GraphLayer(codes, scales, bits, layer.bias, smooth, step, levels, dynamic)


def unfit(graph: str) -> str:
    return f"which a graph of {graph} has no place for; {FITTING}"


def _rounding(
    name: str, stage: InputStage, graph: str
) -> tuple[float | None, tuple[int, int], bool]:
    """Of the input: its step, its levels, or that the runtime finds both."""
    activation = stage.activation
    if activation is None:
        return None, (0, 0), False
    if isinstance(activation, Static) and activation.steps.numel() == 1:
        fmt = activation.spec.format
        if fmt.codes_are_levels:
            return float(activation.steps), (int(fmt.min), int(fmt.max)), False
    if activation.config()["kind"] == "dynamic" and activation.code_spec == INT8:
        return None, (0, 0), True
    raise _refused(name, stage, graph)


def _refused(name: str, stage: InputStage, graph: str) -> BadModel:
    return BadModel(f"{name} has the input {stage}, {unfit(graph)}")
