"""fewbit generate"""

from __future__ import annotations

from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fewbit.cli.options import (
    MODEL_HELP,
    SEEDS,
    call_option,
    device_option,
    dtype_named,
    dtype_option,
    json_option,
    model_argument,
    named,
    quiet_option,
)
from fewbit.cli.places import refuse_files
from fewbit.cli.saying import say, show
from fewbit.errors import BadModel

if TYPE_CHECKING:
    from PIL.Image import Image


@click.command(epilog=MODEL_HELP)
@model_argument
@click.option("--output", type=click.Path(path_type=Path), required=True, help="A .png file.")
@click.option("--label", "labels", multiple=True, help="A class, by number or name; repeatable.")
@click.option("--prompt", "prompts", multiple=True, help="A text, where MODEL reads; repeatable.")
@click.option("-n", "--n", "count", type=click.IntRange(1), help="Pictures; else one a subject.")
@click.option(
    "--seed", type=SEEDS, default=0, show_default=True, help="Of the first; then upwards."
)
@click.option("--steps", type=int, help="Denoising steps; the pipeline's own if left out.")
@click.option("--guidance", type=float, help="Guidance scale; the pipeline's own if left out.")
@call_option("More of")
@click.option("--grid", "as_grid", is_flag=True, help="One picture of all instead of files.")
@click.option("--compare", metavar="MODEL", help="A second model's pictures, a row above.")
@device_option
@dtype_option
@json_option
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
    call: tuple[str, ...],
    as_grid: bool,
    compare: str | None,
    device: str,
    dtype: str,
    as_json: bool,
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
    refuse_files(files)
    told = named("--call", call)

    import torch

    from fewbit.judge.finite import NotFinite, finite_outputs, outermost
    from fewbit.judge.pixels import psnr
    from fewbit.judge.reading import as_bytes
    from fewbit.pages.images import common_facts, grid, save_png
    from fewbit.pipelines.generate import generate as draw
    from fewbit.pipelines.opening import device_named, open_model

    def pictures(name: str) -> list[Image]:
        pipe = open_model(name, dtype=dtype_named(dtype), device=device_named(device))
        try:
            with finite_outputs(outermost(pipe)):
                row = draw(
                    pipe,
                    seeds=seeds,
                    labels=labels,
                    prompts=prompts,
                    steps=steps,
                    guidance=guidance,
                    call=told,
                    progress=not quiet,
                )
        except NotFinite as error:
            raise BadModel(f"no picture of {name}: {error}") from None
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
    beside = None
    if compare:
        exact, drawn = (torch.stack([as_bytes(picture) for picture in row]) for row in rows)
        beside = psnr(exact, drawn)
    if as_json:
        psnr_db = beside if beside is None or isfinite(beside) else str(beside)
        show({"files": list(map(str, files)), "seeds": list(seeds), "psnr": psnr_db})
    elif not quiet:
        for file in files:
            say(f"written to {file}")
        if beside is not None:
            say(f"PSNR to {compare}: {beside:.2f} dB")
