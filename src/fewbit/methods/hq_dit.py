"""HQ-DiT (Liu and Zhang, 2024): 4-bit floating-point weights and activations.

Section 3.2  rotate the input by a randomized Hadamard matrix and the weight by the same, which
             spreads the few loud channels of a diffusion transformer over all of them
Section 3.3  give each layer the 4-bit float whose range fits its rotated weight
Section 3.4  round the weight by GPTQ on that float's grid

No code was published. Where the paper is silent: formats are compared on a logarithmic scale, the
rotation's signs are random, the scale of a row may lie below its largest weight (`clip`), and the
modulation linear, which sees one row per image, keeps its input and takes `adaln` weights.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fewbit.activations.dynamic import Dynamic
from fewbit.calibration.observe import Seen
from fewbit.errors import BadArgument, BadCalibration
from fewbit.formats import FORMATS, Format, FormatChoice, QTensor, Spec
from fewbit.input_stage import InputStage
from fewbit.linear import QLinear
from fewbit.methods.contract import BlockJob, Rule, one_of, within
from fewbit.models import Attention, Layer, Role
from fewbit.rounding.clipping import least_error, no_clipping
from fewbit.rounding.gptq import Order, gptq
from fewbit.rounding.grid import ChoiceGrid, Grid, round_to_nearest
from fewbit.rounding.selection import best_for_all, by_error, by_ratio
from fewbit.transforms.chain import Chain
from fewbit.transforms.hadamard import (
    Block,
    Hadamard,
    HadamardTransform,
    rotate_heads_in,
    rotate_heads_out,
)
from fewbit.transforms.smooth import Smooth, smoothing_scales
from fewbit.transforms.transform import Transform

NAME = "hq-dit"
SUMMARY = "FP4 weights and activations: Hadamard rotation, format selection, GPTQ on floats"
CALIBRATED = True
PRESETS = {"fast": {"samples": 64}}


def _row(name: str) -> Spec:
    return Spec(FORMATS[name])


VARIANTS = {
    "w4a4": Rule(_row("e2m1"), _row("e2m1")),
    "w4a6": Rule(_row("e2m1"), _row("e2m3")),
    "w4a8": Rule(_row("e2m1"), _row("int8")),
    "w3a4": Rule(_row("e2m0"), _row("e2m1")),
}
CANDIDATES = {
    4: tuple(FORMATS[name] for name in ("e3m0", "e2m1", "e1m2")),
    3: tuple(FORMATS[name] for name in ("e2m0", "e1m1")),
}


@dataclass(frozen=True)
class Settings:
    samples: int = 512  # forward rows seen in calibration
    hadamard: bool = True
    block: Block = "auto"  # of the rotation: a size, None for the full width, "auto"
    selection: str = "ratio"  # of the weight's format: "ratio", "mse" or "off"
    selection_per: str = "layer"  # or "channel": every output channel has its own
    alpha: float = 0.25  # of the quantile in the ratio
    activation_format: str = "fixed"  # or "auto": per layer, by error on calibration inputs
    gptq: bool = True
    damping: float = 0.01
    order: Order = "natural"  # or "activation": loudest channels first
    clip: bool = True  # scales may lie below the largest weight where that loses less
    propagate: bool = True  # later blocks see what the quantized earlier ones give
    smooth: float | None = None  # strength of per-channel smoothing before the rotation
    adaln: str = "int8"  # the modulation linear, weight-only: "same", "int8" or "keep"

    def __post_init__(self) -> None:
        for name in ("hadamard", "gptq", "clip", "propagate"):
            one_of(name, getattr(self, name), (True, False))
        one_of("selection", self.selection, ("ratio", "mse", "off"))
        one_of("selection_per", self.selection_per, ("layer", "channel"))
        one_of("activation_format", self.activation_format, ("fixed", "auto"))
        one_of("order", self.order, ("natural", "activation"))
        one_of("adaln", self.adaln, ("same", "int8", "keep"))
        within("alpha", self.alpha, 0, 1)
        within("samples", self.samples, 0, None)
        within("damping", self.damping, 0, 1)
        if self.smooth is not None:
            within("smooth", self.smooth, 0, 1)
        if not (self.block in ("auto", None) or (type(self.block) is int and self.block > 1)):
            raise BadArgument(f"setting block cannot be {self.block!r}; allowed: auto, None, N > 1")


def rule(layer: Layer, variant: Rule, settings: Settings) -> Rule | None:
    if layer.role is not Role.ADALN:
        return variant
    weight = {"same": variant.weight, "int8": _row("int8"), "keep": None}[settings.adaln]
    return None if weight is None else Rule(weight)


def solve(job: BlockJob, settings: Settings) -> None:
    if settings.hadamard:
        for number, attention in enumerate(job.attentions):
            _rotate_heads(job, attention, seed=job.seed_of(number))
    seen = job.observe()
    worse: dict[str, str] = {}
    for number, group in enumerate(job.groups):
        seed = job.seed_of(100 + number)
        worse |= _solve_group(job, group, seen[group[0]], settings, seed)
    if worse:
        listed = ", ".join(f"{job.path(name)} ({change})" for name, change in worse.items())
        job.warn(
            f"{job.name}: the transform makes plain rounding lose more of the output in {listed}; "
            "where a few inputs are far louder than the rest, smooth=0.5 helps"
        )


def _solve_group(
    job: BlockJob, group: tuple[str, ...], seen: Seen, settings: Settings, seed: int
) -> dict[str, str]:
    """All layers that read one tensor: one transform and one quantized input for them.

    Returns the layers that the transform makes worse, and by how much.
    """
    worse = {}
    transform = _transform(job, group, seen, settings, seed)
    activation = _activation_spec(job.rules[group[0]].activation, seen, transform, settings)
    dynamic = None if activation is None else Dynamic(activation)
    stage = InputStage(transform, dynamic) if transform or dynamic else None
    moments = seen.moments if transform is None else transform(transform(seen.moments).T)
    for name in group:
        linear, weight = job.linear(name), job.weight(name).float()
        target = weight if transform is None else transform.weight(weight)
        packed = _round(job, name, target, moments, settings)
        job.replace(name, QLinear(packed, linear.bias, stage), target)
        if transform is not None and activation is not None:
            rule = Rule(job.rules[name].weight, activation)
            before = _lost(seen.sample, weight, rule, seen.sample @ weight.T)
            after = _lost(transform(seen.sample), target, rule, seen.sample @ weight.T)
            if after > before:
                worse[name] = f"{100 * before:.2g}% -> {100 * after:.2g}%"
    return worse


def _rotate_heads(job: BlockJob, attention: Attention, seed: int) -> None:
    """Free of run-time cost: V emits rotated heads and the output projection expects them."""
    head = Hadamard.for_width(attention.head_width, seed, block="auto")
    for name in attention.values:
        linear = job.linear(name)
        rows = linear.out_features // (3 if job.role(name) is Role.QKV else 1)
        weight, bias = linear.weight.data, None if linear.bias is None else linear.bias.data
        heads = rows // attention.head_width
        rotated, rotated_bias = rotate_heads_out(
            weight[-rows:], None if bias is None else bias[-rows:], heads, head
        )
        weight[-rows:] = rotated
        if bias is not None and rotated_bias is not None:
            bias[-rows:] = rotated_bias
    for name in attention.outs:
        linear = job.linear(name)
        heads = linear.in_features // attention.head_width
        linear.weight.data = rotate_heads_in(linear.weight.data, heads, head)


def _transform(
    job: BlockJob, group: tuple[str, ...], seen: Seen, settings: Settings, seed: int
) -> Transform | None:
    """What happens to an input at run time; nothing where it is not quantized."""
    if job.rules[group[0]].activation is None:
        return None
    parts: list[Transform] = []
    if settings.smooth is not None:
        largest = torch.stack([job.weight(name).abs().amax(0) for name in group]).amax(0)
        parts.append(Smooth(smoothing_scales(seen.absmax, largest.float(), settings.smooth)))
    if settings.hadamard and not _rotated_offline(job, group):
        width = job.weight(group[0]).shape[1]
        parts.append(HadamardTransform(Hadamard.for_width(width, seed, block=settings.block)))
    if len(parts) == 2:
        return Chain(parts)
    return parts[0] if parts else None


def _rotated_offline(job: BlockJob, group: tuple[str, ...]) -> bool:
    return any(name in attention.outs for attention in job.attentions for name in group)


def _activation_spec(
    spec: Spec | None, seen: Seen, transform: Transform | None, settings: Settings
) -> Spec | None:
    if spec is None or settings.activation_format == "fixed":
        return spec
    sample = seen.sample if transform is None else transform(seen.sample)
    candidates = (replace(spec, format=fmt) for fmt in CANDIDATES.get(spec.format.bits, ()))
    return best_for_all(sample, (spec, *candidates))


def _grid(spec: Spec, target: Tensor, settings: Settings) -> Grid | ChoiceGrid:
    """Section 3.3: which few-bit float, for the layer or for each row; others are as given."""
    fit = least_error if settings.clip else no_clipping
    candidates = CANDIDATES.get(spec.format.bits, ())
    if spec.format not in candidates or settings.selection == "off":
        return Grid(spec, target, fit)
    if settings.selection_per == "layer":
        return Grid(_spec_of_layer(spec, target, candidates, settings), target, fit)
    if settings.selection == "ratio":
        choices = by_ratio(target, candidates, settings.alpha)
    else:
        choices = by_error(target, [replace(spec, format=fmt) for fmt in candidates])
    return ChoiceGrid(replace(spec, format=FormatChoice(candidates)), target, fit, choices)


def _spec_of_layer(
    spec: Spec, target: Tensor, candidates: tuple[Format, ...], settings: Settings
) -> Spec:
    if settings.selection == "ratio":
        chosen = int(by_ratio(target.reshape(1, -1), candidates, settings.alpha))
        return replace(spec, format=candidates[chosen])
    return best_for_all(target, [replace(spec, format=fmt) for fmt in candidates])


def _round(
    job: BlockJob, name: str, target: Tensor, moments: Tensor, settings: Settings
) -> QTensor:
    """Section 3.4: every column corrected for the errors of those before it."""
    grid = _grid(job.rules[name].weight, target, settings)
    if not settings.gptq:
        return round_to_nearest(target, grid)
    try:
        solution = gptq(target, moments, grid, damping=settings.damping, order=settings.order)
    except BadCalibration as error:
        raise BadCalibration(f"{name}: {error}") from None
    if solution.damping > settings.damping:
        job.warn(f"{name}: damping raised to {solution.damping:g} to invert the second moments")
    return QTensor.quantize(solution.values, grid.spec, grid.scales())


def _lost(x: Tensor, weight: Tensor, rule: Rule, exact: Tensor) -> float:
    """The share of the output's energy that plain rounding of both sides loses."""
    assert rule.activation is not None
    rounded = rule.activation.round(x) @ rule.weight.round(weight).T
    return float((rounded - exact).square().sum() / exact.square().sum())
