"""quantize(): plan, solve block by block, replace, report."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewbit.decibel import sqnr
from fewbit.errors import BadArgument, BadCalibration
from fewbit.formats import Spec
from fewbit.methods.contract import BlockJob, Solved
from fewbit.models import Layer, ModelSpec, transformer_of
from fewbit.plan import Plan, make_plan
from fewbit.progress import track
from fewbit.recipe import Recipe
from fewbit.report import LayerReport, Report
from fewbit.version import __version__


@dataclass(frozen=True)
class Provenance:
    """Where a quantized model came from; it travels with the model and into its files."""

    recipe: dict[str, Any]
    seed: int
    source_sha256: str
    fewbit_version: str


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

    source = hashlib.sha256()
    layers: list[LayerReport] = []
    blocks = range(len(plan.structure.blocks))
    for block in track(blocks, f"{chosen}, blocks", len(blocks), progress):
        job = _job(transformer, plan, block, seed)
        originals = {name: job.linear(name) for name in job.rules}
        for name, linear in originals.items():
            _add_to_hash(source, name, linear)
        _solve_on(device, job, chosen)
        layers += [
            _layer_report(layer, originals[layer.name], job.solved[layer.name])
            for layer in job.layers
        ]
    report = Report(
        recipe=chosen.to_dict(),
        family=plan.structure.family,
        source=source.hexdigest(),
        seed=seed,
        fewbit_version=__version__,
        layers=layers,
        bytes_before=bytes_before,
        bytes=stored_bytes(transformer),
        seconds={"plan": planned - started, "solve": time.perf_counter() - planned},
    )
    transformer.fewbit = Provenance(chosen.to_dict(), seed, report.source, __version__)
    return report


def stored_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers, each once however many modules share it."""
    tensors = {t.data_ptr() or id(t): t.nbytes for t in model.state_dict().values()}
    return sum(tensors.values())


def _refuse_useless_data(recipe: Recipe, calibration: object) -> None:
    if calibration is not None and not recipe.implementation.CALIBRATED:
        raise BadCalibration(f"{recipe.method} looks at no data; leave calibration out")


def _job(transformer: nn.Module, plan: Plan, block: int, seed: int) -> BlockJob:
    name = plan.structure.blocks[block]
    layers = plan.layers(block)
    rules = {layer.name: plan.rules[layer.name] for layer in layers}
    groups = tuple(
        tuple(one for one in group if one in rules)
        for group in plan.structure.shared_inputs(block)
        if any(one in rules for one in group)
    )
    return BlockJob(block, transformer.get_submodule(name), name, layers, rules, groups, seed)


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


def _add_to_hash(digest: hashlib._Hash, name: str, linear: nn.Module) -> None:
    digest.update(name.encode())
    for tensor in (linear.weight, linear.bias):
        if isinstance(tensor, Tensor):
            flat = tensor.detach().cpu().contiguous().view(-1)
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(flat.view(torch.uint8).numpy())
