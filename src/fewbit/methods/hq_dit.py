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

from collections.abc import Iterator, Mapping, Sequence
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
from fewbit.models import Layer, Role
from fewbit.rounding.clipping import least_error, no_clipping
from fewbit.rounding.gptq import Order, gptq
from fewbit.rounding.grid import ChoiceGrid, Grid, round_to_nearest
from fewbit.rounding.selection import best_for_all, by_error, by_ratio
from fewbit.transforms.chain import Chain
from fewbit.transforms.hadamard import Block, Hadamard, HadamardTransform
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

MUCH_WORSE = 1.25  # 1 dB: less is chance


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


@dataclass(frozen=True)
class _Input:
    """One tensor on its way to all layers that read it."""

    readers: tuple[str, ...]
    seen: Seen
    transform: Transform | None
    stage: InputStage | None  # holds the transform, unless that is folded into other weights


def solve(job: BlockJob, settings: Settings) -> None:
    seen = job.observe()
    folded = _fold_into_values(job, seen, settings)
    inputs = [_input(job, number, seen, folded, settings) for number in range(len(job.groups))]
    _warn_where_worse(job, inputs)
    for one in inputs:
        _solve(job, one, settings)


def _fold_into_values(
    job: BlockJob, seen: Mapping[str, Seen], settings: Settings
) -> dict[str, Transform]:
    """The transforms of what attention gives, by the layers that read it; free of run-time cost.

    Attention mixes tokens and not channels, so the value projections can give it transformed.
    """
    folded: dict[str, Transform] = {}
    for number, attention in enumerate(job.attentions):
        channels = job.linear(attention.outs[0]).in_features
        values = [_value_rows(job, name) for name in attention.values]
        if any(len(weight) != channels for weight, _ in values):
            continue  # several heads read one value head
        head = Hadamard.for_width(attention.head_width, 0, block="auto")
        rotation = Hadamard(channels, head.order, job.seed_of(number))
        outs = [seen[name] for name in attention.outs]
        transform = _transform(job, attention.outs, outs, rotation, settings)
        if transform is not None:
            for weight, bias in values:
                weight.copy_(transform(weight.float().T).T)
                if bias is not None:
                    bias.copy_(transform(bias.float()))
            folded |= dict.fromkeys(attention.outs, transform)
    return folded


def _value_rows(job: BlockJob, name: str) -> tuple[Tensor, Tensor | None]:
    """The rows of a projection that give values: of a joint one the last third."""
    linear = job.linear(name)
    rows = linear.out_features // (3 if job.role(name) is Role.QKV else 1)
    bias = None if linear.bias is None else linear.bias.detach()[-rows:]
    return linear.weight.detach()[-rows:], bias


def _input(
    job: BlockJob,
    number: int,
    seen: Mapping[str, Seen],
    folded: Mapping[str, Transform],
    settings: Settings,
) -> _Input:
    """Sections 3.2 and 3.3 for the inputs; those that are not rounded stay as they are."""
    readers = job.groups[number]
    look, spec = seen[readers[0]], job.rules[readers[0]].activation
    if spec is None:
        return _Input(readers, look, None, None)
    transform = folded.get(readers[0])
    if transform is not None:
        activation = Dynamic(_activation_spec(spec, look, transform, settings))
        stage = InputStage(None, activation, folded=transform.extra_repr())
        return _Input(readers, look, transform, stage)
    width, seed = job.linear(readers[0]).in_features, job.seed_of(100 + number)
    rotation = Hadamard.for_width(width, seed, block=settings.block) if settings.hadamard else None
    transform = _transform(job, readers, [look], rotation, settings)
    activation = Dynamic(_activation_spec(spec, look, transform, settings))
    return _Input(readers, look, transform, InputStage(transform, activation))


def _transform(
    job: BlockJob,
    readers: Sequence[str],
    seen: Sequence[Seen],
    rotation: Hadamard | None,
    settings: Settings,
) -> Transform | None:
    """Section 3.2, for all that these layers read."""
    parts: list[Transform] = []
    if settings.smooth is not None:
        loud = torch.stack([look.rms for look in seen]).norm(dim=0)
        heavy = torch.cat([job.weight(name).float() for name in readers]).norm(dim=0)
        parts.append(Smooth(smoothing_scales(loud, heavy, settings.smooth)))
    if settings.hadamard and rotation is not None:
        parts.append(HadamardTransform(rotation))
    if len(parts) == 2:
        return Chain(parts)
    return parts[0] if parts else None


def _activation_spec(
    spec: Spec, seen: Seen, transform: Transform | None, settings: Settings
) -> Spec:
    if settings.activation_format == "fixed":
        return spec
    sample = seen.sample if transform is None else transform(seen.sample)
    candidates = (replace(spec, format=fmt) for fmt in CANDIDATES.get(spec.format.bits, ()))
    return best_for_all(sample, (spec, *candidates))


def _warn_where_worse(job: BlockJob, inputs: Sequence[_Input]) -> None:
    worse = [
        f"{job.path(name)} ({100 * before:.2g}% -> {100 * after:.2g}%)"
        for one in inputs
        for name, before, after in _plain_losses(job, one)
        if after > MUCH_WORSE * before
    ]
    if worse:
        job.warn(
            f"{job.name}: the transform makes plain rounding lose more of the output in "
            f"{', '.join(worse)}; where a few inputs are far louder than the rest, smooth=0.5 helps"
        )


def _plain_losses(job: BlockJob, given: _Input) -> Iterator[tuple[str, float, float]]:
    """By plain rounding of both sides of the product: without the transform, and with it."""
    transform, activation = given.transform, given.stage and given.stage.activation
    if transform is None or activation is None:
        return
    x = given.seen.sample
    for name in given.readers:
        rule, weight = Rule(job.rules[name].weight, activation.spec), job.weight(name).float()
        exact = x @ weight.T
        before = _lost(x, weight, rule, exact)
        yield name, before, _lost(transform(x), transform.weight(weight), rule, exact)


def _solve(job: BlockJob, given: _Input, settings: Settings) -> None:
    transform, moments = given.transform, given.seen.moments
    if transform is not None:
        moments = transform(transform(moments).T)
    for name in given.readers:
        linear, weight = job.linear(name), job.weight(name).float()
        target = weight if transform is None else transform.weight(weight)
        packed = _round(job, name, target, moments, settings)
        job.replace(name, QLinear(packed, linear.bias, given.stage), target)


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
