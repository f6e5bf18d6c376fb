"""fewbit compare"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fewbit.cli.judging import (
    clip_option,
    command_line,
    count_option,
    environment,
    fidelity_option,
    guidance_option,
    hpsv2_option,
    inception_option,
    judges_for,
    lpips_option,
    pictures_only_option,
    prompts_for,
    prompts_option,
    real_option,
    steps_option,
    together_option,
)
from fewbit.cli.options import (
    MODEL_HELP,
    device_option,
    dtype_named,
    dtype_option,
    json_option,
    model_argument,
    quiet_option,
    seed_option,
)
from fewbit.cli.places import refuse_unwritable
from fewbit.cli.saying import show


@click.command(epilog=MODEL_HELP)
@model_argument
@click.option("--recipes", required=True, help="Such as rtn,hq-dit:w4a8,mine.json.")
@click.option(
    "--output", type=click.Path(path_type=Path), required=True, help="Keeps all; resumes there."
)
@count_option
@steps_option
@guidance_option
@together_option
@prompts_option
@real_option
@inception_option
@lpips_option
@clip_option
@hpsv2_option
@fidelity_option
@pictures_only_option
@seed_option
@device_option
@dtype_option
@json_option
@quiet_option
def compare(
    model: str,
    recipes: str,
    output: Path,
    count: int,
    steps: int | None,
    guidance: float | None,
    together: int,
    prompts: Path | None,
    real: Path | None,
    inception: Path | None,
    lpips: Path | None,
    clip: str | None,
    hpsv2: str | None,
    fidelity_only: bool,
    pictures_only: bool,
    seed: int,
    device: str,
    dtype: str,
    as_json: bool,
    quiet: bool,
) -> None:
    """Quantize MODEL with several recipes and lay them side by side.

    A recipe may carry its bits after a colon. OUTPUT gets the quantized models, the pictures,
    comparison.json and report.html; a killed run goes on where it was.
    """
    refuse_unwritable(output)

    from fewbit.judge.alike import Named
    from fewbit.judge.compare import PICTURES, asked
    from fewbit.judge.compare import compare as lay_side_by_side
    from fewbit.judge.drawing import REFERENCE
    from fewbit.judge.evaluation import Setting
    from fewbit.judge.page import About, shown_of, write_page
    from fewbit.judge.reading import picture_files
    from fewbit.pipelines.opening import device_named, open_model

    wanted = asked(recipes)

    def opened() -> Any:
        return open_model(model, dtype=dtype_named(dtype), device=device_named(device))

    reference = Named(opened(), model)
    judges = judges_for(
        reference.pipe,
        model,
        own_prompts=prompts is not None,
        real=real,
        inception=inception,
        lpips=lpips,
        clip=clip,
        hpsv2=hpsv2,
        fidelity_only=fidelity_only,
        pictures_only=pictures_only,
    )
    texts = prompts_for(model, prompts, count)
    setting = Setting(count, seed, steps, guidance, texts, together)
    found = lay_side_by_side(reference, opened, wanted, setting, judges, output, not quiet)
    found.save(output / "comparison.json")
    pictures = output / PICTURES
    drawn = {one.label: picture_files(pictures / one.folder)[:count] for one in wanted}
    about = About(
        f"{model}: {len(wanted)} recipes compared",
        picture_files(pictures / REFERENCE)[:count],
        command_line(),
        environment(),
    )
    write_page(output / "report.html", about, shown_of(found, drawn))
    if as_json or not quiet:
        show(found.to_dict() if as_json else f"{found}\n  see {output / 'report.html'}")
