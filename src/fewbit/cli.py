"""The command line: parse, call, print. Nothing slow is imported before a verb runs."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from fewbit.errors import BadArgument, BadOutput, FewbitError
from fewbit.version import __version__

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from fewbit.plan import Plan


MODEL_HELP = (
    "MODEL is a folder (a diffusers pipeline or transformer, or what fewbit wrote), an original "
    "DiT checkpoint (.pt, .pth, .safetensors), a hub id (org/name), or a shipped demo (shapes)."
)


class Verbs(click.Group):
    """What is the caller's to fix is one line on standard error and exit code 2."""

    def invoke(self, ctx: click.Context) -> Any:
        for library in ("TRANSFORMERS", "DIFFUSERS"):
            os.environ.setdefault(f"{library}_VERBOSITY", "error")
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            verb = error.ctx.command_path if error.ctx else "fewbit"
            return _end(ctx, f"error: {error.format_message()} Try `{verb} --help`.", 2)
        except FewbitError as error:
            return _end(ctx, f"error: {error}", 2)
        except OSError as error:
            if error.filename is None:
                raise
            return _end(ctx, f"error: cannot use {error.filename}: {error.strerror}", 2)
        except KeyboardInterrupt:
            return _end(ctx, "stopped", 130)


def _end(ctx: click.Context, message: str, code: int) -> NoReturn:
    click.echo(" ".join(message.split()), err=True)
    ctx.exit(code)


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, package_name="fewbit", message="fewbit %(version)s")
def main() -> None:
    """Few-bit diffusion transformers: quantize them, look inside, draw pictures."""


model_argument = click.argument("model", metavar="MODEL")
seed_option = click.option("--seed", type=int, default=0, show_default=True)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, nothing else.")
quiet_option = click.option("--quiet", is_flag=True, help="Print nothing but errors.")
device_option = click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True
)
dtype_option = click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default="float32",
    show_default=True,
    help="Of what is not quantized.",
)
heads_option = click.option(
    "--heads", type=int, help="Attention heads of an original checkpoint of unpublished width."
)


@main.command(epilog=MODEL_HELP)
@model_argument
@click.option("--recipe", required=True, help="A name (see `fewbit recipes`) or a JSON file.")
@click.option("--bits", help="One of the recipe's variants, such as w4a4; its first if left out.")
@click.option("--output", type=click.Path(path_type=Path), help="The folder to write.")
@click.option("--overwrite", is_flag=True, help="Replace what OUTPUT holds.")
@click.option("--preset", help="Settings of the recipe that belong together, such as fast.")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="A recipe's setting.")
@click.option("--calibration", type=int, metavar="N", help="Samples for recipes that see data.")
@click.option("--workdir", type=click.Path(path_type=Path), help="Where to resume after a stop.")
@click.option("--allow-unknown", is_flag=True, help="Keep layers of unknown role as they are.")
@click.option("--dry-run", is_flag=True, help="Print the plan and stop.")
@seed_option
@device_option
@dtype_option
@heads_option
@json_option
@quiet_option
def quantize(
    model: str,
    recipe: str,
    bits: str | None,
    output: Path | None,
    overwrite: bool,
    preset: str | None,
    settings: tuple[str, ...],
    calibration: int | None,
    workdir: Path | None,
    allow_unknown: bool,
    dry_run: bool,
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
    chosen = {**({"preset": preset} if preset else {}), **_settings(settings)}
    if output is not None:
        _refuse_taken(output, overwrite)
    elif not dry_run:
        raise click.UsageError("Missing option '--output' (or '--dry-run').")

    import fewbit
    from fewbit.card import REPORT
    from fewbit.models import transformer_of
    from fewbit.plan import make_plan
    from fewbit.recipe import Recipe
    from fewbit.source import device_named, open_model

    resolved = Recipe.resolve(recipe, bits, chosen)
    solver = device_named(device)
    source = open_model(model, dtype=_dtype(dtype), heads=heads)
    if output is None or dry_run:
        plan = make_plan(transformer_of(source), resolved, None, allow_unknown)
        _print(_plan_dict(plan) if as_json else plan)
        return
    report = fewbit.quantize(
        source,
        recipe,
        bits=bits,
        calibration=calibration,
        seed=seed,
        device=None if solver.type == "cpu" else solver,
        workdir=workdir,
        progress=not quiet,
        allow_unknown=allow_unknown,
        **chosen,
    )
    fewbit.save(source, output, report=report, overwrite=overwrite)
    if as_json:
        click.echo((output / REPORT).read_text())
    elif not quiet:
        click.echo(f"{report}\n  written to {output}")


@main.command(epilog=MODEL_HELP)
@model_argument
@click.option("--output", type=click.Path(path_type=Path), required=True, help="A .png file.")
@click.option("--label", "labels", multiple=True, help="A class, by number or name; repeatable.")
@click.option("--prompt", "prompts", multiple=True, help="A text, where MODEL reads; repeatable.")
@click.option("-n", "--n", "count", type=click.IntRange(1), help="Pictures; else one a subject.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the first; then upwards.")
@click.option("--steps", type=int, help="Denoising steps; the pipeline's own if left out.")
@click.option("--guidance", type=float, help="Guidance scale; the pipeline's own if left out.")
@click.option("--grid", "as_grid", is_flag=True, help="One picture of all instead of files.")
@click.option("--compare", metavar="MODEL", help="A second model's pictures, a row above.")
@device_option
@dtype_option
@quiet_option
def generate(
    model: str,
    output: Path,
    labels: tuple[str, ...],
    prompts: tuple[str, ...],
    count: int | None,
    seed: int,
    steps: int | None,
    guidance: float | None,
    as_grid: bool,
    compare: str | None,
    device: str,
    dtype: str,
    quiet: bool,
) -> None:
    """Draw pictures with MODEL.

    The picture of a seed is the same, bit for bit, however many are drawn. The file says how it
    was made: seed, subject, steps, guidance, recipe, model and version are in its text chunks.
    """
    count = count or max(len(labels), len(prompts), 1)
    seeds = range(seed, seed + count)
    one_file = as_grid or compare is not None or count == 1
    files = [output] if one_file else [output.with_stem(f"{output.stem}-{s}") for s in seeds]
    _refuse_files(files)

    from fewbit.generate import generate as draw
    from fewbit.images import common_facts, grid, psnr, save_png
    from fewbit.source import device_named, open_model

    def pictures(name: str) -> list[Image]:
        pipe = open_model(name, dtype=_dtype(dtype), device=device_named(device))
        row = draw(
            pipe,
            seeds=seeds,
            labels=labels,
            prompts=prompts,
            steps=steps,
            guidance=guidance,
            progress=not quiet,
        )
        for picture in row:
            picture.info["model"] = name
        return row

    names = [model] if compare is None else [compare, model]
    rows = [pictures(name) for name in names]
    cells = [picture for row in rows for picture in row]
    if as_grid or compare:
        save_png(grid(rows, names if compare else ()), output, common_facts(cells))
    else:
        for picture, file in zip(cells, files, strict=True):
            save_png(picture, file, common_facts([picture]))
    if not quiet:
        for file in files:
            click.echo(f"written to {file}")
        if compare:
            click.echo(f"PSNR to {compare}: {psnr(*rows):.2f} dB")


@main.command(epilog=MODEL_HELP)
@model_argument
@click.option("--reference", required=True, metavar="MODEL", help="The same in full precision.")
@click.option(
    "-n", "--n", "count", type=click.IntRange(1), default=256, show_default=True, help="Pictures."
)
@click.option("--steps", type=int, help="Denoising steps; the pipeline's own if left out.")
@click.option("--guidance", type=float, help="Guidance scale; the pipeline's own if left out.")
@click.option("--together", type=click.IntRange(1), default=1, help="Pictures at a time; faster.")
@click.option("--prompts", type=click.Path(path_type=Path), help="A text file, one a line.")
@click.option("--real", type=click.Path(path_type=Path), help="A folder of pictures or ADM's .npz.")
@click.option("--inception", type=click.Path(path_type=Path), help="Inception's weights, for FID.")
@click.option("--fidelity-only", is_flag=True, help="Only scores of same-seed pairs.")
@click.option("--output", type=click.Path(path_type=Path), help="Keeps pictures; resumes there.")
@click.option("--npz", is_flag=True, help="Also write MODEL's pictures to OUTPUT as ADM's .npz.")
@seed_option
@device_option
@dtype_option
@json_option
@quiet_option
def evaluate(
    model: str,
    reference: str,
    count: int,
    steps: int | None,
    guidance: float | None,
    together: int,
    prompts: Path | None,
    real: Path | None,
    inception: Path | None,
    fidelity_only: bool,
    output: Path | None,
    npz: bool,
    seed: int,
    device: str,
    dtype: str,
    as_json: bool,
    quiet: bool,
) -> None:
    """Score MODEL's pictures beside those of its full-precision reference.

    Exits with 1 if the quality gate finds MODEL broken. Real pictures are the demo's own data for a
    demo; without any, those of the reference take their place.
    """
    if npz and output is None:
        raise click.UsageError("--npz writes to OUTPUT: give '--output'.")
    if fidelity_only and (real or inception):
        raise click.UsageError("--fidelity-only leaves no use for --real and --inception.")
    if output is not None:
        _refuse_unwritable(output)

    import tempfile

    from fewbit.evaluate.alike import Named
    from fewbit.evaluate.drawing import MODEL
    from fewbit.evaluate.evaluation import Setting
    from fewbit.evaluate.evaluation import evaluate as score
    from fewbit.evaluate.features import net_for
    from fewbit.evaluate.reading import picture_files, write_npz
    from fewbit.evaluate.reference import real_for
    from fewbit.source import device_named, open_model

    lines = prompts.read_text().splitlines() if prompts else []
    texts = [line for line in lines if line.strip()]
    setting = Setting(count, seed, steps, guidance, texts, together)
    ours, theirs = (
        Named(open_model(name, dtype=_dtype(dtype), device=device_named(device)), name)
        for name in (model, reference)
    )
    net = None if fidelity_only else net_for(theirs.pipe, inception)
    with tempfile.TemporaryDirectory() as passing:
        folder = output or Path(passing)
        found = score(
            ours,
            theirs,
            setting,
            folder,
            net=net,
            real=real_for(real, net),
            progress=not quiet,
        )
        found.save(folder / "evaluation.json")
        if npz and found.scores:
            write_npz(picture_files(folder / MODEL)[:count], folder / f"{MODEL}.npz")
    if as_json or not quiet:
        _print(found.to_dict() if as_json else found)
    if not found.passed:
        _end(click.get_current_context(), f"broken: {model}: {found.verdict}", 1)


@main.command(epilog=MODEL_HELP)
@model_argument
@click.option("--layers", is_flag=True, help="Also one row for each layer.")
@heads_option
@json_option
def inspect(model: str, layers: bool, heads: int | None, as_json: bool) -> None:
    """Show what MODEL is made of.

    Every linear is quantized, quantizable, kept or unknown; it has a role, a shape and bytes.
    """
    import fewbit
    from fewbit.source import check_folder, locate, open_model

    place = locate(model)
    if isinstance(place, Path) and place.is_dir():
        check_folder(place)
        found = fewbit.inspect(place)
    else:
        found = fewbit.inspect(open_model(model, heads=heads))
    _print(found.to_dict() if as_json else found)
    if layers and not as_json:
        click.echo(found.table())


@main.command()
@json_option
def recipes(as_json: bool) -> None:
    """List the recipes and their bits.

    The first of a recipe's bits is its default.
    """
    from dataclasses import asdict

    from fewbit.recipe import recipes as known

    if as_json:
        _print([asdict(recipe) for recipe in known()])
        return
    for recipe in known():
        click.echo(f"{recipe.name}  {recipe.summary}")
        click.echo(f"  bits: {', '.join(recipe.bits)}")
        click.echo(f"  calibration: {'yes' if recipe.calibrated else 'none needed'}")


@main.command()
@click.argument("model", metavar="[MODEL]", required=False)
@device_option
@json_option
def doctor(model: str | None, device: str, as_json: bool) -> None:
    """Show what this machine offers.

    Versions, processor, memory, GPUs, and on which path quantized layers run and why; with a
    quantized MODEL the path of each of its layers.
    """
    from fewbit.doctor import examine, examine_layers
    from fewbit.source import device_named, open_model

    if model is None:
        found: Any = examine()
    else:
        found = examine_layers(open_model(model, device=device_named(device)))
    _print(found.to_dict() if as_json else found)


def _settings(texts: tuple[str, ...]) -> dict[str, Any]:
    """`group_size=64` as Python would have it: JSON where it is JSON, else a string."""
    settings = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (equals and name.isidentifier()):
            raise BadArgument(f"--set takes NAME=VALUE, got {text!r}")
        try:
            settings[name] = json.loads(value)
        except ValueError:
            settings[name] = value
    return settings


def _dtype(name: str) -> torch.dtype:
    import torch

    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _refuse_taken(path: Path, overwrite: bool) -> None:
    """Before the long work, not after it."""
    _refuse_unwritable(path)
    if path.exists() and not path.is_dir():
        raise BadOutput(f"{path} is a file; choose a folder to write")
    if path.exists() and any(path.iterdir()) and not overwrite:
        raise BadOutput(f"{path} already holds something; choose another or give --overwrite")
    if path.resolve() in (Path.cwd(), *Path.cwd().parents):
        raise BadOutput(f"{path} is the folder you are in or above it; choose another")


def _refuse_files(paths: list[Path]) -> None:
    for path in paths:
        if path.suffix != ".png":
            raise BadOutput(f"{path} must end in .png")
        if path.is_dir():
            raise BadOutput(f"{path} is a folder; choose a file")
        _refuse_unwritable(path)


def _refuse_unwritable(path: Path) -> None:
    nearest = next(parent for parent in path.absolute().parents if parent.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise BadOutput(f"cannot write to {path}: {nearest} is not a folder we may write to")


def _plan_dict(plan: Plan) -> dict[str, Any]:
    return {
        "recipe": plan.recipe.to_dict(),
        "family": plan.structure.family,
        "bytes_before": plan.structure.bytes,
        "bytes_after": plan.bytes_after,
        "layers": {
            name: {
                "weight": str(rule.weight),
                "activation": None if rule.activation is None else str(rule.activation),
            }
            for name, rule in plan.rules.items()
        },
    }


def _print(content: object) -> None:
    is_data = isinstance(content, dict | list)
    click.echo(json.dumps(content, indent=1) if is_data else str(content))


if __name__ == "__main__":
    sys.exit(main())
