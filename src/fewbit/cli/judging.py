"""What `evaluate` and `compare` judge with, from what was asked on the command line."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fewbit.cli.options import lines_of

if TYPE_CHECKING:
    from fewbit.judge.evaluation import Judges

count_option = click.option(
    "-n", "--n", "count", type=click.IntRange(1), default=256, show_default=True, help="Pictures."
)
steps_option = click.option(
    "--steps", type=int, help="Denoising steps; the pipeline's own if left out."
)
guidance_option = click.option(
    "--guidance", type=float, help="Guidance scale; the pipeline's own if left out."
)
together_option = click.option(
    "--together", type=click.IntRange(1), default=1, help="Pictures at a time; faster."
)
prompts_option = click.option(
    "--prompts", type=click.Path(path_type=Path), help="A text file, one a line."
)
real_option = click.option(
    "--real", type=click.Path(path_type=Path), help="A folder of pictures or ADM's .npz."
)
inception_option = click.option(
    "--inception", type=click.Path(path_type=Path), help="Inception's weights, for FID."
)
lpips_option = click.option(
    "--lpips", type=click.Path(path_type=Path), help="A folder with LPIPS's two weight files."
)
clip_option = click.option("--clip", help="A CLIPModel, folder or cached hub id: CLIP score.")
hpsv2_option = click.option("--hpsv2", help="HPSv2's .pt, or a CLIPModel of its weights.")
fidelity_option = click.option(
    "--fidelity-only", is_flag=True, help="No scores of whole sets: fewer pictures do."
)
pictures_only_option = click.option(
    "--pictures-only", is_flag=True, help="No errors by timestep and layer, no size and speed."
)


def judges_for(
    pipe: Any,
    name: str,
    *,
    own_prompts: bool,
    real: Path | None,
    inception: Path | None,
    lpips: Path | None,
    clip: str | None,
    hpsv2: str | None,
    fidelity_only: bool,
    pictures_only: bool,
) -> Judges:
    """For the reference `pipe` called `name`."""
    from fewbit.judge.checkers import checker_for
    from fewbit.judge.clip import ClipScore, refuse_without_words
    from fewbit.judge.evaluation import Judges
    from fewbit.judge.features import net_for
    from fewbit.judge.lpips import Lpips
    from fewbit.judge.metrics import PictureMetric
    from fewbit.judge.reference import real_for

    if fidelity_only and (real or inception):
        raise click.UsageError("--fidelity-only leaves no use for --real and --inception.")
    pictures: list[PictureMetric] = []
    for kind, place in (("clip", clip), ("hpsv2", hpsv2)):
        if place is not None:
            refuse_without_words(pipe, kind)
            pictures.append(ClipScore(kind, place))
    checker = None if own_prompts else checker_for(name)
    if checker is not None:
        pictures.append(checker)
    net = None if fidelity_only else net_for(pipe, inception)
    return Judges(
        net,
        real_for(real, net),
        () if lpips is None else (Lpips(lpips),),
        tuple(pictures),
        networks=not pictures_only,
    )


def prompts_for(name: str, file: Path | None, count: int) -> list[str]:
    """What the file says, or what a text demo asks of itself."""
    from fewbit.judge.checkers import checker_for

    if file is not None:
        return lines_of(file)
    checker = checker_for(name)
    return [] if checker is None else checker.captions(count)


def command_line() -> str:
    return shlex.join(["fewbit", *sys.argv[1:]])


def environment() -> dict[str, str]:
    """What a figure on a page depends on."""
    from fewbit.engine.doctor import examine

    found = examine()
    versions = [f"{name} {version}" for name, version in found.versions.items() if version]
    return {
        "versions": ", ".join(versions),
        "system": found.system,
        "processor": f"{found.cpu}, {found.threads} threads",
        "GPUs": ", ".join(found.gpus) or "none",
        "path of a quantized layer": next((p.name for p in found.paths if p.taken), "unknown"),
    }
