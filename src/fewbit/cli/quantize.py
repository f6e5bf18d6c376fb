"""fewbit quantize"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fewbit.cli.completing import recipes
from fewbit.cli.options import (
    MODEL_HELP,
    call_option,
    components_option,
    device_option,
    dtype_named,
    dtype_option,
    heads_option,
    json_option,
    lines_of,
    model_argument,
    named,
    names_in,
    quiet_option,
    seed_option,
    spec_option,
)
from fewbit.cli.places import refuse_taken, refuse_unwritable
from fewbit.cli.saying import say, show
from fewbit.errors import BadArgument

if TYPE_CHECKING:
    from fewbit.engine.forecast import Expected
    from fewbit.engine.plan import Plan

DISK = 200e6  # bytes a second, to guess how long saving takes


@click.command(epilog=MODEL_HELP)
@model_argument
@click.option(
    "--recipe",
    shell_complete=recipes,
    help="A name (see `fewbit recipes`) or a JSON file; best if left out, and balanced if nothing "
    "else is said of it.",
)
@click.option("--bits", help="One of the recipe's variants, such as w4a4; its first if left out.")
@click.option("--output", type=click.Path(path_type=Path), help="The folder to write.")
@click.option("--overwrite", is_flag=True, help="Replace what OUTPUT holds.")
@click.option("--preset", help="Settings of the recipe that belong together, such as fast.")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="A recipe's setting.")
@click.option("--size", metavar="MB", help="Of the whole model, such as 300MB; by recipe best.")
@click.option("--bits-per-weight", type=float, help="On average, such as 3.3; by recipe best.")
@click.option("--samples", type=int, help="Of calibration; the recipe's own number if left out.")
@click.option("--prompts", type=click.Path(path_type=Path), help="To calibrate on; one a line.")
@click.option("--steps", type=int, help="Of calibration; the pipeline's own if left out.")
@click.option("--guidance", type=float, help="Of calibration; the pipeline's own if left out.")
@call_option("Of calibration:")
@click.option(
    "--workdir",
    type=click.Path(path_type=Path),
    help="Keeps what is finished; a stopped run goes on from there.",
)
@components_option
@spec_option
@click.option("--strict", is_flag=True, help="Refuse if over 1% would stay without being told to.")
@click.option("--allow-unknown", is_flag=True, help="Keep layers of unknown role as they are.")
@click.option("--dry-run", is_flag=True, help="Print the plan and stop.")
@click.option("--no-measure", is_flag=True, help="No speed and no match in the end.")
@seed_option
@device_option
@dtype_option
@heads_option
@json_option
@quiet_option
def quantize(
    model: str,
    recipe: str | None,
    bits: str | None,
    output: Path | None,
    overwrite: bool,
    preset: str | None,
    settings: tuple[str, ...],
    size: str | None,
    bits_per_weight: float | None,
    samples: int | None,
    prompts: Path | None,
    steps: int | None,
    guidance: float | None,
    call: tuple[str, ...],
    workdir: Path | None,
    components: str | None,
    spec: Path | None,
    strict: bool,
    allow_unknown: bool,
    dry_run: bool,
    no_measure: bool,
    seed: int,
    device: str,
    dtype: str,
    heads: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Quantize MODEL and write it as a folder.

    The folder holds the packed weights, the recipe and the report; diffusers loads it.
    """
    wanted = {
        "preset": preset,
        "size": None if size is None else _megabytes(size),
        "bits_per_weight": bits_per_weight,
    }
    chosen = {name: value for name, value in wanted.items() if value is not None}
    chosen |= named("--set", settings)
    if recipe is None:
        recipe = "best"
        chosen = chosen if chosen or bits else {"preset": "balanced"}
    told = named("--call", call)
    if output is not None:
        refuse_taken(output, overwrite)
    elif not dry_run:
        raise click.UsageError("Missing option '--output' (or '--dry-run').")
    if workdir is not None:
        refuse_unwritable(workdir)

    import fewbit
    from fewbit.engine.call import call_for
    from fewbit.engine.card import REPORT
    from fewbit.engine.forecast import cost_of
    from fewbit.engine.plan import make_plan
    from fewbit.engine.recipe import Recipe, split_bits
    from fewbit.files import keeping
    from fewbit.models import components_of
    from fewbit.models.hidden import shown
    from fewbit.pipelines.opening import device_named, open_model
    from fewbit.progress import Meter
    from fewbit.storage.spec_file import specs_from

    given = (samples, None if prompts is None else lines_of(prompts), steps, guidance)
    usual = given == (None,) * 4 and not told
    calibration = None if usual else fewbit.Calibration(*given, told)
    resolved, asked = Recipe.resolve(recipe, bits, chosen), names_in(components)
    solver = device_named(device)
    source = open_model(model, dtype=dtype_named(dtype), heads=heads)
    if output is None or dry_run:
        parts = components_of(source, asked)
        known = specs_from(spec, [part.name for part in parts])
        plans, costs = {}, {}
        for part in parts:
            see = partial(call_for, source, part, asked=calibration or fewbit.Calibration())
            own = known[part.name]
            with shown(part.network):
                plan = make_plan(part.network, resolved, own, allow_unknown, strict=strict, see=see)
                costs[part.name] = cost_of(source, part, plan, calibration, seed)
                plans[part.name] = plan
        show(_tables(plans, costs) if as_json else "\n".join(_lines(plans, costs)))
        return
    with Meter(str(resolved), not quiet) as meter:
        meter.expect("saving", seconds=_bytes(source) / DISK)
        report = fewbit.quantize(
            source,
            split_bits(recipe)[0],
            bits=resolved.bits,
            calibration=calibration,
            seed=seed,
            device=None if solver.type == "cpu" else solver,
            workdir=workdir,
            progress=meter,
            spec=spec,
            components=asked,
            strict=strict,
            allow_unknown=allow_unknown,
            measure=not no_measure,
            **chosen,
        )
        meter.begin("saving", 1)
        with keeping(workdir):
            fewbit.save(source, output, report=report, overwrite=overwrite)
        meter.reach(1)
    if as_json:
        say((output / REPORT).read_text())
    elif not quiet:
        say(f"{report}\n  written to {output}")


def _bytes(model: Any) -> int:
    """Of all networks that will be written, before any is quantized."""
    from torch import nn

    from fewbit.engine.stored_size import size_of

    parts = model.components.values() if hasattr(model, "components") else [model]
    return sum(size_of(part).bytes for part in parts if isinstance(part, nn.Module))


def _megabytes(text: str) -> float:
    """`300MB`, `1.5GB` or a plain number of megabytes."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(MB|GB)?", text, re.IGNORECASE)
    if match is None:
        raise BadArgument(f"--size takes megabytes such as 300MB or 1.5GB, got {text!r}")
    return float(match[1]) * (1000 if (match[2] or "").upper() == "GB" else 1)


def _lines(plans: Mapping[str, Plan], costs: Mapping[str, Expected | str]) -> Iterator[str]:
    """Each plan under its name, where there are several, and what it will take."""
    from fewbit.engine.allocate import promise

    for name, plan in plans.items():
        yield from [f"{name}:"] if len(plans) > 1 else []
        yield from [str(plan), *promise(plan), str(costs[name])]


def _tables(plans: Mapping[str, Plan], costs: Mapping[str, Expected | str]) -> dict[str, Any]:
    tables = {name: {**_plan_dict(plan), **_cost_dict(costs[name])} for name, plan in plans.items()}
    return tables if len(plans) > 1 else next(iter(tables.values()))


def _cost_dict(cost: Expected | str) -> dict[str, Any]:
    known = None if isinstance(cost, str) else cost
    return {
        "seconds": known and known.seconds,
        "peak_bytes": known and known.peak_bytes,
    }


def _plan_dict(plan: Plan) -> dict[str, Any]:
    return {
        "recipe": plan.recipe.to_dict(),
        "family": plan.structure.family,
        "bytes_before": plan.stored.bytes,
        "bf16_bytes": plan.stored.bf16_bytes,
        "size": asdict(plan.size_after),
        "bytes": plan.size_after.bytes,
        "layers": {
            name: {
                "weight": str(rule.weight),
                "activation": None if rule.activation is None else str(rule.activation),
            }
            for name, rule in plan.rules.items()
        },
    }
