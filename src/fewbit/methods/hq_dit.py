"""HQ-DiT (Liu and Zhang, 2024): 4-bit floating-point weights and activations.

Section 3.2  rotate the input by a randomized Hadamard matrix and the weight by the same, which
             spreads the few loud channels of a diffusion transformer over all of them
Section 3.3  give each layer the 4-bit float whose range fits its rotated weight
Section 3.4  round the weight by GPTQ on that float's grid

No code was published. Where the paper is silent: formats are compared on a logarithmic scale, after
rows are divided by their own scale; the rotation's signs are random, the scale of a row may lie
below its largest weight (`clip`), and the modulation linear, which sees one row per image, keeps
its input and takes `adaln` weights. Beyond the paper each input may be smoothed, before the
rotation or instead of it, where that loses less (`transform`), and may keep its strongest
`directions` in int8.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fewbit.activations.dynamic import Dynamic
from fewbit.calibration.observe import InputStats
from fewbit.errors import BadArgument, BadCalibration
from fewbit.formats import FORMATS, FormatChoice, QTensor, Spec
from fewbit.layers.linear import QLinear
from fewbit.layers.stage import InputStage
from fewbit.methods.method import BlockJob, Method, Rule
from fewbit.methods.settings import Calibrated, setting
from fewbit.models import Attention, Layer
from fewbit.rounding.clipping import least_error, no_clipping
from fewbit.rounding.gptq import Order, gptq
from fewbit.rounding.grid import ChoiceGrid, Grid, round_to_nearest
from fewbit.rounding.selection import best_for_all, by_error, by_ratio, in_scale
from fewbit.transforms.chain import Chain
from fewbit.transforms.fit import Consumer, least_lost, loudness
from fewbit.transforms.hadamard import Block, Hadamard, HadamardTransform, allowed_blocks
from fewbit.transforms.principal import Principal, check_rank, principal
from fewbit.transforms.smooth import Smooth, smoothing_scales
from fewbit.transforms.transform import Transform


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
class Settings(Calibrated):
    transform: str = setting(
        "auto",
        allowed=("auto", "all"),
        help="auto: each input gets what loses least (smoothing, rotation, both, none); all: both",
    )
    hadamard: bool = setting(True, help="rotate inputs, and weights with them")
    block: Block = setting(
        "auto",
        number=int,
        least=2,
        allowed=("auto", None),
        help="size of the rotated blocks; None: the full width; auto: that or the largest there is",
    )
    selection: str = setting(
        "ratio",
        allowed=("ratio", "mse", "off"),
        help="how the format of a weight is chosen: by the paper's ratio, by error, or not at all",
    )
    selection_per: str = setting(
        "layer",
        allowed=("layer", "channel"),
        help="whether a layer or each channel has a weight format of its own",
    )
    alpha: float = setting(
        0.25, above=0, below=1, help="which quantile of the weights stands in the paper's ratio"
    )
    activation_format: str = setting(
        "fixed",
        allowed=("fixed", "auto"),
        help="auto: each layer gets the input format of least error on calibration data",
    )
    gptq: bool = setting(True, help="round weights by GPTQ, not to the nearest level")
    damping: float = setting(
        0.01, above=0, below=1, help="damping of GPTQ's second moments, as a share of their mean"
    )
    order: Order = setting(
        "natural",
        allowed=("natural", "activation"),
        help="order of GPTQ's columns; activation: the loudest channels first",
    )
    clip: bool = setting(True, help="scales may lie below the largest weight where that loses less")
    smooth: float | None = setting(
        0.5,
        above=0,
        below=1,
        allowed=(None,),
        help="strength of the smoothing of channels, before a rotation; None: no smoothing",
    )
    directions: int = setting(
        0, least=0, help="so many of the strongest directions of each input are kept in int8"
    )


def rule(layer: Layer, variant: Rule, settings: Settings) -> Rule:
    _check_width(layer, settings)
    rank = 0 if variant.activation is None else settings.directions
    return replace(variant, directions=rank)


def _check_width(layer: Layer, settings: Settings) -> None:
    width = layer.shape[1]
    try:
        _rotation(width, 0, settings)
        if settings.directions:
            check_rank(settings.directions, width)
    except BadArgument as error:
        raise BadArgument(f"{layer.name}: {error}") from None


def solve(job: BlockJob, settings: Settings) -> None:
    seen = job.observe()
    folded: dict[str, str] = {}
    for number, attention in enumerate(job.attentions):
        transform = _value_transform(job, attention, number, seen, settings)
        if transform is not None:
            job.fold_into_values(attention, transform)
            for name in attention.outs:
                seen[name] = seen[name].after(transform)
                folded[name] = transform.extra_repr()
    for number, consumers in enumerate(job.groups):
        first, seed = consumers[0], job.seed_of(100 + number)
        _solve_group(job, consumers, seen[first], folded.get(first), seed, settings)


def _value_transform(
    job: BlockJob,
    attention: Attention,
    number: int,
    seen: Mapping[str, InputStats],
    settings: Settings,
) -> Transform | None:
    """Section 3.2 for what attention gives. It mixes tokens and not channels, so the value
    projections can give it transformed, free of run-time cost; each head is rotated in itself."""
    channels = job.linear(attention.outs[0]).in_features
    if not job.can_fold(attention):
        return None
    rotation = None
    if settings.hadamard and allowed_blocks(attention.head_width):
        head = Hadamard.for_width(attention.head_width, 0, block="auto")
        rotation = Hadamard(channels, head.order, job.seed_of(number))
    looks = {name: seen[name] for name in attention.outs}
    return _transform(job, looks, rotation, settings)


def _solve_group(
    job: BlockJob,
    consumers: tuple[str, ...],
    seen: InputStats,
    folded: str | None,
    seed: int,
    settings: Settings,
) -> None:
    """All layers that read one tensor: one transform and one quantized input for them."""
    spec, transform, apart, stage = job.rules[consumers[0]].activation, None, None, None
    if spec is not None and folded is None:
        width = job.linear(consumers[0]).in_features
        rotation = _rotation(width, seed, settings)
        if settings.hadamard and rotation is None:
            job.warn(f"{', '.join(consumers)}: no rotation, for the width {width} allows none")
        transform = _transform(job, dict.fromkeys(consumers, seen), rotation, settings)
    seen, targets = seen.after(transform), {}
    for name in consumers:
        weight = job.weight(name).float()
        targets[name] = weight if transform is None else transform.weight(weight)
    if spec is not None:
        apart = _directions(seen, job.rules[consumers[0]])
        rest = seen if apart is None else seen.after(apart.rest)
        spec = _activation_spec(spec, rest, targets.values(), settings)
        stage = InputStage(transform, Dynamic(spec), folded, apart)
    for name, target in targets.items():
        packed = _round(job, name, target, seen.moments, settings)
        job.replace(name, QLinear(packed, job.linear(name).bias, stage), target)


def _directions(seen: InputStats, rule: Rule) -> Principal | None:
    return principal(seen.moments, rule.directions) if rule.directions else None


def _rotation(width: int, seed: int, settings: Settings) -> Hadamard | None:
    """None also for an odd width, unless its size was asked for."""
    odd = settings.block == "auto" and not allowed_blocks(width)
    if odd or not settings.hadamard:
        return None
    return Hadamard.for_width(width, seed, block=settings.block)


def _transform(
    job: BlockJob, seen: Mapping[str, InputStats], rotation: Hadamard | None, settings: Settings
) -> Transform | None:
    """Section 3.2, for the layers that `seen` names and what each of them reads."""
    consumers = [job.consumer(name, look) for name, look in seen.items()]
    parts: list[Transform] = []
    if settings.smooth is not None:
        parts.append(Smooth(smoothing_scales(*loudness(consumers), settings.smooth)))
    if rotation is not None:
        parts.append(HadamardTransform(rotation))
    both = [Chain(parts)] if len(parts) == 2 else []
    if settings.transform == "all":
        transform = next(iter(both or parts), None)
        _warn_where_worse(job, dict(zip(seen, consumers, strict=True)), transform)
        return transform
    return least_lost((*both, *reversed(parts), None), consumers)


def _warn_where_worse(
    job: BlockJob, consumers: Mapping[str, Consumer], transform: Transform | None
) -> None:
    """Where plain rounding of input and weight loses more with the transform than without."""
    lost = {name: (one.lost(None), one.lost(transform)) for name, one in consumers.items()}
    worse = [
        f"{job.path(name)} ({100 * before:.2g}% -> {100 * after:.2g}%)"
        for name, (before, after) in lost.items()
        if after > MUCH_WORSE * before
    ]
    if worse:
        job.warn(
            f"{job.name}: the transform makes plain rounding lose more of the output in "
            f'{", ".join(worse)}; transform="auto" leaves it out there'
        )


def _activation_spec(
    spec: Spec, seen: InputStats, weights: Iterable[Tensor], settings: Settings
) -> Spec:
    """An error of the input counts by the weights that it meets."""
    if settings.activation_format == "fixed":
        return spec
    candidates = (replace(spec, format=fmt) for fmt in CANDIDATES.get(spec.format.bits, ()))
    heavy = torch.stack([weight.T @ weight for weight in weights]).sum(0)
    return best_for_all(seen.sample, (spec, *candidates), no_clipping, heavy)


def _grid(spec: Spec, target: Tensor, moments: Tensor, settings: Settings) -> Grid | ChoiceGrid:
    """Section 3.3: which few-bit float, for the layer or for each row; others are as given."""
    fit = least_error if settings.clip else no_clipping
    candidates = CANDIDATES.get(spec.format.bits, ())
    if spec.format not in candidates or settings.selection == "off":
        return Grid(spec, target, fit)
    specs = [replace(spec, format=fmt) for fmt in candidates]
    if settings.selection_per == "layer":
        if settings.selection == "mse":
            return Grid(best_for_all(target, specs, fit, moments), target, fit)
        whole = in_scale(target, spec).reshape(1, -1)
        return Grid(specs[int(by_ratio(whole, candidates, settings.alpha))], target, fit)
    if settings.selection == "mse":
        choices = by_error(target, specs, fit, moments)
    else:
        choices = by_ratio(in_scale(target, spec), candidates, settings.alpha)
    return ChoiceGrid(replace(spec, format=FormatChoice(candidates)), target, fit, choices)


def _round(
    job: BlockJob, name: str, target: Tensor, moments: Tensor, settings: Settings
) -> QTensor:
    """Section 3.4: every column corrected for the errors of those before it."""
    grid = _grid(job.rules[name].weight, target, moments, settings)
    if not settings.gptq:
        return round_to_nearest(target, grid)
    try:
        solution = gptq(target, moments, grid, damping=settings.damping, order=settings.order)
    except BadCalibration as error:
        raise BadCalibration(f"{name}: {error}") from None
    if solution.damping > settings.damping:
        job.warn(f"{name}: damping raised to {solution.damping:g} to invert the second moments")
    return QTensor.quantize(solution.values, grid.spec, grid.scales())


METHOD = Method(
    "hq-dit",
    "FP4 weights and activations: Hadamard rotation, format selection, GPTQ on floats",
    VARIANTS,
    Settings,
    rule,
    solve,
    presets={"fast": {"samples": 64}, "published": {"transform": "all", "smooth": None}},
)
