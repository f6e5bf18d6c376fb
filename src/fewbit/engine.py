"""quantize(): plan, solve block by block, replace, report."""

from __future__ import annotations

import copy
import inspect
import itertools
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewbit import memory
from fewbit.activations.time_groups import share_clock
from fewbit.blueprint import quantized_layers
from fewbit.calibration import BlockStream, Calibration, CalibrationSet, Step, sample
from fewbit.decibel import sqnr
from fewbit.errors import BadArgument, BadCalibration, BadModel
from fewbit.files import checked_path, keeping
from fewbit.methods.contract import ModelJob, Rule, Solved
from fewbit.models import Layer, ModelSpec, transformer_of
from fewbit.output_error import OutputError, output_errors
from fewbit.plan import Plan, make_plan
from fewbit.printable import printable
from fewbit.progress import track
from fewbit.provenance import LARGEST_SEED, Provenance, source_sha256
from fewbit.recipe import Recipe
from fewbit.report import LayerReport, Report
from fewbit.resume import BlockDone, Workdir
from fewbit.tensors import digest, stored_once
from fewbit.version import __version__


def quantize(
    model: Any,
    recipe: str | Path,
    *,
    bits: str | None = None,
    calibration: int | Calibration | Iterable[Mapping[str, Any]] | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    workdir: str | Path | None = None,
    progress: bool = True,
    spec: ModelSpec | None = None,
    allow_unknown: bool = False,
    **settings: Any,
) -> Report:
    """Quantize a pipeline, a transformer, or any module with a `ModelSpec`, in place.

    `recipe` is a name (`fewbit.recipes()` lists them) or a recipe file, perhaps with bits after a
    colon; `bits` picks one of its variants; further keywords are the recipe's own settings.
    `calibration` is a number of samples, a `Calibration`, or forward keyword dicts.
    """
    started = time.perf_counter()
    chosen = Recipe.resolve(recipe, bits, settings)
    asked = _asked(chosen, calibration)
    _refuse_no_seed(seed)
    work = None if workdir is None else checked_path("workdir", workdir)
    _refuse_unusable(device)
    transformer: Any = transformer_of(model)
    plan = make_plan(transformer, chosen, spec, allow_unknown)
    _refuse_empty(transformer)
    if progress:
        print(printable(str(plan)), file=sys.stderr)
    bytes_before = stored_bytes(transformer)
    with keeping(work):
        data = _data(model, chosen, asked, seed)
        calibrated = time.perf_counter()
        run = _Run(transformer, plan, data, seed, device, work)
        run.survey(progress)
        for _ in track(run.blocks(), f"{chosen}, blocks", len(plan.structure.blocks), progress):
            pass
        run.finish()
    transformer.requires_grad_(False)  # as it will be when it is loaded again, to the last bit
    for layer in quantized_layers(transformer).values():
        layer.as_stored()
    report = Report(
        recipe=chosen.to_dict(),
        family=plan.structure.family,
        source=source_sha256(run.sources),
        seed=seed,
        fewbit_version=__version__,
        layers=run.layers,
        bytes_before=bytes_before,
        bytes=stored_bytes(transformer),
        duplicate_bytes=_duplicate_bytes(transformer),
        seconds={
            "calibrate": calibrated - started,
            "solve": time.perf_counter() - calibrated,
        },
        warnings=run.warnings,
    )
    transformer.fewbit = Provenance(chosen.to_dict(), seed, report.source, __version__)
    if hasattr(transformer, "register_to_config"):
        from fewbit.diffusers_plugin import attach

        attach(transformer)
    return report


class _Run:
    """The walk over the blocks of one model."""

    def __init__(
        self,
        transformer: nn.Module,
        plan: Plan,
        data: CalibrationSet | None,
        seed: int,
        device: str | torch.device | None,
        workdir: Path | None,
    ) -> None:
        self.transformer, self.plan, self.seed, self.device = transformer, plan, seed, device
        self.data = data
        self.sources = {name: digest(self._weight(name)) for name in plan.rules}
        self.work = None if workdir is None else Workdir(workdir, self._identity(data))
        self.stream = None if data is None else self._stream(data, workdir)
        self.exact = None if data is None else self._exact_stream(data, workdir)
        settings = plan.recipe.settings
        keeps = plan.recipe.implementation.TARGETS and settings.keep_original
        self.original = copy.deepcopy(transformer) if keeps else None
        self.layers: list[LayerReport] = []
        self.warnings: list[str] = []
        self.surveyed: Mapping[str, Tensor] = {}

    def survey(self, progress: bool) -> None:
        """What the method learns of the model before any block is solved."""
        method = self.plan.recipe.implementation
        if self.data is None or method.survey is None:
            return
        if self.work is not None and self.work.surveyed:
            self.surveyed = self.work.restore_survey()
            return
        job = self.plan.survey_job(self.transformer, self.data, self.seed, progress)
        self.surveyed = method.survey(job, self.plan.recipe.settings)
        if self.work is not None:
            self.work.save_survey(self.surveyed)

    def blocks(self) -> Iterator[int]:
        """Each block when it is done, those first that an earlier run has finished."""
        first = self._restore()
        yield from range(first)
        for block, (step, exact) in zip(self._rest(first), self._steps(first), strict=True):
            if exact is not None:
                exact.advance()  # the block is still in full precision
            if self.work is not None and self.work.finished(block):
                self._take(self.work.restore(self.transformer, block))
            else:
                self._solve(block, step, exact)
            memory.release()
            yield block

    def finish(self) -> None:
        """What a method does to the whole model in the end."""
        method, settings = self.plan.recipe.implementation, self.plan.recipe.settings
        if method.finish is None or self.data is None:
            return
        exact = self.exact or self.stream
        assert exact is not None
        blocks = self.plan.structure.blocks
        job = ModelJob(self.transformer, blocks, self.data, exact.results, self.original, self.seed)
        if self.work is not None and self.work.tuned:
            self.work.restore_tuned(self.transformer)
        elif not method.finish(job, settings):
            return
        elif self.work is not None:
            self.work.save_tuned(self.transformer)
        self.warnings.append("the layers' errors are those before the whole model was trained")

    def _solve(self, block: int, step: Step | None, exact: Step | None) -> None:
        job = self.plan.job(self.transformer, block, self.seed)
        job.step, job.exact, job.survey = step, exact, self.surveyed
        if step is not None and not self.plan.recipe.settings.propagate:
            step.advance()
            job.exact = step
        originals = {name: job.linear(name) for name in job.rules}
        with _visiting(self.device, job.module):
            self.plan.recipe.implementation.solve(job, self.plan.recipe.settings)
        share_clock(self.transformer)
        outputs = {} if step is None else output_errors(step, job, originals)
        reports = [
            _layer_report(
                layer, originals[layer.name], job.rules[layer.name], job.solved[layer.name], outputs
            )
            for layer in job.layers
        ]
        done = BlockDone(reports, job.warnings)
        self._take(done)
        if self.work is not None:
            self.work.save(self.transformer, job.name, block, done)

    def _take(self, done: BlockDone) -> None:
        self.layers += done.layers
        self.warnings += done.warnings

    def _restore(self) -> int:
        """Blocks whose result and whose outputs an earlier run has left."""
        count = len(self.plan.structure.blocks)
        if self.work is None:
            return 0
        ready = min(
            (stream.ready() for stream in (self.stream, self.exact) if stream), default=count
        )
        first = 0
        while first < ready and self.work.finished(first):
            self._take(self.work.restore(self.transformer, first))
            first += 1
        return first

    def _rest(self, first: int) -> range:
        return range(first, len(self.plan.structure.blocks))

    def _steps(self, first: int) -> Iterator[tuple[Step | None, Step | None]]:
        """Of each block, its place in the stream and in the one that stays in full precision."""
        none = [None] * len(self._rest(first))
        streams = ((none if one is None else one.steps(first)) for one in (self.stream, self.exact))
        return zip(*streams, strict=True)

    def _exact_stream(self, data: CalibrationSet, workdir: Path | None) -> BlockStream | None:
        """A second one, where the method wants targets that quantized blocks have not touched."""
        recipe = self.plan.recipe
        if not (recipe.implementation.TARGETS and recipe.settings.propagate):
            return None
        return self._stream(data, None if workdir is None else workdir / "exact")

    def _stream(self, data: CalibrationSet, workdir: Path | None) -> BlockStream:
        blocks = [self.transformer.get_submodule(name) for name in self.plan.structure.blocks]
        return BlockStream(self.transformer, blocks, data, workdir=workdir)

    def _identity(self, data: CalibrationSet | None) -> dict[str, Any]:
        """What must be the same for finished blocks to be used again."""
        return {
            "recipe": self.plan.recipe.to_dict(),
            "seed": self.seed,
            "fewbit": __version__,
            "weights": source_sha256(self.sources),
            "data": None if data is None else data.fingerprint(),
        }

    def _weight(self, name: str) -> Tensor:
        linear = self.transformer.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        return linear.weight


def _asked(recipe: Recipe, calibration: object) -> Calibration | CalibrationSet | Iterable[Any]:
    """What a recipe is to see, judged as far as it can be before it is made."""
    if calibration is not None and not recipe.implementation.CALIBRATED:
        raise BadCalibration(f"{recipe.method} looks at no data; leave calibration out")
    if calibration is None:
        return Calibration()
    if isinstance(calibration, int):
        return Calibration(calibration)
    if isinstance(calibration, Calibration | CalibrationSet):
        return calibration
    if isinstance(calibration, str | bytes | Mapping) or not isinstance(calibration, Iterable):
        raise BadCalibration(
            f"calibration must be a number of samples, a fewbit.Calibration, or a list of dicts "
            f"of the forward's keyword arguments, got {type(calibration).__name__}"
        )
    return calibration


def _data(
    model: Any,
    recipe: Recipe,
    asked: Calibration | CalibrationSet | Iterable[Mapping[str, Any]],
    seed: int,
) -> CalibrationSet | None:
    """What a calibrated recipe sees: what was given, or the pipeline's own trajectories."""
    if not recipe.implementation.CALIBRATED:
        return None
    if not isinstance(asked, Calibration):
        given = asked if isinstance(asked, CalibrationSet) else CalibrationSet.from_items(asked)
        _refuse_foreign(given, transformer_of(model))
        return given
    if isinstance(model, nn.Module):
        raise BadCalibration(
            f"{recipe.method} needs to see data, and a bare {type(model).__name__} cannot make "
            "its own; give calibration=[{...}, ...], dicts of its forward's keyword arguments, "
            "or quantize the whole pipeline"
        )
    times = getattr(recipe.settings, "time_groups", 1)
    return sample(
        model,
        samples=asked.samples or recipe.settings.samples,
        seed=seed,
        steps=asked.steps,
        guidance=asked.guidance,
        prompts=asked.prompts,
        times=times,
    )


def _refuse_foreign(data: CalibrationSet, transformer: nn.Module) -> None:
    """Rows whose arguments the transformer does not take, or that lack one it needs."""
    forward = inspect.signature(transformer.forward)
    try:
        forward.bind(**data.arguments)
    except TypeError as error:
        raise BadCalibration(
            f"calibration does not suit the forward of {type(transformer).__name__}: {error}; "
            f"it takes {', '.join(forward.parameters)}"
        ) from None


def stored_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers, each once however many modules share it."""
    total = reached = 0
    tensors = itertools.chain(model.parameters(), model.buffers())
    for tensor in sorted(tensors, key=torch.Tensor.data_ptr):
        start, end = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
        if start == 0:  # without data (on meta) nothing overlaps
            total += tensor.nbytes
        else:
            total += max(end - max(start, reached), 0)
            reached = max(end, reached)
    return total


def _duplicate_bytes(model: nn.Module) -> int:
    """What storing equal tensors once saves, beyond what the model shares already."""
    unique = {tensor.data_ptr(): tensor for tensor in model.state_dict().values()}
    named = {str(place): tensor for place, tensor in unique.items()}
    return sum(named[name].nbytes for name in stored_once(named)[1])


def _refuse_no_seed(seed: object) -> None:
    if type(seed) is not int or not 0 <= seed <= LARGEST_SEED:
        raise BadArgument(f"seed must be a whole number from 0 to {LARGEST_SEED}, got {seed!r:.80}")


def _refuse_empty(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise BadModel(
                f"{name} of {type(model).__name__} is on the meta device and holds no numbers; "
                "load the weights, or take away what offloads them, before quantizing"
            )


def _refuse_unusable(device: str | torch.device | None) -> None:
    try:
        usable = torch.empty(0, device=device).device.type != "meta"
        reason = "it holds no data"
    except (RuntimeError, AssertionError, TypeError) as error:
        usable, reason = False, str(error).partition("\n")[0]
    if not usable:
        raise BadArgument(f"cannot use device {str(device)!r}: {reason}")


@contextmanager
def _visiting(device: str | torch.device | None, block: nn.Module) -> Iterator[None]:
    """The block is on `device` for the time of its solution, and comes home whatever happens."""
    if device is None:
        yield
        return
    home = next(block.parameters()).device
    try:
        block.to(device)
        yield
    finally:
        block.to(home)


def _layer_report(
    layer: Layer,
    original: nn.Linear,
    rule: Rule,
    solved: Solved,
    outputs: Mapping[str, OutputError],
) -> LayerReport:
    weight, packed = original.weight.detach(), solved.layer.packed_weight
    stage = solved.layer.stage
    activation = getattr(stage.activation, "spec", None) if stage else None
    weight_db = sqnr(solved.target, packed.dequantize())
    without_data = not outputs  # then the method is plain rounding itself
    plain_db = weight_db if without_data else sqnr(weight, solved.plainly(weight, rule))
    return LayerReport(
        name=layer.name,
        role=str(layer.role),
        weight=str(packed.spec),
        activation=None if activation is None else str(activation),
        bits_per_weight=8 * packed.nbytes / weight.numel(),
        bytes_before=layer.bytes,
        bytes=solved.layer.nbytes(),
        weight_db=weight_db,
        rounding_weight_db=plain_db,
        output_db=outputs[layer.name].actual_db if outputs else None,
        rounding_output_db=outputs[layer.name].plain_db if outputs else None,
    )
