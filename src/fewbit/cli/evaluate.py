"""fewbit evaluate"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fewbit.cli.judging import Judging, command_line, environment, judging_options
from fewbit.cli.options import (
    MODEL_HELP,
    device_option,
    dtype_named,
    dtype_option,
    json_option,
    model_argument,
    quiet_option,
)
from fewbit.cli.places import refuse_unwritable
from fewbit.cli.saying import end, show


@click.command(epilog=MODEL_HELP)
@model_argument
@click.option("--reference", required=True, metavar="MODEL", help="The same in full precision.")
@judging_options
@click.option("--output", type=click.Path(path_type=Path), help="Keeps pictures; resumes there.")
@click.option("--npz", is_flag=True, help="Also write MODEL's pictures to OUTPUT as ADM's .npz.")
@device_option
@dtype_option
@json_option
@quiet_option
def evaluate(
    model: str,
    reference: str,
    output: Path | None,
    npz: bool,
    judging: Judging,
    device: str,
    dtype: str,
    as_json: bool,
    quiet: bool,
) -> None:
    """Score MODEL's pictures beside those of its full-precision reference.

    Exits with 1 if the quality gate finds MODEL broken. Real pictures are the demo's own data for a
    demo; without any, those of the reference take their place. OUTPUT also gets evaluation.json and
    report.html, the same for the eye.
    """
    if npz and output is None:
        raise click.UsageError("--npz writes to OUTPUT: give '--output'.")
    if output is not None:
        refuse_unwritable(output)

    import tempfile

    from fewbit.judge.alike import Named
    from fewbit.judge.drawing import MODEL, REFERENCE
    from fewbit.judge.evaluation import evaluate as score
    from fewbit.judge.page import About, Shown, write_page
    from fewbit.judge.reading import picture_files, write_npz
    from fewbit.models import quantized_components
    from fewbit.pipelines.opening import device_named, open_model

    setting = judging.setting(reference)
    ours, theirs = (
        Named(open_model(name, dtype=dtype_named(dtype), device=device_named(device)), name)
        for name in (model, reference)
    )
    judges = judging.judges(theirs.pipe, reference)
    with tempfile.TemporaryDirectory() as passing:
        folder = output or Path(passing)
        found = score(ours, theirs, setting, folder, judges, progress=not quiet)
        if output is not None:
            found.save(output / "evaluation.json")
            drawn, exact = (
                picture_files(output / name)[: judging.count] for name in (MODEL, REFERENCE)
            )
            about = About(f"{model} beside {reference}", exact, command_line(), environment())
            made: list[Any] = [one.network.fewbit for one in quantized_components(ours.pipe)]
            shown = Shown(found.recipe, found, drawn, made[0].recipe if made else None)
            write_page(output / "report.html", about, [shown])
        if npz and found.scores:
            write_npz(picture_files(folder / MODEL)[: judging.count], folder / f"{MODEL}.npz")
    if as_json or not quiet:
        show(found.to_dict() if as_json else found)
    if not found.passed:
        end(click.get_current_context(), f"broken: {model}: {found.verdict}", 1)
