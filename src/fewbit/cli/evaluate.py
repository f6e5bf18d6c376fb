"""fewbit evaluate"""

from __future__ import annotations

from pathlib import Path

import click

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
        refuse_unwritable(output)

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
        Named(open_model(name, dtype=dtype_named(dtype), device=device_named(device)), name)
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
        show(found.to_dict() if as_json else found)
    if not found.passed:
        end(click.get_current_context(), f"broken: {model}: {found.verdict}", 1)
