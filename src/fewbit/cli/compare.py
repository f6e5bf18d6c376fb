"""fewbit compare"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fewbit.cli.judging import Judging, command_line, environment, judging_options
from fewbit.cli.options import (
    MODEL_HELP,
    components_option,
    device_option,
    dtype_named,
    dtype_option,
    json_option,
    model_argument,
    names_in,
    quiet_option,
)
from fewbit.cli.places import refuse_unwritable
from fewbit.cli.saying import show


@click.command(epilog=MODEL_HELP)
@model_argument
@click.option("--recipes", required=True, help="Such as rtn,hq-dit:w4a8,best:tiny,mine.json.")
@click.option(
    "--output", type=click.Path(path_type=Path), required=True, help="Keeps all; resumes there."
)
@components_option
@judging_options
@device_option
@dtype_option
@json_option
@quiet_option
def compare(
    model: str,
    recipes: str,
    output: Path,
    components: str | None,
    judging: Judging,
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
    from fewbit.judge.page import About, shown_of, write_page
    from fewbit.judge.reading import picture_files
    from fewbit.pipelines.opening import device_named, open_model

    wanted = asked(recipes)

    def opened() -> Any:
        return open_model(model, dtype=dtype_named(dtype), device=device_named(device))

    reference = Named(opened(), model)
    judges = judging.judges(reference.pipe, model)
    setting = judging.setting(model)
    parts = names_in(components)
    found = lay_side_by_side(reference, opened, wanted, setting, judges, output, not quiet, parts)
    found.save(output / "comparison.json")
    pictures = output / PICTURES
    drawn = {one.label: picture_files(pictures / one.folder)[: judging.count] for one in wanted}
    about = About(
        f"{model}: {len(wanted)} recipes compared",
        picture_files(pictures / REFERENCE)[: judging.count],
        command_line(),
        environment(),
    )
    write_page(output / "report.html", about, shown_of(found, drawn))
    if as_json or not quiet:
        show(found.to_dict() if as_json else f"{found}\n  see {output / 'report.html'}")
