"""Plain rounding: every weight to its nearest level, every input by its token's own range.

No data, no search: the floor that every other method is measured against. The rule for mxfp4 and
nvfp4 follows the OCP MX specification and NVIDIA's description, but for the outer scale of nvfp4
inputs, which is per token instead of per tensor so that images in a batch do not touch each other.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from fewbit.activations.dynamic import Dynamic
from fewbit.errors import BadArgument
from fewbit.formats import FORMATS, MXFP4, NVFP4, NVFP4_TOKEN, QTensor, Spec
from fewbit.layers.linear import QLinear
from fewbit.layers.stage import InputStage
from fewbit.methods.method import BlockJob, Method, Rule
from fewbit.methods.settings import Common, setting
from fewbit.models import Layer


def _row(name: str) -> Spec:
    return Spec(FORMATS[name])


VARIANTS = {
    "w4a4": Rule(_row("e2m1"), _row("e2m1")),
    "w8a8": Rule(_row("int8"), _row("int8")),
    "w6a6": Rule(_row("int6"), _row("int6")),
    "w4a8": Rule(_row("e2m1"), _row("int8")),
    "w4a6": Rule(_row("e2m1"), _row("int6")),
    "w4a16": Rule(_row("e2m1")),
    "w2a16": Rule(_row("int2")),
    "mxfp4": Rule(MXFP4, MXFP4),
    "nvfp4": Rule(NVFP4, NVFP4_TOKEN),
}


@dataclass(frozen=True)
class Settings(Common):
    group_size: int | None = setting(
        None,
        number=int,
        least=1,
        allowed=(None,),
        help="how many columns share a weight scale; None: a whole row",
    )
    asymmetric: bool = setting(False, help="integer weights have a zero point")


def rule(layer: Layer, variant: Rule, settings: Settings) -> Rule:
    return replace(variant, weight=_weight_spec(variant.weight, settings))


def _weight_spec(spec: Spec, settings: Settings) -> Spec:
    if settings.group_size is not None:
        spec = replace(spec, span=settings.group_size)
    if not settings.asymmetric:
        return spec
    unsigned = f"u{spec.format}"
    if unsigned not in FORMATS:
        raise BadArgument(
            f"asymmetric weights need an integer format, not {spec.format}; "
            "bits with integer weights: w8a8, w6a6, w2a16"
        )
    return replace(spec, format=FORMATS[unsigned])


def solve(job: BlockJob, settings: Settings) -> None:
    for group in job.groups:
        activation = job.rules[group[0]].activation
        stage = InputStage(activation=Dynamic(activation)) if activation else None
        for name in group:
            linear, weight = job.linear(name), job.weight(name)
            packed = QTensor.quantize(weight, job.rules[name].weight)
            job.replace(name, QLinear(packed, linear.bias, stage), target=weight)


METHOD = Method(
    "rtn",
    "plain rounding to nearest: no data, no search, the floor for all others",
    VARIANTS,
    Settings,
    rule,
    solve,
)
