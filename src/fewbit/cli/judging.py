"""What `evaluate` and `compare` judge with, from what was asked on the command line."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import reduce, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fewbit.cli.options import call_option, lines_of, named, seed_option

if TYPE_CHECKING:
    from fewbit.judge.evaluation import Judges, Setting

_OPTIONS = (
    click.option(
        "-n", "--n", "count", type=click.IntRange(1), default=256, show_default=True,
        help="Pictures.",
    ),
    click.option("--steps", type=int, help="Denoising steps; the pipeline's own if left out."),
    click.option("--guidance", type=float, help="Guidance scale; the pipeline's own if left out."),
    call_option("More of"),
    click.option(
        "--together", type=click.IntRange(1), default=1, help="Pictures at a time; faster."
    ),
    click.option("--prompts", type=click.Path(path_type=Path), help="A text file, one a line."),
    click.option(
        "--real", type=click.Path(path_type=Path), help="A folder of pictures or ADM's .npz."
    ),
    click.option(
        "--inception", type=click.Path(path_type=Path), help="Inception's weights, for FID."
    ),
    click.option(
        "--lpips", type=click.Path(path_type=Path), help="A folder with LPIPS's two weight files."
    ),
    click.option("--clip", help="A CLIPModel, folder or cached hub id: CLIP score."),
    click.option("--hpsv2", help="HPSv2's .pt, or a CLIPModel of its weights."),
    click.option(
        "--fidelity-only", is_flag=True, help="No scores of whole sets: fewer pictures do."
    ),
    click.option(
        "--pictures-only", is_flag=True, help="No errors by timestep and layer, no size and speed."
    ),
    seed_option,
)  # fmt: skip


@dataclass(frozen=True)
class Judging:
    """Which pictures are drawn and what judges them, as the command line says."""

    count: int
    steps: int | None
    guidance: float | None
    call: tuple[str, ...]
    together: int
    prompts: Path | None
    real: Path | None
    inception: Path | None
    lpips: Path | None
    clip: str | None
    hpsv2: str | None
    fidelity_only: bool
    pictures_only: bool
    seed: int

    def setting(self, name: str) -> Setting:
        """How a model called `name` draws."""
        from fewbit.judge.evaluation import Setting

        texts = _prompts_for(name, self.prompts, self.count)
        manner = self.steps, self.guidance, texts, self.together, named("--call", self.call)
        return Setting(self.count, self.seed, *manner)

    def judges(self, pipe: Any, name: str) -> Judges:
        """For the reference `pipe` called `name`."""
        from fewbit.judge.checkers import checker_for
        from fewbit.judge.clip import ClipScore, refuse_without_words
        from fewbit.judge.evaluation import Judges
        from fewbit.judge.features import net_for
        from fewbit.judge.lpips import Lpips
        from fewbit.judge.metrics import PictureMetric
        from fewbit.judge.reference import real_for

        if self.fidelity_only and (self.real or self.inception):
            raise click.UsageError("--fidelity-only leaves no use for --real and --inception.")
        pictures: list[PictureMetric] = []
        for kind, place in (("clip", self.clip), ("hpsv2", self.hpsv2)):
            if place is not None:
                refuse_without_words(pipe, kind)
                pictures.append(ClipScore(kind, place))
        checker = None if self.prompts is not None else checker_for(name)
        if checker is not None:
            pictures.append(checker)
        net = None if self.fidelity_only else net_for(pipe, self.inception)
        return Judges(
            net,
            real_for(self.real, net),
            () if self.lpips is None else (Lpips(self.lpips),),
            tuple(pictures),
            networks=not self.pictures_only,
        )


def judging_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options of both verbs, which the command gets as one value, `judging`."""

    @wraps(command)
    def gathered(**given: Any) -> None:
        command(judging=Judging(**{field.name: given.pop(field.name) for field in fields(Judging)}),
                **given)  # fmt: skip

    return reduce(lambda decorated, option: option(decorated), reversed(_OPTIONS), gathered)


def _prompts_for(name: str, file: Path | None, count: int) -> list[str]:
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
