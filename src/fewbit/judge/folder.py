"""Pictures for evaluation in a folder: number i depends on the model, the settings and (seed, i).

So it does not matter in which order they are drawn, or in how many runs. If several are drawn
together, for speed, it is always the same ones: sums in a layer depend on the company. Every file
says in its text chunks how it was made; one that says the same as it would today is kept.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from fewbit.errors import BadOutput, BrokenFile
from fewbit.judge.finite import (
    NotFinite,
    PathsDisagree,
    every_layer,
    finite_outputs,
    networks,
    outermost,
)
from fewbit.judge.reading import read_picture
from fewbit.pages.images import common_facts, save_png
from fewbit.pipelines.generate import generate, subjects_of
from fewbit.progress import track
from fewbit.storage.blueprint import blueprint_of
from fewbit.storage.tensors import digest
from fewbit.version import __version__


@dataclass(frozen=True)
class Series:
    """All the pictures of one pipeline, from number 0 upwards; subjects take turns."""

    pipe: Any
    model: str  # SHA-256 of the pipeline
    keyword: str
    subjects: Sequence[Any]
    seed: int
    steps: int | None
    guidance: float | None
    together: int
    call: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        pipe: Any,
        seed: int,
        steps: int | None = None,
        guidance: float | None = None,
        prompts: Sequence[str] = (),
        together: int = 1,
        call: Mapping[str, Any] | None = None,
    ) -> Series:
        keyword, subjects = subjects_of(pipe, (), prompts)
        manner = seed, steps, guidance, together, dict(call or {})
        return cls(pipe, fingerprint(pipe), keyword, subjects, *manner)

    def subject(self, number: int) -> Any:
        return self.subjects[number % len(self.subjects)]

    def asked(self, number: int) -> str:
        """What the picture should show, in words where the classes have names."""
        subject = self.subject(number)
        if self.keyword == "prompt":
            return str(subject)
        labels = getattr(self.pipe, "labels", {})
        return next((name for name, label in labels.items() if label == subject), str(subject))

    def facts(self, number: int) -> dict[str, str]:
        """What decides on the picture."""
        own = "the pipeline's own"
        return {
            "model_sha256": self.model,
            "number": f"{number} of seed {self.seed}",
            "asked": self.asked(number),
            "asked_steps": own if self.steps is None else str(self.steps),
            "asked_guidance": own if self.guidance is None else str(self.guidance),
            "drawn_together": str(self.together),
            **{f"call {name}": str(value) for name, value in self.call.items()},
            "fewbit": __version__,
        }

    def company(self, number: int) -> range:
        """The pictures that are drawn together with this one."""
        first = number - number % self.together
        return range(first, first + self.together)

    def draw(self, company: range) -> list[Image.Image]:
        """Raises NotFinite with the first bad layer; only then is every layer looked at, which
        keeps blocks from being computed in few passes: finite pictures of that are no answer."""
        try:
            with finite_outputs(outermost(self.pipe)):
                return self._draw(company)
        except NotFinite as found:
            with finite_outputs(every_layer(self.pipe)):
                self._draw(company)
            raise PathsDisagree(found.layer) from None

    def draw_alone(self, number: int) -> None:
        """To listen in; whatever its numbers are."""
        self._draw(range(number, number + 1))

    def _draw(self, company: range) -> list[Image.Image]:
        asked = [self.subject(number) for number in company]
        pictures = generate(
            self.pipe,
            seeds=[picture_seed(self.seed, number) for number in company],
            labels=asked if self.keyword == "class_labels" else (),
            prompts=asked if self.keyword == "prompt" else (),
            steps=self.steps,
            guidance=self.guidance,
            together=self.together,
            call=self.call,
        )
        for number, picture in zip(company, pictures, strict=True):
            picture.info.update(self.facts(number))
        return pictures


@dataclass(frozen=True)
class Filled:
    """The files in order, and what had to be drawn again because it could not be read."""

    files: list[Path]
    redrawn: list[str]


def fill(folder: Path, series: Series, count: int, progress: bool = False) -> Filled:
    """See that the folder holds pictures 0 to count - 1; draw those it lacks."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{number:06}.png" for number in range(count)]
    missing, redrawn = [], []
    for number, file in enumerate(files):
        if file.exists():
            try:
                _refuse_other_run(file, series.facts(number))
                continue
            except BrokenFile as error:
                redrawn.append(str(error))
        missing.append(number)
    companies = dict.fromkeys(map(series.company, missing))
    for company in track(companies, f"drawing to {folder.name}", len(companies), progress):
        for number, picture in zip(company, series.draw(company), strict=True):
            if number in missing:
                save_png(picture, files[number], common_facts([picture]))
    return Filled(files, redrawn)


def picture_seed(seed: int, number: int) -> int:
    """No two sets share a picture, as they would if numbers were added to seeds."""
    return int.from_bytes(hashlib.sha256(f"picture {number} of {seed}".encode()).digest()[:6])


def fingerprint(pipe: Any) -> str:
    """SHA-256 of all that a pipeline draws with: weights, formats, scheduler, device."""
    total = hashlib.sha256()
    for name, network in sorted(networks(pipe).items()):
        total.update(f"{name} {json.dumps(blueprint_of(network))}\n".encode())
        for key, tensor in sorted(network.state_dict().items()):
            total.update(f"{key} {digest(tensor)}\n".encode())
    scheduler = getattr(pipe, "scheduler", None)
    settings = sorted((key, repr(value)) for key, value in getattr(scheduler, "config", {}).items())
    total.update(f"{type(scheduler).__name__} {settings} {pipe.device.type}".encode())
    return total.hexdigest()


def _refuse_other_run(file: Path, facts: dict[str, str]) -> None:
    read_picture(file)
    with Image.open(file) as picture:
        differs = [key for key, value in facts.items() if picture.info.get(key) != value]
    if differs:
        raise BadOutput(
            f"{file} is of another run, which differs in: {', '.join(differs)}; "
            f"choose another folder or delete {file.parent}"
        )
