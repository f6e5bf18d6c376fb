"""fewbit evaluate"""

from __future__ import annotations

from pathlib import Path

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
from fewbit.cli.saying import end, show


@click.command(epilog=MODEL_HELP)
@model_argument
@click.option("--reference", required=True, metavar="MODEL", help="The same in full precision.")
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
    lpips: Path | None,
    clip: str | None,
    hpsv2: str | None,
    fidelity_only: bool,
    pictures_only: bool,
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
    from fewbit.judge.evaluation import Setting
    from fewbit.judge.evaluation import evaluate as score
    from fewbit.judge.page import About, Shown, write_page
    from fewbit.judge.reading import picture_files, write_npz
    from fewbit.pipelines.opening import device_named, open_model

    texts = prompts_for(reference, prompts, count)
    setting = Setting(count, seed, steps, guidance, texts, together)
    ours, theirs = (
        Named(open_model(name, dtype=dtype_named(dtype), device=device_named(device)), name)
        for name in (model, reference)
    )
    judges = judges_for(
        theirs.pipe,
        reference,
        own_prompts=prompts is not None,
        real=real,
        inception=inception,
        lpips=lpips,
        clip=clip,
        hpsv2=hpsv2,
        fidelity_only=fidelity_only,
        pictures_only=pictures_only,
    )
    with tempfile.TemporaryDirectory() as passing:
        folder = output or Path(passing)
        found = score(ours, theirs, setting, folder, judges, progress=not quiet)
        if output is not None:
            found.save(output / "evaluation.json")
            drawn, exact = (picture_files(output / name)[:count] for name in (MODEL, REFERENCE))
            about = About(f"{model} beside {reference}", exact, command_line(), environment())
            made = getattr(ours.pipe.transformer, "fewbit", None)
            shown = Shown(found.recipe, found, drawn, made and made.recipe)
            write_page(output / "report.html", about, [shown])
        if npz and found.scores:
            write_npz(picture_files(folder / MODEL)[:count], folder / f"{MODEL}.npz")
    if as_json or not quiet:
        show(found.to_dict() if as_json else found)
    if not found.passed:
        end(click.get_current_context(), f"broken: {model}: {found.verdict}", 1)
