"""best: few bits that look like many, by closed forms alone.

Transform     each input is smoothed by (|x| / |W|)^a, rotated, both or neither: whatever loses
              least in the formats that it will have. What attention gives is transformed in the
              value projections before it, free of run-time cost.
Inputs        of 4 bits keep their strongest directions in int8, and those in groups are rounded
              around the mean of their image.
Compensation  layers are solved in the order in which they run, each on what the layers before it
              now give. Its target is the output in full precision, so it makes up for their errors
              (GPTAQ; Li et al., 2025), and its bias for what they change on average.
Rounding      GPTQ, the scale of a group chosen by how loud the inputs are that it meets; then every
              column once more, given all others (QuantEase; Behdin et al., 2023).
Budget        under one, each layer gets the bits, and each input of 4 bits the directions, with
              which the output of the model loses least.

The parts are shared with other methods: `transforms.fit`, `calibration.moments`, `rounding.gptq`,
`rounding.descent`. What each of them brings is in studies/best_ablation.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fewbit.activations.activation import Activation
from fewbit.activations.centred import Centred
from fewbit.activations.dynamic import Dynamic
from fewbit.calibration import BlockStream, CalibrationSet
from fewbit.calibration.expected import lost_by_input, lost_by_weights
from fewbit.calibration.gradients import squared_gradients
from fewbit.calibration.moments import SMALLEST, Paired
from fewbit.calibration.observe import InputStats, Record
from fewbit.errors import BadCalibration
from fewbit.formats import FORMATS, MXFP4, NVFP4, NVFP4_TOKEN, SCALES, Format, Spec
from fewbit.formats.scale import INT8_END, ScaleFormat
from fewbit.layers.linear import QLinear
from fewbit.layers.stage import InputStage
from fewbit.methods.method import BlockJob, Method, Rule, SurveyJob
from fewbit.methods.settings import Budgeted, modulation, setting
from fewbit.models import Layer
from fewbit.rounding.clipping import least_error, no_clipping
from fewbit.rounding.compensated import compensated
from fewbit.transforms.chain import Chain
from fewbit.transforms.fit import least_lost, loudness
from fewbit.transforms.hadamard import Hadamard, HadamardTransform, allowed_blocks
from fewbit.transforms.principal import Principal, principal
from fewbit.transforms.smooth import Smooth, balancing_scales
from fewbit.transforms.transform import Transform

STRENGTHS = (0.25, 0.5, 0.75)  # of the smoothing, beside none
WIDTHS = ("book2", "book3", "book4", "int5", "int6", "int8")  # from which a budget chooses
DIRECTIONS = 16
RANKS = (
    0,
    8,
    16,
    24,
    32,
    48,
    64,
)  # from which a budget chooses; a product hardly feels 64 of 1,152
STEADY = 4  # what an error of the modulation costs more: it is one for all tokens and many steps
LEAST_PART = 3  # of an input's channels: no more directions
GROUP = 32  # columns of a weight that share a scale
SPANS = (GROUP, 24, 16)  # what stands for it
INT8 = Spec(FORMATS["int8"])


def _groups(name: str, scale: str) -> Spec:
    return Spec(FORMATS[name], GROUP, SCALES[scale])


# Integer factors make a row of groups one product of integers, which is quicker than one of float
# scales. Books of fewer levels lose more by them than they gain.
VARIANTS = {
    "w4a8": Rule(_groups("book4", "factor"), INT8),
    "w3a8": Rule(_groups("book3", "fp16"), INT8),
    "w2a8": Rule(_groups("book2", "fp16"), INT8),
    "w4a4": Rule(_groups("book4", "factor"), _groups("book4", "factor")),
    "nvfp4": Rule(NVFP4, NVFP4_TOKEN),
    "mxfp4": Rule(MXFP4, MXFP4),
    "w8a8": Rule(INT8, INT8),
}
PRESETS: dict[str, dict[str, Any]] = {
    "balanced": {"bits": "w4a8", "bits_per_weight": 4.5},
    "small": {"bits": "w3a8", "bits_per_weight": 3.5},
    "tiny": {"bits": "w2a8", "bits_per_weight": 2.5, "sweeps": 5, "surveyed": 128},
    "four": {"bits": "w4a4", "bits_per_weight": 4.7},
    "fp4": {"bits": "nvfp4"},
    "exact": {"bits": "w8a8"},
    "fast": {"samples": 64, "sweeps": 0},
    "max": {"samples": 1024, "sweeps": 6, "surveyed": 512},
}


@dataclass(frozen=True)
class Settings(Budgeted):
    transform: str = setting(
        "auto",
        allowed=("auto", "none"),
        help="auto: each input gets what loses least (smoothing, rotation, both, none); none: none",
    )
    directions: int | str = setting(
        "auto",
        number=int,
        least=0,
        allowed=("auto",),
        help="so many of the strongest directions of an input are kept in int8; auto: 16 beside "
        "inputs of 4 bits, else 0; where there are any, a budget chooses how many",
    )
    centre: bool = setting(True, help="inputs in groups are rounded around the mean of their image")
    compensate: bool = setting(True, help="a layer makes up for the errors of what comes before it")
    bias: bool = setting(True, help="a bias makes up for what rounding changes on average")
    emphasis: float = setting(
        0.0,
        least=0,
        help="timesteps count by what an error there does to the output, to this power; 0: alike",
    )
    clip: bool = setting(True, help="scales may lie below the largest weight where that loses less")
    sweeps: int = setting(2, least=0, help="how often all columns are rounded again after GPTQ")
    damping: float = setting(
        0.01, above=0, below=1, help="damping of the second moments, as a share of their mean"
    )
    surveyed: int = setting(
        64, least=1, help="so many rows of the calibration tell what a budget must know"
    )
    adaln: str = modulation("same")


def rule(layer: Layer, variant: Rule, settings: Settings) -> Rule:
    """The variant; a layer that groups of 32 do not divide gets the largest that do, or one scale
    for each row. The groups of nvfp4 and mxfp4 are those of their standards."""
    width, weight, given = layer.shape[1], variant.weight, variant.activation
    fitting = None if given is None else _fitting(given, width)
    return Rule(_fitting(weight, width), fitting, _count(given, width, settings))


def _fitting(spec: Spec, width: int) -> Spec:
    if spec.span != GROUP or spec.scale is MXFP4.scale:
        return spec
    span = next((size for size in SPANS if width % size == 0), "row")
    return _scaled(spec.format, span, spec.scale) or Spec(spec.format)


def _count(spec: Spec | None, width: int, settings: Settings) -> int:
    """Beside inputs of few bits, and no more than a part of their channels."""
    if settings.directions != "auto":
        return min(int(settings.directions), width // LEAST_PART)
    return min(DIRECTIONS, width // LEAST_PART) if spec is not None and spec.format.bits <= 4 else 0


def survey(job: SurveyJob, settings: Settings) -> dict[str, Tensor]:
    """What layers and inputs lose in their options, where a budget chooses among them; and where
    timesteps do not count alike, how much each row of the calibration counts for each layer."""
    budget = settings.size is not None or settings.bits_per_weight is not None
    if not (settings.emphasis or budget):
        return {}
    data = job.data if settings.emphasis else job.data.some(settings.surveyed, job.seed)
    times = data.timesteps()
    when = torch.zeros(len(data)) if times is None else times
    when = when.unique(return_inverse=True)[1]
    linears = {name: job.model.get_submodule(name) for name in job.layers}
    blocks = [job.model.get_submodule(name) for name in job.blocks]
    felt = squared_gradients(job.model, linears, {}, blocks, data, when, job.seed, job.track)
    found = dict(_losses(job, data, felt, when)) if budget else {}
    if settings.emphasis:
        found |= {name: _counts(one, when, settings.emphasis) for name, one in felt.items()}
    return found


def _counts(felt: Tensor, when: Tensor, emphasis: float = 1.0) -> Tensor:
    """How much each row counts whose time group is `when`; 1 on average over the groups. Rows of a
    layer that the output does not feel at all count alike."""
    means = felt.mean(1).pow(emphasis) if felt.any() else torch.ones(len(felt))
    return (means / means.mean().clamp(min=SMALLEST))[when]


def _losses(
    job: SurveyJob, data: CalibrationSet, felt: Mapping[str, Tensor], when: Tensor
) -> Iterator[tuple[str, Tensor]]:
    """What the output of the model loses where one layer, or its input, has one of its options."""
    blocks = [job.model.get_submodule(name) for name in job.blocks]
    steps = BlockStream(job.model, blocks, data).steps()
    for step, block in zip(steps, job.blocks, strict=True):
        paths = {n: n.removeprefix(f"{block}.") for n in job.layers if n.startswith(f"{block}.")}
        weights = {name: job.weight(name).float() for name in paths}
        importance = {
            path: _counts(felt[name], when) for name, path in paths.items() if name in felt
        }
        record = Record(step, paths.values(), job.seed, importance)
        for name, path in paths.items():
            moments = record.tokens(path) * record.seen(path).moments  # each token is felt
            weight, rule = weights[name], job.rules[name]
            feels = felt[name].mean(0) if name in felt else torch.zeros(len(weight))
            width = weight.shape[1]
            specs, counts = [one.weight for one in options(rule, width)], ranks(rule, width)
            times = STEADY if rule.activation is None else 1
            yield f"{name}.losses", times * lost_by_weights(weight, specs, moments, feels)
            if rule.activation is not None:
                lost = lost_by_input(weight, rule.activation, counts, moments, feels)
                yield f"{name}.directions", lost


def options(rule: Rule, width: int) -> tuple[Rule, ...]:
    """What a layer may become under a budget: weights of other bits, in these groups or in others.
    The groups of nvfp4 and mxfp4 are those of their standards."""
    spec = rule.weight
    if spec.format.name not in WIDTHS:
        return (rule,)
    wider = (2 * spec.span,) if isinstance(spec.span, int) and width % (2 * spec.span) == 0 else ()
    spans = dict.fromkeys((spec.span, *wider, "row"))
    specs = [_scaled(FORMATS[name], span, spec.scale) for name in WIDTHS for span in spans]
    return tuple(replace(rule, weight=one) for one in specs if one is not None)


def _scaled(fmt: Format, span: int | str, scale: ScaleFormat) -> Spec | None:
    """A row has no factors, and levels near the end of int8 leave no room for them."""
    if not scale.factors:
        return Spec(fmt, span, scale)
    if span == "row":
        return Spec(fmt, span)
    return Spec(fmt, span, scale) if 2 * fmt.integer_max <= INT8_END else None


def ranks(rule: Rule, width: int) -> tuple[int, ...]:
    """How many directions an input may keep under a budget, where it keeps any."""
    most = width // LEAST_PART
    return tuple(rank for rank in RANKS if rank <= most) if rule.directions else (0,)


def solve(job: BlockJob, settings: Settings) -> None:
    record = job.record({job.path(group[0]): _importance(job, group) for group in job.groups})
    folded = dict(_fold(job, record, settings))
    for number, group in enumerate(job.groups):
        fold, seed = folded.get(group[0]), job.seed_of(100 + number)
        stage = _stage(job, group, record, fold, seed, settings)
        moments = _moments(job, group, record, fold, stage)
        for name in group:
            _solve_layer(job, name, stage, moments, settings)


def _importance(job: BlockJob, group: Sequence[str]) -> Tensor:
    """How much each row of the calibration counts for layers that read one tensor."""
    assert job.step is not None
    alike = torch.ones(job.step.rows)
    return torch.stack([job.survey.get(name, alike) for name in group]).mean(0)


def _fold(job: BlockJob, record: Record, settings: Settings) -> Iterator[tuple[str, Transform]]:
    """Transform what attention gives; each head is rotated in itself."""
    for number, attention in enumerate(filter(job.can_fold, job.attentions)):
        head = _rotation(attention.head_width, 0)
        width, seed = _width(job, attention.outs), job.seed_of(number)
        rotation = None if head is None else Hadamard(width, head.order, seed)
        seen = {name: record.seen(job.path(name)) for name in attention.outs}
        transform = _transform(job, seen, rotation, settings)
        if transform is not None:
            job.fold_into_values(attention, transform)
            yield from dict.fromkeys(attention.outs, transform).items()


def _width(job: BlockJob, names: Sequence[str]) -> int:
    return job.linear(names[0]).in_features


def _transform(
    job: BlockJob, seen: Mapping[str, InputStats], rotation: Hadamard | None, settings: Settings
) -> Transform | None:
    """For the layers that `seen` names and what each of them reads."""
    if settings.transform == "none":
        return None
    consumers = [job.consumer(name, one) for name, one in seen.items()]
    loud, heavy = loudness(consumers)
    smooth = [Smooth(balancing_scales(loud, heavy, strength)) for strength in STRENGTHS]
    if rotation is None:
        return least_lost((None, *smooth), consumers)
    rotate = HadamardTransform(rotation)
    both = [Chain([one, rotate]) for one in smooth]
    return least_lost((None, rotate, *smooth, *both), consumers)


def _rotation(width: int, seed: int) -> Hadamard | None:
    """None for an odd width."""
    return Hadamard.for_width(width, seed, block="auto") if allowed_blocks(width) else None


def _stage(
    job: BlockJob,
    group: Sequence[str],
    record: Record,
    folded: Transform | None,
    seed: int,
    settings: Settings,
) -> InputStage | None:
    """What becomes of the input of layers that read one tensor."""
    spec, seen = job.rules[group[0]].activation, record.seen(job.path(group[0]))
    if spec is None:
        return None
    transform = None
    if folded is None:
        rotation = _rotation(_width(job, group), seed)
        transform = _transform(job, dict.fromkeys(group, seen), rotation, settings)
    shown = None if folded is None else folded.extra_repr()
    apart = _directions(job.rules[group[0]], seen, folded or transform)
    return InputStage(transform, _activation(spec, settings), shown, apart)


def _directions(rule: Rule, seen: InputStats, transform: Transform | None) -> Principal | None:
    return principal(seen.after(transform).moments, rule.directions) if rule.directions else None


def _activation(spec: Spec, settings: Settings) -> Activation:
    """Groups are rounded around the mean of their image; whole rows make integers, as they are."""
    return Centred(spec) if settings.centre and spec.span != "row" else Dynamic(spec)


def _moments(
    job: BlockJob,
    group: Sequence[str],
    record: Record,
    folded: Transform | None,
    stage: InputStage | None,
) -> Paired:
    """How the input of layers, as it will be rounded, goes with what it is in full precision."""
    assert job.step is not None
    transform = folded or (None if stage is None else stage.transform)
    rounded = _as_it_is if stage is None else stage.values
    alone, path = _alone(job, group, stage), job.path(group[0])
    return record.compare(job.step, path, transform or _as_it_is, rounded, alone)


def _alone(job: BlockJob, group: Sequence[str], stage: InputStage | None) -> Tensor | None:
    """The weight of a layer that reads its input alone and gives fewer numbers than it reads."""
    linear = job.linear(group[0])
    narrows = len(group) == 1 and linear.out_features < linear.in_features
    return _weight(job, group[0], stage) if narrows else None


def _weight(job: BlockJob, name: str, stage: InputStage | None) -> Tensor:
    """As its input now wants it, float32."""
    weight = job.weight(name).float()
    transform = None if stage is None else stage.transform
    return weight if transform is None else transform.weight(weight)


def _as_it_is(x: Tensor) -> Tensor:
    return x


def _solve_layer(
    job: BlockJob, name: str, stage: InputStage | None, moments: Paired, settings: Settings
) -> None:
    weight, bias, corrected = _weight(job, name, stage), job.linear(name).bias, None
    if bias is None or not settings.bias:
        moments = moments.around_zero()
    target = weight
    if settings.compensate:
        target = moments.target(weight, settings.damping)
    try:
        packed = compensated(
            target,
            moments.square,
            job.rules[name].weight,
            least_error if settings.clip else no_clipping,
            damping=settings.damping,
            sweeps=settings.sweeps,
        )
    except BadCalibration as error:
        raise BadCalibration(f"{name}: {error}") from None
    if bias is not None:
        missing = moments.missing(weight, packed.dequantize())
        corrected = (bias.detach() + missing).to(bias.dtype)
    job.replace(name, QLinear(packed, corrected, stage), weight)


METHOD = Method(
    "best",
    "few bits that look like many: fitted transforms, compensated GPTQ, descent",
    VARIANTS,
    Settings,
    rule,
    solve,
    survey=survey,
    options=options,
    ranks=ranks,
    presets=PRESETS,
    targets=True,
    records=True,
)
