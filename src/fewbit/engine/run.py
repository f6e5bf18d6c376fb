"""quantize(): plan, solve block by block, replace, report."""

from __future__ import annotations

import copy
import itertools
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewbit.activations.clock import share_clock
from fewbit.calibration import BlockStream, Calibration, CalibrationSet, CallSet, Source, Step
from fewbit.calibration.trial import Trial, try_out
from fewbit.engine import memory
from fewbit.engine.allocate import allocate, budget_of, promise
from fewbit.engine.call import call_for
from fewbit.engine.decibel import sqnr
from fewbit.engine.forecast import BLOCKS, SURVEY, TRAINING, rows_of
from fewbit.engine.identity import model_sha256, pipeline_sha256
from fewbit.engine.idle import round_plainly
from fewbit.engine.measured import CALLS, ROWS, Measured, Measurement, attempted
from fewbit.engine.originals import Originals, written_on_copies
from fewbit.engine.output_error import OutputError, output_errors
from fewbit.engine.plan import Plan, make_plan
from fewbit.engine.recipe import Recipe
from fewbit.engine.report import LayerReport, Report, together
from fewbit.engine.source import Asked, asked_by, note_of, source_of
from fewbit.engine.stored_size import size_of
from fewbit.engine.workdir import BlockDone, Workdir, alone_in
from fewbit.errors import BadArgument, BadCalibration, BadModel, printable
from fewbit.files import checked_path, keeping
from fewbit.layers.bind import bind, unbind
from fewbit.layers.offload import refuse_empty
from fewbit.methods.method import BlockJob, Method, ModelJob
from fewbit.models import SPEC, Component, Layer, components_of
from fewbit.models.flexible_attention import differentiable
from fewbit.models.hidden import shown
from fewbit.progress import LOG, Meter, Progress
from fewbit.storage.entries import Entries
from fewbit.storage.provenance import LARGEST_SEED, Provenance, mark, source_sha256
from fewbit.storage.spec_file import Given, specs_from
from fewbit.storage.tensors import digest
from fewbit.version import __version__

MEASURING = "measuring"
Shown = bool | Meter | Callable[[Progress], object]  # how progress is to be shown


def quantize(
    model: Any,
    recipe: str | Path | Method,
    *,
    bits: str | None = None,
    calibration: int | Calibration | Iterable[Mapping[str, Any]] | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    workdir: str | Path | None = None,
    progress: Shown = True,
    spec: Given = None,
    allow_unknown: bool = False,
    strict: bool = False,
    components: Sequence[str] | None = None,
    measure: bool = False,
    **settings: Any,
) -> Report:
    """Quantize a model in place and report what each layer lost.

    The same inputs, seed and machine give the same bits. A call that ends early, by an error or by
    Ctrl-C, leaves the model as it was.

    Args:
        model: A diffusers pipeline, a diffusers transformer, or any module with lists of blocks.
            Its linear layers are replaced.
        recipe: The name of a recipe (`fewbit.recipes()` lists them), the path of a recipe file
            (`.json`), or a `Method`. A name may carry its bits after a colon: `"rtn:w8a8"`.
        bits: One of the recipe's variants, such as `"w4a8"`: weights of 4 bits, inputs of 8.
            `"w4"` is short for `"w4a16"`, weights only. The recipe's first if left out.
        calibration: What a recipe that needs data sees. A number of samples or a `Calibration`
            lets the pipeline draw them itself. A list of dicts gives the keyword arguments of the
            transformer's forward, for a model that is no pipeline. Left out, the pipeline draws
            as many as the recipe wants. A recipe that needs no data refuses it.
        seed: The seed of every random choice, from 0 to 2**32 - 1.
        device: Where each block is solved, such as `"cuda"`. The block returns to its place
            afterwards. Left out, it is solved where it is.
        workdir: A folder that keeps what is finished. The same call with the same folder goes on
            from there, even after the process was killed, and ends with the same bits.
        progress: Whether to print the plan and the progress to stderr; or a function that is called
            at every step with a `fewbit.progress.Progress`. The logger "fewbit" is told the plan,
            the progress and the warnings in any case.
        spec: Where the blocks of the model are and what their linear layers do: a
            `fewbit.ModelSpec`, a table of its fields, or the path of a JSON file, such as
            `fewbit inspect MODEL --spec` prints. Left out, fewbit knows it or finds it out. Of
            several components a table has the spec of each under its name.
        allow_unknown: Whether layers of unknown role stay in high precision. Otherwise they are
            an error.
        strict: Whether it is an error that more than 1 % of all weights stay in high precision
            although neither a spec nor a family says so.
        components: The names of a pipeline's networks that are quantized, such as
            `("transformer", "text_encoder")`, one after the other as they run; each is calibrated
            on what it receives then. Left out, those are that denoise: `transformer`, and
            `transformer_2` where the pipeline has it.
        measure: Whether to measure in the end, by a few calls of the network, how fast it is beside
            bfloat16 on this machine, and how far its output is from full precision where there is
            calibration data. The report says it.
        **settings: Settings of the recipe by name, or `preset="fast"` for several that belong
            together. `fewbit recipes NAME` lists them.

    Returns:
        A report of every layer: formats, bytes and errors. It can be printed and saved.

    Raises:
        FewbitError: An argument, the model or the calibration cannot be used. The message says
            what is allowed.
    """
    chosen = Recipe.resolve(recipe, bits, settings)
    asked = asked_by(chosen, calibration)
    _refuse_no_seed(seed)
    work = None if workdir is None else checked_path("workdir", workdir)
    if device is not None:
        _refuse_unusable(device)
    parts = components_of(model, components)
    if len(parts) > 1:
        _refuse_for_one(parts, chosen, asked)
    names = [part.name for part in parts]
    told = specs_from(spec, names)
    with ExitStack() as whole:
        tasks = []
        for part in parts:
            place = work if work is None or len(parts) == 1 else work / part.name
            originals = Originals(part.network, place)
            whole.enter_context(shown(part.network))
            source = source_of(model, part, chosen, asked, seed)
            how = asked if isinstance(asked, Calibration) else Calibration()
            see = partial(call_for, model, part, source, how)
            known = told[part.name]
            plan = make_plan(part.network, chosen, known, allow_unknown, strict=strict, see=see)
            budget_of(plan)
            refuse_empty(part.network, "quantizing")
            tasks.append((part, plan, source, place, originals, see if measure else None))
        meter = whole.enter_context(_meter(chosen, progress))
        whole.enter_context(keeping(work))
        whole.enter_context(alone_in(work))
        runs = []
        for part, plan, source, place, originals, call in tasks:
            whole.enter_context(originals.back_on_failure())
            runs.append(
                _Run(model, part, plan, source, seed, device, place, meter, originals, names, call)
            )
        reports = {run.component.name: run.quantized() for run in runs}
    memory.release()
    report = together(reports)
    for warning in report.warnings:
        LOG.warning("%s", warning)
    return report


class _Run:
    """The walk over the blocks of one network."""

    def __init__(
        self,
        model: Any,
        component: Component,
        plan: Plan,
        source: CalibrationSet | Source | None,
        seed: int,
        device: str | torch.device | None,
        workdir: Path | None,
        meter: Meter,
        originals: Originals,
        together: Sequence[str],
        see: Callable[[], Mapping[str, Any] | None] | None,
    ) -> None:
        """together: the names of all networks that are quantized in one call. see: a call of the
        network, to be measured with where there are no data; None if nothing is to be measured."""
        self.see = see
        self.originals, self.together = originals, together
        self.model, self.component, self.network = model, component, component.network
        self.plan, self.source, self.seed = plan, source, seed
        self.device, self.meter = device, meter
        self.sources = {name: digest(self._weight(name)) for name in plan.rules}
        self.work = None if workdir is None else Workdir(workdir, self._identity())
        self.original: nn.Module | None = None  # a copy, where the method wants one
        self.data: CalibrationSet | None = None
        self.stream: BlockStream | None = None
        self.exact: BlockStream | None = None
        self.layers: list[LayerReport] = []
        self.warnings: list[str] = []
        self.surveyed: Mapping[str, Tensor] = {}
        self._show_plan()
        with self._phases():
            self._expect()

    def quantized(self) -> Report:
        """The whole walk."""
        started = time.perf_counter()
        with self._phases(), _derivable(self.network, self.plan.recipe):
            self.calibrate()
            begun = attempted(self._measurement)
            calibrated = time.perf_counter()
            self.survey()
            self.allocate()
            self.blocks()
            self.finish()
            self.outside()
        self.network.requires_grad_(False)  # as it will be when loaded again, to the last bit
        unbind(self.network)
        report = Report(
            recipe=self.plan.recipe.to_dict(),
            family=self.plan.structure.family,
            source=source_sha256(self.sources),
            seed=self.seed,
            fewbit_version=__version__,
            layers=self.layers,
            bytes_before=self.plan.stored.bytes,
            bf16_bytes=self.plan.stored.bf16_bytes,
            size=size_of(self.network),
            seconds={
                "calibrate": calibrated - started,
                "solve": time.perf_counter() - calibrated,
            },
            warnings=[*filter(None, [note_of(self.source)]), *self.warnings, *self.notes],
        )
        setattr(self.network, SPEC, self.plan.structure.spec)
        mark(self.network, Provenance(report.recipe, self.seed, report.source, __version__))
        bind(self.network, self.plan.structure)
        report.measured[self.component.name or "transformer"] = self._measured(begun)
        return report

    def _measurement(self) -> Measurement | str:
        """Begun with some of the data, or with one call of the network where there are none."""
        if self.see is None:
            return "not asked for"
        if self.data is not None:
            return Measurement(self.network, self.data.some(ROWS, self.seed), drawn=True)
        call = self.see()
        if call is None:
            return "nothing says how the network is called"
        return Measurement(self.network, CallSet.from_items([call]), drawn=False)

    def _measured(self, begun: Measurement | str) -> Measured:
        if isinstance(begun, str):
            return Measured(why_not=begun)
        with self._phases():
            self.meter.begin(MEASURING, 1)
        found = attempted(partial(begun.end, self.network))
        unbind(self.network)  # layouts and recorded programs are the first caller's to make
        bind(self.network, self.plan.structure)
        return Measured(why_not=found) if isinstance(found, str) else found

    @property
    def notes(self) -> list[str]:
        """What was found damaged in the work folder."""
        return [] if self.work is None else self.work.entries.notes

    def calibrate(self) -> None:
        """The data, drawn unless it was given, and the streams of it through the blocks."""
        entries = None if self.work is None else self.work.entries
        recipe = self.plan.recipe
        if recipe.method.targets and recipe.settings.keep_original:
            self.original = copy.deepcopy(self.network)
        if isinstance(self.source, Source):
            self.data = self.source.draw(self.model, entries, self.meter)
        else:
            self.data = self.source
        if self.data is not None:
            self.plan = self.plan.tried(self._trial(self.data))
            self.stream = self._stream(self.data, entries)
            self.exact = self._exact_stream(self.data, entries)

    def _trial(self, data: CalibrationSet) -> Trial:
        structure = self.plan.structure
        numbers = range(len(structure.blocks))
        attending = list(itertools.chain.from_iterable(map(structure.attending, numbers)))
        groups = list(itertools.chain.from_iterable(map(structure.shared_inputs, numbers)))
        linears = list(self.plan.rules)
        return try_out(self.network, structure.blocks, linears, groups, attending, data)

    def survey(self) -> None:
        """What the method learns of the model before any block is solved."""
        method = self.plan.recipe.method
        if self.data is None or method.survey is None:
            return
        known = None if self.work is None else self.work.survey()
        if known is not None:
            self.surveyed = known
            return
        self.meter.begin(SURVEY, 1)
        job = self.plan.survey_job(self.network, self.data, self.seed, self._track_survey)
        self.surveyed = method.survey(job, self.plan.recipe.settings)
        if self.work is not None:
            self.work.save_survey(self.surveyed)

    def allocate(self) -> None:
        """The rule of each layer, where a budget limits them all."""
        budget = budget_of(self.plan)
        if budget is None:
            return
        self.plan = allocate(self.plan, self.surveyed, budget)
        self._say(f"within the budget, {self.plan}")

    def blocks(self) -> None:
        """Each of them solved, or restored where an earlier run has finished it."""
        first = self._first()
        self.meter.begin(BLOCKS, len(self.plan.structure.blocks))
        for block in range(first):
            self._restore(block)
        self._let_go()
        for block, (step, exact) in zip(self._rest(first), self._steps(first), strict=True):
            if self.work is not None and self.work.finished(block):
                if exact is not None:
                    exact.advance()  # the block is still in full precision
                self._restore(block)
            else:
                self._solve(block, step, exact)
                self.meter.reach(block + 1)
            self._let_go()

    def finish(self) -> None:
        """What a method does to the whole model in the end."""
        method, settings = self.plan.recipe.method, self.plan.recipe.settings
        if method.finish is None or self.data is None:
            return
        exact = self.exact or self.stream
        assert exact is not None
        blocks = self.plan.structure.blocks
        job = ModelJob(self.network, blocks, exact, self.original, self.seed)
        if self.work is None or not self.work.restore_tuned(self.network):
            self.meter.begin(TRAINING, 1)
            if not method.finish(job, settings):
                return
            if self.work is not None:
                self.work.save_tuned(self.network)
        self.warnings.append("the layers' errors are those before the whole model was trained")

    def outside(self) -> None:
        """Last, because blocks are solved for the inputs that full precision gives them."""
        job = self.plan.job_outside(self.network, self.seed)
        originals = {name: job.linear(name) for name in job.rules}
        round_plainly(job)
        self.layers += [
            _layer_report(layer, job, originals[layer.name], None) for layer in job.layers
        ]
        self._let_go()

    def _show_plan(self) -> None:
        note = note_of(self.source)
        lines = [str(self.plan), *promise(self.plan), *([f"  {note}"] if note else ())]
        named = [f"{self.component.name}:"] if len(self.together) > 1 else []
        self._say("\n".join([*named, *lines]))

    def _say(self, text: str) -> None:
        LOG.info("%s", text)
        if self.meter.show:
            print(printable(text), file=sys.stderr)

    def _phases(self) -> AbstractContextManager[None]:
        return self.meter.inside(self.component.name if len(self.together) > 1 else "")

    def _expect(self) -> None:
        """The phases to come, for the time left until they are measured themselves."""
        for phase, rows in rows_of(self.plan.recipe, self.source).items():
            self.meter.expect(phase, rows)
        if self.see is not None:
            self.meter.expect(MEASURING, 0 if self.source is None else CALLS)

    def _track_survey(self, parts: Sequence[range]) -> Iterator[range]:
        return self.meter.track(SURVEY, parts, len(parts))

    def _solve(self, block: int, step: Step | None, exact: Step | None) -> None:
        job, idle = (self.plan.job(self.network, block, self.seed, one) for one in (False, True))
        method = self.plan.recipe.method
        job.step, job.exact, job.survey = step, exact, self.surveyed
        if exact is not None and not (method.records and job.rules):
            exact.advance()  # the block is still in full precision
        if step is not None and not self.plan.recipe.settings.propagate:
            step.advance()
            job.exact = step
        originals = {name: job.linear(name) for name in (*job.rules, *idle.rules)}
        with written_on_copies(job.module):
            with _visiting(self.device, job.module):
                if job.rules:
                    method.solve(job, self.plan.recipe.settings)
                _round_idle(idle)
            share_clock(self.network)
            outputs = {} if step is None else output_errors(step, job, originals)
            reports = [
                _layer_report(layer, one, originals[layer.name], outputs.get(layer.name))
                for one in (job, idle)
                for layer in one.layers
            ]
        done = BlockDone(reports, job.warnings + idle.warnings)
        self._take(done)
        if self.work is not None:
            self.work.save(self.network, job.name, block, done)

    def _take(self, done: BlockDone) -> None:
        self.layers += done.layers
        self.warnings += done.warnings

    def _let_go(self) -> None:
        """Of the memory of what finished blocks were."""
        self.originals.park()
        memory.release()

    def _restore(self, block: int) -> None:
        assert self.work is not None
        self._take(self.work.restore(self.network, block))
        self.meter.reach(block + 1, found=True)

    def _first(self) -> int:
        """The block to go on at: those before it are finished, and all streams can begin there."""
        blocks = range(len(self.plan.structure.blocks))
        work, streams = self.work, [one for one in (self.stream, self.exact) if one is not None]
        if work is None:
            return 0
        finished = sum(1 for _ in itertools.takewhile(work.finished, blocks))
        places = range(finished, -1, -1)
        return next(
            place
            for place in places
            if all(one.begins(min(place, len(one.blocks))) for one in streams)
        )

    def _rest(self, first: int) -> range:
        return range(first, len(self.plan.structure.blocks))

    def _steps(self, first: int) -> Iterator[tuple[Step | None, Step | None]]:
        """Of each block, its place in the stream and in the one that stays in full precision."""
        running = len(self.plan.trial.blocks)  # the others never run, and come last
        rest = self._rest(first)
        streams = (
            itertools.repeat(None, len(rest))
            if one is None
            else itertools.chain(
                one.steps(min(first, running)),
                itertools.repeat(None, len([block for block in rest if block >= running])),
            )
            for one in (self.stream, self.exact)
        )
        return zip(*streams, strict=True)

    def _exact_stream(self, data: CalibrationSet, entries: Entries | None) -> BlockStream | None:
        """A second one, where the method wants targets that quantized blocks have not touched."""
        recipe = self.plan.recipe
        if not (recipe.method.targets and recipe.settings.propagate):
            return None
        return self._stream(data, None if entries is None else entries.inside("exact"))

    def _stream(self, data: CalibrationSet, entries: Entries | None) -> BlockStream:
        blocks = [self.network.get_submodule(name) for name in self.plan.trial.blocks]
        return BlockStream(self.network, blocks, data, workdir=entries)

    def _identity(self) -> dict[str, Any]:
        """What must be the same for finished work to be used again."""
        drawn = isinstance(self.source, Source)
        quantized = {f"{name}.weight" for name in self.plan.rules}
        return {
            "recipe": self.plan.recipe.to_dict(),
            "seed": self.seed,
            "fewbit": __version__,
            "weights": source_sha256(self.sources),
            "model": model_sha256(self.network, without=quantized),
            "structure": repr(self.plan.structure.spec),
            "pipeline": pipeline_sha256(self.model, self.network) if drawn else None,
            "together": list(self.together),
            "data": None if self.source is None else self.source.fingerprint(),
        }

    def _weight(self, name: str) -> Tensor:
        linear = self.network.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        return linear.weight


@contextmanager
def _derivable(model: nn.Module, recipe: Recipe) -> Iterator[None]:
    """Some operations have no gradient on some devices. Flexible attention on a CPU is helped, as
    far as its mask says all."""
    try:
        with differentiable():
            yield
    except NotImplementedError as error:
        said = str(error).partition("\n")[0]
        raise BadModel(
            f"{recipe.method} needs gradients of {type(model).__name__}, and there are none here: "
            f"{said:.200}; allowed: another device, or a recipe without training, such as hq-dit"
        ) from error


def _meter(recipe: Recipe, progress: Shown) -> AbstractContextManager[Meter]:
    if isinstance(progress, Meter):
        return nullcontext(progress)
    if callable(progress):
        return Meter(str(recipe), show=False, tell=progress)
    return Meter(str(recipe), progress)


def _refuse_for_one(parts: Sequence[Component], recipe: Recipe, asked: Asked) -> None:
    """What makes sense for a single network alone."""
    names = ", ".join(part.name for part in parts)
    if not isinstance(asked, Calibration):
        raise BadCalibration(
            f"calibration dicts are calls of one network, and {names} are to be quantized; give "
            "a fewbit.Calibration, or the name of one in components"
        )
    if getattr(recipe.settings, "size", None) is not None:
        raise BadArgument(
            f"size limits one network, and {names} are to be quantized; give bits_per_weight, or "
            "the name of one in components"
        )


def _refuse_no_seed(seed: object) -> None:
    if type(seed) is not int or not 0 <= seed <= LARGEST_SEED:
        raise BadArgument(f"seed must be a whole number from 0 to {LARGEST_SEED}, got {seed!r:.80}")


def _refuse_unusable(device: str | torch.device) -> None:
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


def _round_idle(job: BlockJob) -> None:
    round_plainly(job)
    for name in job.rules:
        job.warn(f"{name} is rounded plainly: the calibration data never reached it")


def _layer_report(
    layer: Layer, job: BlockJob, original: nn.Linear, output: OutputError | None
) -> LayerReport:
    rule, solved = job.rules[layer.name], job.solved[layer.name]
    weight, packed = original.weight.detach(), solved.layer.packed_weight
    stage = solved.layer.stage
    activation = getattr(stage.activation, "spec", None) if stage else None
    weight_db = sqnr(solved.target, packed.dequantize())
    without_data = output is None  # then it was rounded plainly
    plain_db = weight_db if without_data else sqnr(weight, solved.plainly(weight, rule))
    return LayerReport(
        name=layer.name,
        role=str(layer.role),
        weight=str(packed.spec),
        activation=None if activation is None else str(activation),
        bits_per_weight=8 * solved.layer.weight_bytes / weight.numel(),
        bytes_before=layer.bytes,
        bytes=solved.layer.nbytes(),
        weight_db=weight_db,
        rounding_weight_db=plain_db,
        output_db=None if output is None else output.actual_db,
        rounding_output_db=None if output is None else output.plain_db,
    )
