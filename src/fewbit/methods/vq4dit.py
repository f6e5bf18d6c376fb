"""VQ4DiT (Deng et al., 2024): vector-quantized weights, codebooks and assignments calibrated
together, without data.

Section 3.1  every linear of a block becomes a codebook and one assignment for each vector of
             weights, at first by k-means
Section 3.2  a vector may be any of its nearest entries, the candidates; their ratios are learned,
             and vectors that have decided are frozen little by little
Section 3.3  the full-precision model makes its own trajectories from noise; codebooks, ratios and
             biases are trained until the blocks give what they gave before

The published code differs from the paper: there codebooks wait until all assignments are frozen,
there are two candidates and not the best three, and the student drops labels. This follows the
paper, block by block (`scope="model"` is the published way, all blocks at once). Ours are the
weighting of k-means by what the inputs are, the scale of each output channel, the hard share of
vectors that freeze in time, and `tuning`, a last training of the whole model on its own output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fewbit.activations.dynamic import Dynamic
from fewbit.calibration.observe import mean_squares
from fewbit.calibration.pool import Example
from fewbit.calibration.reconstruction import Minibatch, Reconstruction
from fewbit.calibration.training import Group, Schedule, train, trainable_copy
from fewbit.calibration.tree import tensors
from fewbit.errors import BadArgument
from fewbit.formats import FORMATS, SCALES, Codebook, QTensor, Spec
from fewbit.layers.linear import QLinear
from fewbit.layers.stage import InputStage
from fewbit.methods.method import BlockJob, Method, ModelJob, Rule
from fewbit.methods.settings import Calibrated, modulation, precision, products_in, setting
from fewbit.models import Layer
from fewbit.rounding.candidates import VectorLinear
from fewbit.rounding.vector import vector_quantize

PRESETS: dict[str, dict[str, Any]] = {
    "fast": {"samples": 64, "steps": 100},
    "published": {"scope": "model", "candidates": 2, "weighted": False, "row_scales": False},
}
FREEZINGS = 20  # how often more vectors are frozen
MOST_CANDIDATES = 8


def _codebook(entries: int, columns: int, integers: bool = False) -> Spec:
    return Spec(Codebook(entries, columns, integers), "tensor")


VARIANTS = {
    "w2a16": Rule(_codebook(256, 4)),
    "w3a16": Rule(_codebook(64, 2)),
    "w4a16": Rule(_codebook(256, 2)),
    "w1.5a16": Rule(_codebook(64, 4)),
    "w2a8": Rule(_codebook(256, 4, integers=True), Spec(FORMATS["int8"])),
}


@dataclass(frozen=True)
class Settings(Calibrated):
    steps: int = setting(
        300, least=0, help="training steps of each block, or of the whole model with scope=model"
    )
    batch: int = setting(16, least=1, help="rows in each training step")
    candidates: int = setting(
        3,
        allowed=tuple(range(1, MOST_CANDIDATES + 1)),
        help="codebook entries that a vector may become; 1 trains no assignments",
    )
    ratios: str = setting(
        "distance",
        allowed=("distance", "uniform"),
        help="ratios of the candidates at first: by inverse distance, or equal",
    )
    freeze_from: float = setting(
        0.1, least=0, below=1, help="share of the training after which the first vectors are frozen"
    )
    freeze_to: float = setting(
        0.7, above=0, help="share of the training after which the last vectors are frozen"
    )
    precision: str = precision()
    penalty: float = setting(0.0, least=0, help="penalty on ratios that have not decided")
    rate: float = setting(
        1e-2, above=0, help="learning rate of codebooks, in units of their root mean square"
    )
    ratio_rate: float = setting(0.15, above=0, help="learning rate of the logits of the ratios")
    bias_rate: float = setting(1e-3, above=0, help="learning rate of biases")
    gain_rate: float = setting(
        1e-3, above=0, help="learning rate of the scales of output channels, relative to them"
    )
    weighted: bool = setting(True, help="k-means weighs an error by the inputs that it meets")
    row_scales: bool = setting(True, help="each output channel has a scale of its own")
    scope: str = setting(
        "block",
        allowed=("block", "model"),
        help="what is trained at once; the paper trains the model",
    )
    tuning: int = setting(
        0, least=0, help="steps of a last training of codebooks and biases on the model's output"
    )
    adaln: str = modulation("same")

    @property
    def trained_rows(self) -> int:
        return self.steps * self.batch

    @property
    def tuned_rows(self) -> int:
        return self.tuning * self.batch

    @property
    def keep_original(self) -> bool:
        return self.scope == "model"

    def check(self) -> None:
        if not 0 <= self.freeze_from < self.freeze_to <= 1:
            raise BadArgument(
                f"freezing cannot go from {self.freeze_from} to {self.freeze_to} of the training; "
                "allowed: 0 <= freeze_from < freeze_to <= 1"
            )


def rule(layer: Layer, variant: Rule, settings: Settings) -> Rule:
    """The variant; a layer whose columns no vectors fit gets int8."""
    if layer.shape[1] % variant.weight.format.columns_per_code:
        return Rule(Spec(FORMATS["int8"]), variant.activation)
    spec = replace(variant.weight, format=variant.weight.format.for_size(*layer.shape))
    if settings.row_scales:
        spec = replace(spec, span="row", scale=SCALES["fp16"])
    return Rule(spec, variant.activation)


def solve(job: BlockJob, settings: Settings) -> None:
    """Sections 3.1 and, if blocks are trained one by one, 3.2 and 3.3."""
    moments = _moments(job, settings)
    stages = _stages(job)
    layers = {}
    for number, name in enumerate(job.rules):
        weight, spec, bias = job.weight(name), job.rules[name].weight, job.linear(name).bias
        if not spec.format.learned:
            packed = QTensor.quantize(weight, spec)
            job.replace(name, QLinear(packed, bias, stages[name]), weight)
            continue
        start = vector_quantize(weight, spec, job.seed_of(number), moments[name])
        layers[name] = VectorLinear(start, bias, stages[name])
        if settings.scope == "block" and settings.candidates > 1:
            _consider(layers[name], weight, moments[name], settings)
    if layers and settings.scope == "block" and settings.steps:
        _calibrate(job, layers, settings)
    for number, (name, layer) in enumerate(layers.items()):
        weight = job.weight(name)
        settled = _settled(layer, job.linear(name).bias, stages[name])
        plain = layer.start
        if settings.weighted or settings.row_scales:
            spec = replace(job.rules[name].weight, span="tensor")
            plain = vector_quantize(weight, spec, job.seed_of(number))
        job.replace(name, settled, target=weight, plain=plain)


def finish(job: ModelJob, settings: Settings) -> bool:
    """What is trained on the whole model: everything as published, or the last tuning."""
    if settings.scope == "model" and settings.steps:
        _calibrate_model(job, settings)
    if settings.tuning:
        _tune(job, settings)
    return bool(settings.tuning or (settings.scope == "model" and settings.steps))


def _moments(job: BlockJob, settings: Settings) -> dict[str, Tensor | None]:
    """The mean square of each layer's inputs."""
    if not settings.weighted:
        return dict.fromkeys(job.rules)
    seen = job.observe()
    return {name: seen[group[0]].moments.diagonal() for group in job.groups for name in group}


def _stages(job: BlockJob) -> dict[str, InputStage | None]:
    stages: dict[str, InputStage | None] = {}
    for group in job.groups:
        spec = job.rules[group[0]].activation
        stage = None if spec is None else InputStage(activation=Dynamic(spec))
        stages |= dict.fromkeys(group, stage)
    return stages


def _consider(
    layer: VectorLinear, weight: Tensor, moments: Tensor | None, settings: Settings
) -> None:
    layer.consider(weight, moments, settings.candidates, settings.ratios == "uniform")


def _calibrate(job: BlockJob, layers: Mapping[str, VectorLinear], settings: Settings) -> None:
    """One block, on what the blocks before it give now and what it gave in full precision."""
    assert job.step is not None
    assert job.exact is not None
    block = trainable_copy(job.module)
    for name, layer in layers.items():
        block.set_submodule(job.path(name), layer)

    rows = Reconstruction.of_block(job.step, job.exact)
    _learn(
        lambda minibatch: minibatch.loss(block), layers.values(), rows, settings, job.seed_of(900)
    )


def _calibrate_model(job: ModelJob, settings: Settings) -> None:
    """The published form: the student's blocks are chained, each held to the teacher's."""
    assert job.original is not None
    teacher, student = trainable_copy(job.original), trainable_copy(job.model)
    layers = _trainable(student)
    if settings.candidates > 1:
        read = {name: teacher.get_submodule(name) for name in layers}
        moments = mean_squares(teacher, read, job.exact.data) if settings.weighted else {}
        for name, layer in layers.items():
            weight = read[name].weight
            assert isinstance(weight, Tensor)
            _consider(layer, weight, moments.get(name), settings)

    def loss(minibatch: Minibatch) -> Tensor:
        return torch.stack([strays(one) for one in minibatch.examples]).mean()

    def strays(example: Example) -> Tensor:
        with torch.no_grad():
            exact = _block_outputs(teacher, job.blocks, example)
        given = _block_outputs(student, job.blocks, example)
        parts = [
            (one - other).square().mean() / other.square().mean()
            for one, other in zip(given, exact, strict=True)
        ]
        return torch.stack(parts).mean()

    rows = Reconstruction.of_model(job.exact)
    _learn(loss, layers.values(), rows, settings, job.seed)
    _put_back(job.model, layers)


def _tune(job: ModelJob, settings: Settings) -> None:
    """Codebooks, scales and biases of all blocks, on the output of the model itself."""
    student = trainable_copy(job.model)
    layers = _trainable(student)

    rows, last = Reconstruction.of_model(job.exact), replace(settings, steps=settings.tuning)
    _learn(lambda minibatch: minibatch.loss(student), layers.values(), rows, last, job.seed + 1)
    _put_back(job.model, layers)


def _learn(
    loss: Callable[[Minibatch], Tensor],
    layers: Iterable[VectorLinear],
    rows: Reconstruction,
    settings: Settings,
    seed: int,
) -> None:
    """Section 3.3, with the freezing of section 3.2 in time and not by a threshold: at the end
    every vector has decided, and codebooks have had time to follow."""
    undecided = [layer for layer in layers if layer.undecided]

    def total(minibatch: Minibatch, progress: float) -> Tensor:
        error = loss(minibatch)
        if not settings.penalty or not undecided:
            return error
        doubts = torch.stack([layer.indecision() for layer in undecided])
        return error + settings.penalty * doubts.mean()

    def share(progress: float) -> float:
        done = (progress - settings.freeze_from) / (settings.freeze_to - settings.freeze_from)
        return int(FREEZINGS * min(max(done, 0.0), 1.0)) / FREEZINGS

    def freeze(progress: float) -> None:
        due = share(progress)
        if due > share(progress - 1 / settings.steps):
            for layer in undecided:
                layer.freeze(due)

    for layer in layers:
        layer.products = products_in(settings.precision, layer.codebook.device)
    groups = [
        Group([layer.codebook for layer in layers], settings.rate),
        Group([layer.logits for layer in undecided], settings.ratio_rate),
        Group([layer.bias for layer in layers if layer.bias is not None], settings.bias_rate),
        Group([layer.gain for layer in layers if layer.gain.requires_grad], settings.gain_rate),
    ]
    train(total, rows, groups, Schedule(settings.steps, settings.batch, seed), freeze)


def _settled(layer: VectorLinear, bias: Tensor | None, stage: InputStage | None) -> QLinear:
    """With a bias in the dtype of the one before."""
    if layer.undecided:
        layer.freeze(1.0)
    new = None if layer.bias is None or bias is None else layer.bias.detach().to(bias.dtype)
    return QLinear(layer.packed(), new, stage)


def _trainable(model: nn.Module) -> dict[str, VectorLinear]:
    """All layers of a copy that have codebooks, by name, each made trainable in its place."""
    layers = {}
    for name, layer in list(model.named_modules()):
        if isinstance(layer, QLinear) and layer.spec.format.learned:
            layers[name] = VectorLinear(layer.packed_weight, layer.bias, layer.stage)
            model.set_submodule(name, layers[name])
    return layers


def _put_back(model: nn.Module, layers: Mapping[str, VectorLinear]) -> None:
    """Layers that share an input stage still do."""
    for name, layer in layers.items():
        before = model.get_submodule(name)
        assert isinstance(before, QLinear)
        settled = _settled(layer, before.bias, before.stage)
        settled.model_dtype = before.model_dtype
        model.set_submodule(name, settled.train(model.training))


def _block_outputs(model: nn.Module, blocks: Iterable[str], example: Example) -> list[Tensor]:
    """What every block gives on the way to the model's output."""
    given: list[Tensor] = []

    def note(module: nn.Module, args: Any, output: Any) -> None:
        given.extend(tensors(output).values())

    hooks = [model.get_submodule(name).register_forward_hook(note) for name in blocks]
    try:
        model(*example.args, **example.kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    return given


METHOD = Method(
    "vq4dit",
    "2 and 3 bit weights: codebooks and assignments, calibrated together without data",
    VARIANTS,
    Settings,
    rule,
    solve,
    finish=finish,
    targets=True,
    presets=PRESETS,
)
