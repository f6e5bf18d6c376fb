"""portable: calibrated rounding inside the formats that other runtimes read.

Each of its bits is a format of `fewbit.export`. A format says all that may be done at run time:
those of ComfyUI with integer inputs rotate them by ConvRot's regular Hadamard matrices, others take
inputs as they come. Weights are rounded by GPTQ on the grid of the format, and then every column
once more, given all others (QuantEase). So a file has the size and the speed of any other of its
format, and loses less.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fewbit.activations.dynamic import Dynamic
from fewbit.errors import BadCalibration
from fewbit.formats import FORMATS, MXFP4, NVFP4, QTensor, Spec
from fewbit.layers.linear import QLinear
from fewbit.layers.stage import InputStage
from fewbit.methods.method import BlockJob, Method, Rule
from fewbit.methods.settings import Calibrated, setting
from fewbit.models import Layer
from fewbit.rounding.clipping import least_error, no_clipping
from fewbit.rounding.compensated import compensated
from fewbit.transforms.regular_hadamard import RegularHadamard, usual_block
from fewbit.transforms.transform import Transform

INT8, INT4 = Spec(FORMATS["int8"]), Spec(FORMATS["int4"])
MULTIPLE_OF_W4A4 = 64  # columns


def _gguf(name: str) -> Rule:
    """A modulation in 8 bits is in blocks too."""
    return Rule(Spec.parse(f"{name}/g32/gguf"), wide=Spec.parse("int8/g32/gguf"))


VARIANTS = {
    "comfy-w4a8": Rule(Spec.parse("lut16/g16/table"), INT8),
    "comfy-int8": Rule(INT8, INT8),
    "comfy-convrot-w4a4": Rule(INT4, INT4),
    "comfy-nvfp4": Rule(NVFP4),
    "gguf-q8_0": _gguf("int8"),
    "gguf-q5_1": _gguf("uint5"),
    "gguf-q5_0": _gguf("int5"),
    "gguf-q4_1": _gguf("uint4"),
    "gguf-q4_0": _gguf("int4"),
    "gguf-mxfp4": Rule(MXFP4, wide=Spec.parse("int8/g32/gguf")),
}


@dataclass(frozen=True)
class Settings(Calibrated):
    gptq: bool = setting(True, help="round weights by GPTQ, not to the nearest level")
    sweeps: int = setting(2, least=0, help="how often all columns are rounded again after GPTQ")
    damping: float = setting(
        0.01, above=0, below=1, help="damping of the second moments, as a share of their mean"
    )
    clip: bool = setting(True, help="scales may lie below the largest weight where that loses less")


def rule(layer: Layer, variant: Rule, settings: Settings) -> Rule | None:
    """A layer whose columns the format has no groups for stays as it is."""
    width, span = layer.shape[1], variant.weight.span
    multiple = MULTIPLE_OF_W4A4 if variant.weight == INT4 else span if isinstance(span, int) else 1
    rotated = variant.activation is None or usual_block(width) is not None
    return variant if rotated and width % multiple == 0 else None


def solve(job: BlockJob, settings: Settings) -> None:
    seen = job.observe()
    for group in job.groups:
        spec, transform, stage = job.rules[group[0]].activation, None, None
        if spec is not None:
            transform = _rotation(job.linear(group[0]).in_features)
            stage = InputStage(transform, Dynamic(spec))
        moments = seen[group[0]].after(transform).moments
        for name in group:
            weight = job.weight(name).float()
            target = weight if transform is None else transform.weight(weight)
            packed = _round(job, name, target, moments, settings)
            job.replace(name, QLinear(packed, job.linear(name).bias, stage), target)


def _rotation(width: int) -> Transform:
    block = usual_block(width)
    assert block is not None
    return RegularHadamard(width, block)


def _round(
    job: BlockJob, name: str, target: Tensor, moments: Tensor, settings: Settings
) -> QTensor:
    spec, fit = job.rules[name].weight, least_error if settings.clip else no_clipping
    if not settings.gptq:
        return QTensor.quantize(target, spec)
    damping, sweeps = settings.damping, settings.sweeps
    try:
        return compensated(target, moments, spec, fit, damping=damping, sweeps=sweeps)
    except BadCalibration as error:
        raise BadCalibration(f"{name}: {error}") from None


METHOD = Method(
    "portable",
    "calibrated rounding inside the formats of ComfyUI and GGUF, for `fewbit export`",
    VARIANTS,
    Settings,
    rule,
    solve,
    presets={"fast": {"samples": 64, "sweeps": 0}},
)
