"""TQ-DiT (2025): time-grouped, multi-region, Fisher-weighted static quantization.

MRQ  what comes out of a softmax or a GELU has two regions, each with a step of its own
TGQ  steps are grouped over the timestep, here all static ones and not only those of the softmax;
     the groups hold as many timesteps of calibration each
HO   candidate steps are judged by the squared error of what a layer gives, weighted by the squared
     gradients of the final loss: 100 candidates, in 3 rounds of weight and input, or of the two
     operands of an attention's matmul

Nothing is measured at run time. The published code calibrates its first layer only, has gradients
from a mismatch of batches, and lets the two regions of the softmax overlap; this is the idea
without these. Where it says nothing: embedders and the last layer stay as they are; the search
runs on the CPU; it estimates errors on a sample of tokens, through random mixtures of tokens (for
weights) or of outputs (for inputs), which keep sums of squares. Beyond the paper channels are
smoothed before their one step (`smooth`), most of the way back to steps measured at run time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain

import torch
from torch import Tensor

from fewbit.activations.activation import Activation
from fewbit.activations.clock import TimeBins
from fewbit.activations.multi_region import MultiRegion, Regions, two_regions
from fewbit.activations.static import Static, by_part, one_region
from fewbit.calibration.gradients import squared_gradients
from fewbit.calibration.operands import Operands, Tokens, sample_operands, without_padding
from fewbit.formats import FORMATS, QTensor, Spec
from fewbit.layers.attention import QAttention, attention_weights, quantize_attention
from fewbit.layers.linear import QLinear
from fewbit.layers.stage import InputStage
from fewbit.methods.method import BlockJob, Method, Rule, SurveyJob
from fewbit.methods.settings import Calibrated, setting
from fewbit.models import Layer, Role
from fewbit.rounding.steps import Search, factors, in_cache, powers
from fewbit.transforms.smooth import Smooth, smoothing_scales


def _static(weight: str, activation: str) -> Rule:
    return Rule(Spec(FORMATS[weight]), Spec(FORMATS[activation], "tensor"))


VARIANTS = {
    "w8a8": _static("int8", "int8"),
    "w6a6": _static("int6", "int6"),
    "w4a8": _static("int4", "int8"),
}

OUTPUT_MIXTURES = 64  # of all layers that share an input
TOKEN_MIXTURES = 512  # of all rows, at least
ATTENDING_PAIRS = 40  # of rows, over all time groups


@dataclass(frozen=True)
class Settings(Calibrated):
    groups: int = setting(10, least=1, help="number of time groups; each has steps of its own")
    samples: int = setting(
        320,
        least=1,
        help="how many rows of the forward the calibration sees, spread over the time groups",
    )
    rounds: int = setting(3, least=1, help="rounds of the search, weight and input in turn")
    candidates: int = setting(100, least=1, help="steps tried in each search")
    granularity: str = setting(
        "channel",
        allowed=("channel", "tensor"),
        help="what has a weight step of its own; the paper has one for a tensor",
    )
    ho: bool = setting(True, help="errors are weighted by squared gradients")
    mrq: bool = setting(True, help="what leaves a softmax or a GELU has two regions")
    tgq: bool = setting(True, help="steps are grouped over the timestep")
    time_group_all: bool = setting(
        True, help="all static steps are grouped; the paper groups those of the softmax alone"
    )
    attention: str = setting(
        "quantize",
        allowed=("quantize", "skip"),
        help="whether the two products of an attention are quantized; skip leaves them",
    )
    smooth: float | None = setting(
        0.5,
        above=0,
        below=1,
        allowed=(None,),
        help="strength of the smoothing of channels; None: none, as in the paper",
    )

    @property
    def time_groups(self) -> int:
        return self.groups if self.tgq else 1


def rule(layer: Layer, variant: Rule, settings: Settings) -> Rule:
    one_step = settings.granularity == "tensor" and layer.role is not Role.QKV
    return replace(variant, weight=replace(variant.weight, span="tensor" if one_step else "row"))


def survey(job: SurveyJob, settings: Settings) -> dict[str, Tensor]:
    """HO: squared gradients of the final loss, of all that will be quantized."""
    times = job.data.timesteps()
    groups = _of(TimeBins.spread(times, settings.time_groups), times, len(job.data))
    attending = job.attending if settings.attention == "quantize" else ()
    if not settings.ho:
        return {}
    modules = {name: job.model.get_submodule(name) for name in (*job.layers, *attending)}
    return squared_gradients(
        job.model,
        {name: modules[name] for name in job.layers},
        {name: modules[name] for name in attending},
        [job.model.get_submodule(name) for name in job.blocks],
        job.data,
        groups,
        job.seed,
        job.track,
    )


def solve(job: BlockJob, settings: Settings) -> None:
    assert job.step is not None
    timing = _Timing.of(job, settings)
    attending = job.regular_attentions() if settings.attention == "quantize" else ()
    layers, attentions = sample_operands(
        job.step,
        [job.path(group[0]) for group in job.groups],
        {name: job.module.get_submodule(job.path(name)) for name in attending},
        timing.attending,
        job.seed_of(0),
    )
    for number, consumers in enumerate(job.groups):
        tokens = layers[job.path(consumers[0])]
        _solve_group(job, consumers, tokens, timing, job.seed_of(100 + number), settings)
    for name in attending:
        module = job.module.get_submodule(job.path(name))
        matmuls = _solve_attention(job, name, attentions[name], timing, settings)
        quantize_attention(
            module, matmuls.to(next(chain(module.buffers(), module.parameters())).device)
        )


@dataclass(frozen=True)
class _Timing:
    """The time groups: bins for the model, and the bin of each row of calibration."""

    bins: TimeBins
    all_bins: TimeBins  # of what published code does not group
    group: Tensor  # int64 [rows]
    attending: list[int]  # rows whose attentions are looked at

    @classmethod
    def of(cls, job: BlockJob, settings: Settings) -> _Timing:
        assert job.step is not None
        times = job.step.timesteps
        bins = TimeBins.spread(times, settings.time_groups)
        grouped = settings.time_group_all and settings.tgq
        all_bins = bins if grouped else TimeBins(torch.zeros(1))
        group = _of(bins, times, job.step.rows)
        return cls(bins, all_bins, group, _some_pairs(group, job.step.pairs, job.seed_of(1)))

    @property
    def all_group(self) -> Tensor:
        return self.group if self.all_bins is self.bins else torch.zeros_like(self.group)


def _some_pairs(group: Tensor, pairs: Tensor, seed: int) -> list[int]:
    """As many rows of each group, both halves of a guidance together. They are drawn at random:
    rows in equal strides would be all of one half where the halves alternate."""
    pair = pairs.unique(return_inverse=True)[1]
    draw = torch.rand(len(pair), generator=torch.Generator("cpu").manual_seed(seed))[pair]
    groups, rows = group.unique(), []
    each = 2 * max(ATTENDING_PAIRS // len(groups), 2)
    for number in groups:
        mine = (group == number).nonzero()[:, 0]
        rows += mine[draw[mine].argsort(stable=True)[:each]].tolist()
    return sorted(rows)


def _weights(job: BlockJob, *names: str) -> list[Tensor]:
    """HO: how much an error of each output of these layers, which read one tensor, counts at each
    time [groups, channels]; [1, 1] where all count alike. The unit is the mean over all of them, so
    that a layer which the result feels more has more say in the steps of their input."""
    alike = [torch.ones(1, 1)] * len(names)
    if not job.survey:
        return alike
    unfelt = [name for name in names if name not in job.survey or not job.survey[name].any()]
    for name in unfelt:
        job.warn(f"{name} has no effect on the result, so all of its errors count alike")
    if any(name not in job.survey for name in names):
        return alike
    squares = [job.survey[name] for name in names]
    mean = torch.cat([mine.flatten() for mine in squares]).mean()
    return [mine / mean for mine in squares] if mean > 0 else alike


def _some(table: Tensor, part: slice) -> Tensor:
    """Rows of a table that may have one for all."""
    return table if len(table) == 1 else table[part]


def _rows_of(table: Tensor, group: Tensor) -> Tensor:
    """The entries of rows in these groups, of a table that may be the same for all."""
    return table[group.clamp(max=len(table) - 1)]


_RowError = Callable[[slice, Tensor], Tensor]  # of some rows, as rounded: [rows, parts]


class _Steps:
    """The static quantizer of one tensor while its steps are searched."""

    def __init__(
        self,
        spec: Spec,
        regions: Regions | None,
        group: Tensor,
        searches: list[Search],
        whole: int = 0,
    ) -> None:
        self.spec, self.regions, self.group = spec, regions, group
        self.searches = searches  # one for each region: tables [groups, parts]
        self.whole = whole  # columns of one region

    @property
    def steps(self) -> Tensor:
        """[regions, groups, parts]"""
        return torch.stack([search.steps for search in self.searches])

    def round(self, x: Tensor) -> Tensor:
        return torch.cat([self._round(x, self.steps, rows) for rows in in_cache(x)])

    def _round(self, x: Tensor, steps: Tensor, rows: slice) -> Tensor:
        mine = steps[:, self.group[rows]][..., None]  # [regions, rows, parts, 1]
        some = by_part(x[rows], mine[0])
        if self.regions is None:
            rounded = one_region(some, mine[0], self.spec)
        else:
            rounded = two_regions(some, mine[0], mine[1], self.spec, self.regions, self.whole)
        return rounded.view(x[rows].shape)

    def search(self, x: Tensor, row_error: _RowError) -> None:
        for region, search in enumerate(self.searches):
            search.run(partial(self._error, x, row_error, region))

    def _error(self, x: Tensor, row_error: _RowError, region: int, step: Tensor) -> Tensor:
        steps = self.steps
        steps[region] = step
        found = [row_error(rows, self._round(x, steps, rows)) for rows in in_cache(x)]
        return torch.zeros_like(step).index_add_(0, self.group, torch.cat(found))

    def activation(self, bins: TimeBins) -> Activation:
        own = TimeBins(bins.centres)
        if self.regions is None:
            return Static(self.spec, self.steps[0].contiguous(), own)
        return MultiRegion(self.spec, self.regions, self.steps.contiguous(), own, self.whole)


@dataclass
class _Consumer:
    """A layer that reads the input of its group."""

    weight: Tensor  # float32 [out, in]
    spec: Spec
    parts: int  # neighbouring output channels in so many parts share a step; 0: each has its own
    weights: Tensor  # of errors [groups or 1, out or 1]
    search: Search  # of a table [out or 1, 1]

    @property
    def packed(self) -> QTensor:
        return QTensor.quantize(self.weight, self.spec, self.spec.store(self.search.steps))

    def rounded(self, step: Tensor, part: slice = slice(None)) -> Tensor:
        return self.spec.round(self.weight[part], self.spec.store(_some(step, part)))

    def pooled(self, errors: Tensor) -> Tensor:
        """errors [out] summed over what shares a step, in the shape of `step`."""
        if not self.parts:
            return errors[:, None]
        sums = errors.view(self.parts, -1).sum(1)
        return sums.repeat_interleave(len(self.search.start) // self.parts)[:, None]


def _solve_group(
    job: BlockJob,
    names: tuple[str, ...],
    tokens: Tokens,
    timing: _Timing,
    seed: int,
    settings: Settings,
) -> None:
    """All layers that read one tensor: a step for each weight, then those of the input, in turn."""
    random = torch.Generator("cpu").manual_seed(seed)
    spec = job.rules[names[0]].activation
    transform = None if spec is None else _smoothing(job, names, tokens.x, settings)
    if transform is not None:
        tokens = replace(tokens, x=transform(tokens.x))
    consumers = {
        name: _reader(job, name, settings, transform, weights)
        for name, weights in zip(names, _weights(job, *names), strict=True)
    }
    regions, whole = _regions(job, names[0]) if settings.mrq else (None, 0)
    steps = None if spec is None else _input_steps(spec, regions, whole, tokens, timing, settings)
    for _ in range(settings.rounds):
        rounded = tokens.x if steps is None else steps.round(tokens.x)
        mixtures = _mixtures(tokens, rounded, timing.group, random)
        for consumer in consumers.values():
            _search_weight(consumer, mixtures)
        if steps is None:
            break  # nothing to take turns with
        error = _output_error(list(consumers.values()), tokens, timing.group, random)
        steps.search(tokens.x, error)
    stage = None if steps is None else InputStage(transform, steps.activation(timing.all_bins))
    for name, consumer in consumers.items():
        linear = job.linear(name)
        layer = QLinear(consumer.packed, linear.bias, stage).to(linear.weight.device)
        job.replace(name, layer, consumer.weight.to(linear.weight.device))


def _regions(job: BlockJob, name: str) -> tuple[Regions | None, int]:
    """Of what a layer reads, and how many columns of an attention's result, which have one region,
    stand before those of a GELU's, which have two."""
    if job.role(name) is Role.FC2:
        return "signed", 0
    if job.role(name) is not Role.FUSED_OUT:
        return None, 0
    columns = job.linear(name).in_features
    whole = columns - sum(layer.shape[0] for layer in job.layers if layer.role is Role.FC1)
    if 0 < whole < columns:
        return "fused", whole
    job.warn(
        f"no layer of {job.name} that is quantized tells which columns {name} reads from a GELU, "
        "so that all of them have one region"
    )
    return None, 0


def _smoothing(
    job: BlockJob, names: tuple[str, ...], x: Tensor, settings: Settings
) -> Smooth | None:
    """Beyond the paper: one step for all channels is too coarse for those that stay small."""
    if settings.smooth is None:
        return None
    heavy = torch.cat([job.weight(name).float() for name in names]).abs().amax(0).cpu()
    return Smooth(smoothing_scales(x.abs().amax((0, 1)), heavy, settings.smooth))


def _reader(
    job: BlockJob, name: str, settings: Settings, transform: Smooth | None, weights: Tensor
) -> _Consumer:
    weight, spec = job.weight(name).float().cpu(), job.rules[name].weight
    if transform is not None:
        weight = transform.weight(weight)
    parts = 0
    if settings.granularity == "tensor" and job.role(name) is not Role.ADALN:
        parts = 3 if job.role(name) is Role.QKV else 1  # q, k and v of a joint one
    absmax = weight.abs().amax(1, keepdim=True)
    if parts:
        shared = absmax.view(parts, -1).amax(1, keepdim=True)
        absmax = (
            shared if spec.span == "tensor" else shared.repeat_interleave(len(weight) // parts, 0)
        )
    search = Search(_start(absmax, spec), factors(settings.candidates))
    return _Consumer(weight, spec, parts, weights, search)


def _input_steps(
    spec: Spec,
    regions: Regions | None,
    whole: int,
    tokens: Tokens,
    timing: _Timing,
    settings: Settings,
) -> _Steps:
    groups = len(timing.all_bins.centres)
    low, high = tokens.x[..., whole:].flatten(1).aminmax(dim=1)
    if whole:
        high = torch.maximum(high, tokens.x[..., :whole].abs().amax((1, 2)))
    ends = [_most(end, timing.all_group, groups) for end in (-low, high)]
    starts = [torch.maximum(*ends)] if regions is None else ends
    candidates = factors(settings.candidates)
    searches = [Search(_start(start, spec), candidates) for start in starts]
    return _Steps(spec, regions, timing.all_group, searches, whole)


@dataclass(frozen=True)
class _Mixtures:
    """Random mixtures of each row's tokens, which keep the sums of squared errors."""

    rounded: Tensor  # [in, mixtures]
    exact: Tensor  # [in, mixtures]
    group: Tensor  # int64 [mixtures], the time group of each


def _mixtures(tokens: Tokens, rounded: Tensor, group: Tensor, random: torch.Generator) -> _Mixtures:
    rows, count = tokens.places.shape
    each = min(-(-TOKEN_MIXTURES // rows), count)
    mix = _signs((rows, each, count), random) * tokens.real[:, None]
    mixed, exact = ((mix @ x).flatten(0, 1).T for x in (rounded, tokens.x))
    return _Mixtures(mixed, exact, group.repeat_interleave(each))


def _search_weight(consumer: _Consumer, mixtures: _Mixtures) -> None:
    exact = consumer.weight @ mixtures.exact
    table = consumer.weights if bool(consumer.weights.any()) else torch.ones(1, 1)
    weights = _rows_of(table, mixtures.group).T.contiguous()

    def error_of(step: Tensor, part: slice) -> Tensor:
        errors = torch.addmm(exact[part], consumer.rounded(step, part), mixtures.rounded, beta=-1)
        return errors.square_().mul_(_some(weights, part)).sum(1)

    def error(step: Tensor) -> Tensor:
        return consumer.pooled(
            torch.cat([error_of(step, part) for part in in_cache(consumer.weight)])
        )

    consumer.search.run(error)


def _output_error(
    consumers: list[_Consumer], tokens: Tokens, group: Tensor, random: torch.Generator
) -> _RowError:
    """Of the input as rounded, the error in the outputs of all consumers, through a few random
    mixtures of the outputs, which keep the sums of squared errors."""
    groups = max(len(consumer.weights) for consumer in consumers)
    weights = [consumer.weights.expand(groups, len(consumer.weight)) for consumer in consumers]
    outputs = torch.cat(weights, 1)  # [groups or 1, out]
    mix = _signs((OUTPUT_MIXTURES, outputs.shape[1]), random) * outputs.sqrt()[:, None]
    true, near = (
        (mix @ torch.cat(parts)).transpose(1, 2)  # [groups or 1, in, mixtures]
        for parts in (
            [consumer.weight for consumer in consumers],
            [consumer.rounded(consumer.search.steps) for consumer in consumers],
        )
    )
    target, near = torch.bmm(tokens.x, _rows_of(true, group)), _rows_of(near, group)

    def error(rows: slice, rounded: Tensor) -> Tensor:
        squares = torch.baddbmm(target[rows], rounded, near[rows], beta=-1).square_()
        return (squares.sum(-1) * tokens.real[rows]).sum(1, keepdim=True)

    return error


def _solve_attention(
    job: BlockJob, name: str, seen: Operands, timing: _Timing, settings: Settings
) -> QAttention:
    """Steps of q and k in turn for the scores, of the shares and v in turn for the products."""
    candidates = factors(settings.candidates)
    group, all_group = timing.group[seen.rows], timing.all_group[seen.rows]
    spec = _operand_spec(job)
    seen = without_padding(seen)
    shares = attention_weights(seen.query, seen.key, seen.mask, seen.scale)

    def steps_of(x: Tensor) -> _Steps:
        most = _most(x.abs().amax((2, 3)), all_group, len(timing.all_bins.centres))
        return _Steps(spec, None, all_group, [Search(_start(most, spec), candidates)])

    query, key, value = steps_of(seen.query), steps_of(seen.key), steps_of(seen.value)
    share = _share_steps(spec, shares, group, len(timing.bins.centres), settings)
    products = shares @ seen.value
    of_scores, of_products = (
        _rows_of(_weights(job, f"{name}.{what}")[0], group) for what in ("scores", "products")
    )
    of_products = _by_head(of_products, seen.query.shape[1])

    def products_error(rows: slice, p: Tensor, v: Tensor) -> Tensor:
        squares = (p @ v).sub_(products[rows]).square_()
        return (squares.sum(2) * of_products[rows]).sum(2)  # [rows, heads]

    def share_error(v: Tensor, rows: slice, p: Tensor) -> Tensor:
        return products_error(rows, p, v[rows]).sum(1, keepdim=True)

    def value_error(p: Tensor, rows: slice, v: Tensor) -> Tensor:
        return products_error(rows, p[rows], v)

    for _ in range(settings.rounds):
        k = key.round(seen.key)
        query.search(seen.query, _score_error(seen.query, seen.key, k, of_scores))
        q = query.round(seen.query)
        key.search(seen.key, _score_error(seen.key, seen.query, q, of_scores))
        share.search(shares, partial(share_error, value.round(seen.value)))
        value.search(seen.value, partial(value_error, share.round(shares)))
    return QAttention(
        query.activation(timing.all_bins),
        key.activation(timing.all_bins),
        share.activation(timing.bins),
        value.activation(timing.all_bins),
    )


def _score_error(mine: Tensor, other: Tensor, near: Tensor, weights: Tensor) -> _RowError:
    """Of one operand m of the scores when it becomes m + e, and the other, o, has become ô: this is
    |(m + e)·ôᵀ − m·oᵀ|² = |e·ôᵀ + m·(ô − o)ᵀ|², less what e has no part in. The scores, which are
    many, need not be made; where keys are padding they are zeros."""
    gram = near.mT @ near
    pull = 2 * (mine @ (near - other).mT) @ near

    def error(rows: slice, rounded: Tensor) -> Tensor:
        e = rounded - mine[rows]
        return (e @ gram[rows]).add_(pull[rows]).mul_(e).sum((2, 3)) * weights[rows]

    return error


def _by_head(weights: Tensor, heads: int) -> Tensor:
    """[rows, heads·width or 1] to [rows, heads or 1, width or 1]."""
    return weights[..., None] if weights.shape[1] == 1 else weights.unflatten(1, (heads, -1))


def _share_steps(
    spec: Spec, shares: Tensor, group: Tensor, groups: int, settings: Settings
) -> _Steps:
    """Of what the softmax gives: with MRQ the coarse region ends at 1, for attention sinks may
    first appear after calibration; without it there is one step up to the largest share."""
    unsigned = replace(spec, format=FORMATS[f"u{spec.format}"])
    if not settings.mrq:
        start = _start(_most(shares.amax((1, 2, 3)), group, groups), unsigned)
        return _Steps(unsigned, None, group, [Search(start, factors(settings.candidates))])
    start = torch.full((groups, 1), 2.0 ** (1 - spec.format.bits))
    fine, coarse = powers(settings.candidates), torch.ones(1)
    return _Steps(unsigned, "unit", group, [Search(start, fine), Search(start, coarse)])


def _operand_spec(job: BlockJob) -> Spec:
    """Attention is quantized like the inputs of linears."""
    return next(rule.activation for rule in job.rules.values() if rule.activation is not None)


def _of(bins: TimeBins, times: Tensor | None, rows: int) -> Tensor:
    return torch.zeros(rows, dtype=torch.int64) if times is None else bins.of(times)


def _most(values: Tensor, group: Tensor, groups: int) -> Tensor:
    """values [rows] or [rows, parts] to the largest of each group [groups, parts]."""
    values = values.reshape(len(values), -1)
    where = group[:, None].expand_as(values)
    return values.new_zeros(groups, values.shape[1]).scatter_reduce(0, where, values, "amax")


def _start(absmax: Tensor, spec: Spec) -> Tensor:
    """The published first step: the largest value lies half a step beyond the largest code."""
    return torch.where(absmax > 0, absmax / (spec.format.max + 0.5), 1.0)


def _signs(shape: tuple[int, ...], random: torch.Generator) -> Tensor:
    """Random ±1, of unit norm along the mixtures."""
    coins = torch.randint(2, shape, generator=random, dtype=torch.int8)
    return (2 * coins - 1).float() / shape[-2] ** 0.5


METHOD = Method(
    "tq-dit",
    "static int8 and int6, attention included: time groups, two regions, Fisher weights",
    VARIANTS,
    Settings,
    rule,
    solve,
    survey=survey,
    presets={"fast": {"samples": 80, "candidates": 40, "rounds": 1}},
)
