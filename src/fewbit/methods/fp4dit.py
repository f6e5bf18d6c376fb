"""FP4DiT (2025): FP4 weights whose rounding is learned, FP6 or FP8 activations token by token.

formats     by role: the first linear of a feed-forward, before the GELU, in E3M0; all others in
            E2M1, or in E1M2 for PixArt-Sigma; a scale for every 128 inputs
rounding    scale-aware AdaRound: blocks are trained to give what they gave in full precision
inputs      of every linear and of the attention's matmuls are rounded at run time, each token by
            its own range

The published code calibrates on latents that are almost clean, leaves out the masks of captions and
quantizes q and k of HunyuanDiT before their norms. Here the rows are the sampler's own, all its
timesteps shuffled, words that a mask hides count nowhere, and what enters a matmul is quantized.
Ours are the training on inputs that are already rounded, of biases too and with every timestep
counted alike; the search for clipping; and `formats="auto"`: each layer has that of the three in
which it loses least, which is better than by role (studies/fp4dit_forms.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fewbit.activations.activation import Activation
from fewbit.activations.clock import TimeBins
from fewbit.activations.dynamic import Dynamic
from fewbit.activations.static import Static
from fewbit.activations.unit_float import UnitFloat
from fewbit.calibration.operands import sample_operands, without_padding
from fewbit.calibration.reconstruction import Minibatch, Reconstruction
from fewbit.calibration.stream import LayerInput
from fewbit.calibration.training import Group, Schedule, train, trainable_copy
from fewbit.errors import BadArgument
from fewbit.formats import FORMATS, SCALES, QTensor, Spec
from fewbit.layers.attention import QAttention, quantize_attention
from fewbit.layers.linear import QLinear
from fewbit.layers.stage import InputStage
from fewbit.methods.method import BlockJob, Method, Rule
from fewbit.methods.settings import Calibrated, modulation, precision, products_in, setting
from fewbit.models import Layer, Role
from fewbit.rounding.adaround import Pull, RoundingLinear
from fewbit.rounding.clipping import least_error, no_clipping
from fewbit.rounding.grid import Grid, round_to_nearest
from fewbit.rounding.selection import best_for_all

PRESETS: dict[str, dict[str, Any]] = {
    "fast": {"samples": 128, "steps": 300},
    "sigma": {"formats": "role", "others": "e1m2"},
    "integer": {"formats": "role", "first": "int4", "others": "int4", "inputs": "integer"},
    "published": {"formats": "role", "clip": False},
}
FLOATS = ("e2m1", "e1m2", "e3m0")
WEIGHTS = (*FLOATS, "int4")
BY_ROLE = ("e3m0", "e2m1")  # of the first linear of a feed-forward, of all others
INPUTS = {6: ("e2m3", "e3m2", "int6"), 8: ("e3m4", "e4m3", "int8")}
SHARP, BLUNT = 20.0, 2.0  # the exponent of the regulariser, at first and in the end
ROUNDED = ("query", "key", "value")  # of the operands of an attention's matmuls
SOFTMAX = (4, 4)  # exponent and mantissa bits of its unsigned FP8
ATTENDING_ROWS = 64  # that tell the largest operand
LEAST_GROUP = 1 / 8  # of the group that was asked for
LOOKS = 4  # minibatches that tell what plain and what learned rounding lose


def _floats(activation: str | None) -> Rule:
    spec = Spec(FORMATS["e2m1"], 128, SCALES["bf16"])
    return Rule(spec, None if activation is None else Spec(FORMATS[activation]))


VARIANTS = {"w4a6": _floats("e2m3"), "w4a8": _floats("e3m4"), "w4a16": _floats(None)}


@dataclass(frozen=True)
class Settings(Calibrated):
    steps: int = setting(2500, least=0, help="training steps of each block; 0 rounds to nearest")
    batch: int = setting(16, least=1, help="rows in each training step")
    formats: str = setting(
        "auto",
        allowed=("auto", "role"),
        help="weight formats: for each layer the one that loses least, or by role",
    )
    first: str = setting(
        BY_ROLE[0],
        allowed=WEIGHTS,
        help="weight format of the first linear of a feed-forward, with formats=role",
    )
    others: str = setting(
        BY_ROLE[1], allowed=WEIGHTS, help="weight format of all other linears, with formats=role"
    )
    inputs: str = setting(
        "float",
        allowed=("float", "integer", *INPUTS[6], *INPUTS[8]),
        help="format of the inputs: float, integer, or one of as many bits",
    )
    ranges: str = setting(
        "token",
        allowed=("token", "tensor"),
        help="ranges of the inputs: measured for each token, or one for a tensor, known before",
    )
    attention: str = setting(
        "quantize",
        allowed=("quantize", "skip"),
        help="whether what the products of an attention read is quantized; skip leaves it",
    )
    softmax: str = setting(
        "keep",
        allowed=("keep", "fp8"),
        help="whether the attention weights are kept or rounded to unsigned FP8",
    )
    group: int = setting(
        128,
        least=1,
        help="columns that share a scale, or the next lower number that divides a layer's",
    )
    clip: bool = setting(True, help="scales may lie below the largest weight where that loses less")
    scale_aware: bool = setting(
        True, help="a training step moves all weights alike, however far apart their levels are"
    )
    rate: float = setting(0.2, above=0, help="learning rate of the auxiliary variables")
    bias_rate: float = setting(
        1e-3, least=0, help="learning rate of biases; 0 leaves them as they are"
    )
    penalty: float = setting(
        100.0, least=0, help="penalty on undecided weights, in units of the loss that is lowered"
    )
    warmup: float = setting(
        0.2, least=0, below=1, help="share of the training that passes without the penalty"
    )
    precision: str = precision()
    adaln: str = modulation("same")

    @property
    def trained_rows(self) -> int:
        return self.steps * self.batch

    def check(self) -> None:
        if self.formats == "auto" and (self.first, self.others) != BY_ROLE:
            raise BadArgument('first and others are only read with formats="role"')
        if self.softmax == "fp8" and self.attention == "skip":
            raise BadArgument(
                "setting softmax cannot be 'fp8' with attention='skip'; allowed: keep"
            )


def rule(layer: Layer, variant: Rule, settings: Settings) -> Rule:
    early = settings.formats == "role" and layer.role is Role.FC1
    fmt = FORMATS[settings.first if early else settings.others]
    columns = layer.shape[1]
    weight = replace(variant.weight, format=fmt, span=_span(columns, settings.group))
    return Rule(weight, _inputs(variant, settings))


def _span(columns: int, group: int) -> int | str:
    """The whole row where only groups much smaller than asked for would divide it."""
    sizes = range(group, max(int(group * LEAST_GROUP), 1) - 1, -1)
    return next((size for size in sizes if columns % size == 0), "row")


def _inputs(variant: Rule, settings: Settings) -> Spec | None:
    spec = variant.activation
    if spec is None:
        kept = settings.inputs in ("float", "integer") and settings.ranges == "token"
        if not kept or settings.softmax != "keep":
            raise BadArgument("inputs stay as they come: inputs, ranges and softmax say nothing")
        return None
    bits = spec.format.bits
    named = {"float": spec.format.name, "integer": f"int{bits}"}
    name = named.get(settings.inputs, settings.inputs)
    if FORMATS[name].bits != bits:
        allowed = ", ".join(INPUTS[bits])
        raise BadArgument(f"inputs of {bits} bits cannot be {name}; allowed: {allowed}")
    return Spec(FORMATS[name], "row" if settings.ranges == "token" else "tensor")


def solve(job: BlockJob, settings: Settings) -> None:
    rounds_inputs = any(one.activation for one in job.rules.values())
    quantizes = rounds_inputs and settings.attention == "quantize"
    attending = job.regular_attentions() if quantizes else ()
    inputs = _quantizers(job, attending, settings)
    stages, matmuls = _stages(job, inputs), _matmuls(attending, inputs, settings)
    moments = _moments(job) if settings.formats == "auto" else {}
    starts = {}
    for name, one in job.rules.items():
        weight = job.weight(name)
        if one.weight.format.name in WEIGHTS:
            starts[name] = _nearest(weight, one.weight, moments.get(name), settings)
        else:  # a modulation
            packed = QTensor.quantize(weight, one.weight)
            job.replace(name, QLinear(packed, job.linear(name).bias, stages[name]), weight)
    layers = _undecided(job, starts, stages, settings)
    if settings.steps and layers and not _learn(job, layers, matmuls, settings):
        layers = _undecided(job, starts, stages, settings)
    for name, layer in layers.items():
        weight = job.weight(name)
        bias = None if layer.bias is None else layer.bias.detach().to(weight.dtype)
        job.replace(name, QLinear(layer.packed(), bias, stages[name]), weight)
    for name, quantized in matmuls.items():
        quantize_attention(job.module.get_submodule(job.path(name)), quantized)


def _undecided(
    job: BlockJob,
    starts: Mapping[str, QTensor],
    stages: Mapping[str, InputStage | None],
    settings: Settings,
) -> dict[str, RoundingLinear]:
    """Each layer before it learned anything: its weights are nearest to those of its start."""
    return {
        name: RoundingLinear(
            job.weight(name), start, job.linear(name).bias, stages[name], settings.scale_aware
        )
        for name, start in starts.items()
    }


def _quantizers(
    job: BlockJob, attending: Sequence[str], settings: Settings
) -> dict[str, Activation]:
    """For what each group of layers reads, by its first, and for the operands of each attention."""
    spec = next((one.activation for one in job.rules.values() if one.activation), None)
    if spec is None:
        return {}
    read = [group[0] for group in job.groups if job.rules[group[0]].activation is not None]
    names = [*read, *(f"{name}.{operand}" for name in attending for operand in ROUNDED)]
    if settings.ranges == "token":
        return {name: Dynamic(spec) for name in names}
    largest = _largest(job, read, attending)
    return {
        name: Static(spec, (most / spec.format.max).view(1, 1), TimeBins(torch.zeros(1)))
        for name, most in largest.items()
    }


def _largest(job: BlockJob, read: Sequence[str], attending: Sequence[str]) -> dict[str, Tensor]:
    """The largest magnitude of each tensor in calibration; of operands, in some of the rows."""
    assert job.step is not None
    step, seen = job.step, dict.fromkeys(read, torch.zeros(()))

    def receive(given: LayerInput) -> None:
        name = f"{job.name}.{given.name}"
        x = given.x if given.mask is None else given.x[given.mask > 0]
        seen[name] = torch.maximum(seen[name].to(x.device), x.float().abs().amax())

    step.layer_inputs([job.path(name) for name in read], receive)
    attentions = {name: job.module.get_submodule(job.path(name)) for name in attending}
    every = -(-step.rows // ATTENDING_ROWS) | 1  # odd: of both halves of the guidance
    _, operands = sample_operands(step, (), attentions, range(0, step.rows, every), job.seed_of(0))
    for name, one in operands.items():
        real = without_padding(one)
        seen |= {f"{name}.{part}": getattr(real, part).abs().amax() for part in ROUNDED}
    return {name: torch.where(most > 0, most, 1.0).to(step.device) for name, most in seen.items()}


def _stages(job: BlockJob, inputs: Mapping[str, Activation]) -> dict[str, InputStage | None]:
    stages: dict[str, InputStage | None] = {}
    for group in job.groups:
        activation = inputs.get(group[0])
        stage = None if activation is None else InputStage(activation=activation)
        stages |= dict.fromkeys(group, stage)
    return stages


def _matmuls(
    attending: Sequence[str], inputs: Mapping[str, Activation], settings: Settings
) -> dict[str, QAttention]:
    if not inputs:
        return {}
    matmuls = {}
    for name in attending:
        query, key, value = (inputs[f"{name}.{operand}"] for operand in ROUNDED)
        shares = UnitFloat(*SOFTMAX) if settings.softmax == "fp8" else None
        matmuls[name] = QAttention(query, key, shares, value)
    return matmuls


def _moments(job: BlockJob) -> dict[str, Tensor]:
    """The second moments of what each layer reads."""
    seen = job.observe()
    return {name: seen[group[0]].moments for group in job.groups for name in group}


def _nearest(weight: Tensor, spec: Spec, moments: Tensor | None, settings: Settings) -> QTensor:
    """Plain rounding, from which the learned one starts; by the moments in the best format."""
    weight, fit = weight.float(), least_error if settings.clip else no_clipping
    if moments is not None:
        candidates = [replace(spec, format=FORMATS[name]) for name in FLOATS]
        spec = best_for_all(weight, candidates, fit, moments)
    return round_to_nearest(weight, Grid(spec, weight, fit))


def _learn(
    job: BlockJob,
    layers: Mapping[str, RoundingLinear],
    matmuls: Mapping[str, QAttention],
    settings: Settings,
) -> bool:
    """One block, its inputs rounded, on what it gave in full precision; whether that paid."""
    assert job.step is not None
    assert job.exact is not None
    block = trainable_copy(job.module)
    for name, layer in layers.items():
        layer.products = products_in(settings.precision, job.weight(name).device)
        block.set_submodule(job.path(name), layer)
    for name, quantized in matmuls.items():
        quantize_attention(block.get_submodule(job.path(name)), quantized)
    rows = Reconstruction.of_block(job.step, job.exact)

    def lost(minibatch: Minibatch) -> Tensor:
        return minibatch.loss(block)

    plain = _settled(rows, lost, layers, job.seed_of(901), settings)

    def total(minibatch: Minibatch, progress: float) -> Tensor:
        done = (progress - settings.warmup) / (1 - settings.warmup)
        if done > 0:
            pull = Pull(settings.penalty * plain / len(layers), SHARP + (BLUNT - SHARP) * done)
            for layer in layers.values():
                layer.pull = pull
        return lost(minibatch)

    biases = [one.bias for one in layers.values() if one.bias is not None]
    groups = [
        Group([layer.auxiliary for layer in layers.values()], settings.rate),
        Group(biases, settings.bias_rate),
    ]
    train(total, rows, groups, Schedule(settings.steps, settings.batch, job.seed_of(900)))
    learned = _settled(rows, lost, layers, job.seed_of(901), settings)
    if learned > plain:
        job.warn(
            f"{job.name}: learned rounding loses {100 * learned:.3g}% of what the block gives, "
            f"plain rounding {100 * plain:.3g}% and is kept; more samples or a lower rate may help"
        )
    return learned <= plain


def _settled(
    rows: Reconstruction,
    lost: Callable[[Minibatch], Tensor],
    layers: Mapping[str, RoundingLinear],
    seed: int,
    settings: Settings,
) -> float:
    """The loss with every weight at the level it is nearer to now."""
    for layer in layers.values():
        layer.settled = True
    with torch.no_grad():
        found = [float(lost(one)) for one in rows.minibatches(LOOKS, settings.batch, seed)]
    for layer in layers.values():
        layer.settled = False
    return sum(found) / len(found)


METHOD = Method(
    "fp4dit",
    "FP4 weights with learned rounding, FP6 or FP8 activations token by token",
    VARIANTS,
    Settings,
    rule,
    solve,
    targets=True,
    presets=PRESETS,
)
