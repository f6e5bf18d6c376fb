"""quantize(): plan, solve block by block, replace, report."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fewbit.checkpoint import digest
from fewbit.decibel import sqnr
from fewbit.errors import BadArgument, BadCalibration
from fewbit.methods.contract import BlockJob, Solved
from fewbit.models import Layer, ModelSpec, transformer_of
from fewbit.plan import make_plan
from fewbit.progress import track
from fewbit.provenance import Provenance, source_sha256
from fewbit.recipe import Recipe
from fewbit.report import LayerReport, Report
from fewbit.version import __version__


def quantize(
    model: Any,
    recipe: str | Path,
    *,
    bits: str | None = None,
    calibration: int | Iterable[Mapping[str, Any]] | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    workdir: str | Path | None = None,
    progress: bool = True,
    spec: ModelSpec | None = None,
    allow_unknown: bool = False,
    **settings: Any,
) -> Report:
    """Quantize a pipeline, a transformer, or any module with a `ModelSpec`, in place.

    `recipe` is a name (`fewbit.recipes()` lists them) or a recipe file; `bits` picks one of its
    variants; further keywords are the recipe's own settings.
    """
    started = time.perf_counter()
    chosen = Recipe.resolve(recipe, bits, settings)
    transformer = transformer_of(model)
    plan = make_plan(transformer, chosen, spec, allow_unknown)
    _refuse_useless_data(chosen, calibration)
    if progress:
        print(plan, file=sys.stderr)
    bytes_before = stored_bytes(transformer)
    planned = time.perf_counter()

    sources: dict[str, str] = {}
    layers: list[LayerReport] = []
    blocks = range(len(plan.structure.blocks))
    for block in track(blocks, f"{chosen}, blocks", len(blocks), progress):
        job = plan.job(transformer, block, seed)
        originals = {name: job.linear(name) for name in job.rules}
        sources |= {name: digest(linear.weight) for name, linear in originals.items()}
        _solve_on(device, job, chosen)
        layers += [
            _layer_report(layer, originals[layer.name], job.solved[layer.name])
            for layer in job.layers
        ]
    report = Report(
        recipe=chosen.to_dict(),
        family=plan.structure.family,
        source=source_sha256(sources),
        seed=seed,
        fewbit_version=__version__,
        layers=layers,
        bytes_before=bytes_before,
        bytes=stored_bytes(transformer),
        seconds={"plan": planned - started, "solve": time.perf_counter() - planned},
    )
    transformer.fewbit = Provenance(chosen.to_dict(), seed, report.source, __version__)
    if hasattr(transformer, "register_to_config"):
        from fewbit.diffusers_plugin import attach

        attach(transformer, chosen)
    return report


def stored_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers, each once however many modules share it."""
    tensors = {t.data_ptr() or id(t): t.nbytes for t in model.state_dict().values()}
    return sum(tensors.values())


def _refuse_useless_data(recipe: Recipe, calibration: object) -> None:
    if calibration is not None and not recipe.implementation.CALIBRATED:
        raise BadCalibration(f"{recipe.method} looks at no data; leave calibration out")


def _solve_on(device: str | torch.device | None, job: BlockJob, recipe: Recipe) -> None:
    """The block visits `device` for the time of its solution."""
    if device is None:
        recipe.implementation.solve(job, recipe.settings)
        return
    home = next(job.module.parameters()).device
    try:
        job.module.to(device)
    except (RuntimeError, AssertionError) as error:
        raise BadArgument(f"cannot use device {str(device)!r}: {error}") from None
    recipe.implementation.solve(job, recipe.settings)
    job.module.to(home)


def _layer_report(layer: Layer, original: nn.Module, solved: Solved) -> LayerReport:
    weight, packed = original.weight.detach(), solved.layer.packed_weight
    stage = solved.layer.stage
    activation = getattr(stage.activation, "spec", None) if stage else None
    return LayerReport(
        name=layer.name,
        role=str(layer.role),
        weight=str(packed.spec),
        activation=None if activation is None else str(activation),
        bits_per_weight=8 * packed.nbytes / weight.numel(),
        bytes_before=layer.bytes,
        bytes=solved.layer.nbytes(),
        weight_db=sqnr(solved.target, packed.dequantize()),
        rounding_weight_db=sqnr(weight, packed.spec.round(weight)),
    )
