"""Several recipes on one model: their sizes and scores, what can be told apart, and the front."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewbit.engine.report import Report
from fewbit.files import write_text
from fewbit.judge.bootstrap import Interval, difference, interval
from fewbit.judge.scores import Evaluation
from fewbit.pages.notebook import shown

EQUAL_SIZE = 1.05  # sizes up to this ratio count as equal
EQUAL_DB = 100.0  # stands for a picture without any difference
_HEAD = ("recipe", "MB", "bf16/", "PSNR", "95 % of seeds", "noise", "Fréchet", "right", "")
_WIDTHS = (6, 5, 6, 14, 6, 7, 6)


@dataclass(frozen=True)
class Candidate:
    """One recipe, what it made of the model, and how that draws."""

    label: str
    report: Report
    evaluation: Evaluation

    @property
    def bytes(self) -> int:
        """Of what was quantized, as saved and loaded."""
        return self.report.bytes

    @property
    def psnr(self) -> tuple[float, ...]:
        """Of each picture; none where the model draws none."""
        score = self.evaluation.score("PSNR")
        return () if score is None else tuple(min(db, EQUAL_DB) for db in score.each)

    @property
    def quality(self) -> float:
        return sum(self.psnr) / len(self.psnr) if self.psnr else -math.inf


@dataclass(frozen=True)
class Row:
    """group: those of equal size have the same number, 0 the largest.
    quality:  interval of the PSNR over seeds; None without pictures.
    tied:     not told apart from the best of its size.
    on_front: nothing that is not larger is better.
    """

    candidate: Candidate
    group: int
    quality: Interval | None
    tied: bool
    on_front: bool


@dataclass(frozen=True)
class Comparison:
    """Sorted by size, the largest first, and at equal size by quality, the best first."""

    model: str
    pictures: int
    seed: int
    rows: tuple[Row, ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "pictures": self.pictures,
            "seed": self.seed,
            "recipes": [_row_dict(row) for row in self.rows],
        }

    def save(self, path: Path) -> None:
        write_text(path, json.dumps(self.to_dict(), indent=1, allow_nan=False))

    def __repr__(self) -> str:
        return f"<Comparison of {self._head()}>"

    def _repr_html_(self) -> str:
        rows = [_cells(row) for row in self.rows]
        return shown(self._head(), _HEAD, rows, [*self._legend(), *self._broken()])

    def __str__(self) -> str:
        rows = [_line(*_HEAD), *(_line(*_cells(row)) for row in self.rows)]
        return "\n".join([self._head(), *rows, *self._legend(), *self._broken()])

    def _head(self) -> str:
        return (
            f"{self.model}: {len(self.rows)} recipes, {self.pictures} pictures of seed {self.seed}"
        )

    def _legend(self) -> list[str]:
        marks = [
            "  PSNR of pictures, SQNR of the noise prediction, in dB; bf16/: times smaller",
            "  * on the front: nothing as small is better",
        ]
        if any(row.tied for row in self.rows):
            marks.append("  ~ not told apart from the best of its size (95 %, the same seeds)")
        return marks

    def _broken(self) -> list[str]:
        return [
            f"  ! {row.candidate.label} is broken: {row.candidate.evaluation.verdict}"
            for row in self.rows
            if not row.candidate.evaluation.passed
        ]


def compared(model: str, candidates: Sequence[Candidate]) -> Comparison:
    by_size = sorted(candidates, key=lambda one: -one.bytes)
    groups: list[list[Candidate]] = []
    for one in by_size:
        if groups and groups[-1][0].bytes <= EQUAL_SIZE * one.bytes:
            groups[-1].append(one)
        else:
            groups.append([one])
    rows = []
    for number, group in enumerate(groups):
        best, *others = sorted(group, key=lambda one: -one.quality)
        rows += [_row(best, number, best, candidates)]
        rows += [_row(one, number, best, candidates) for one in others]
    first = candidates[0].evaluation
    return Comparison(model, first.pictures, first.seed, tuple(rows))


def _row(one: Candidate, group: int, best: Candidate, all_of_them: Sequence[Candidate]) -> Row:
    beaten = any(other.bytes <= one.bytes and other.quality > one.quality for other in all_of_them)
    return Row(
        one,
        group,
        interval(one.psnr) if one.psnr else None,
        one is not best
        and bool(one.psnr and best.psnr)
        and difference(best.psnr, one.psnr).holds(0.0),
        one.evaluation.passed and not beaten,
    )


def _row_dict(row: Row) -> dict[str, Any]:
    one = row.candidate
    return {
        "label": one.label,
        "size_group": row.group,
        "psnr": one.quality if one.psnr else None,
        "psnr_interval": None if row.quality is None else [row.quality.low, row.quality.high],
        "not_told_apart_from_best": row.tied,
        "on_front": row.on_front,
        "evaluation": one.evaluation.to_dict(),
        "recipe": one.report.recipe,
        "bytes_before": one.report.bytes_before,
        "bf16_bytes": one.report.bf16_bytes,
        "bytes": one.bytes,
        "seconds": one.report.seconds,
        "warnings": one.report.warnings,
    }


def _cells(row: Row) -> tuple[str, ...]:
    one = row.candidate
    found = one.evaluation.score
    marks = [(row.on_front, "*"), (row.tied, "~"), (not one.evaluation.passed, "!")]
    spread = row.quality and f"{row.quality.low:.2f} to {row.quality.high:.2f}"
    return (
        one.label,
        f"{one.bytes / 1e6:.2f}",
        f"{one.report.smaller:.2f}",
        f"{one.quality:.2f}" if one.psnr else "-",
        spread or "-",
        *(
            f"{score.value:.{digits}f}" if score else "-"
            for score, digits in (
                (found("noise prediction"), 2),
                (found("FID") or found("Fréchet"), 3),
                (found("accuracy") or found("faithfulness"), 3),
            )
        ),
        "".join(mark for there, mark in marks if there),
    )


def _line(*cells: str) -> str:
    label, *numbers, marks = cells
    shown = " ".join(f"{cell:>{width}}" for cell, width in zip(numbers, _WIDTHS, strict=True))
    return f"  {label[:16]:<16} {shown} {marks}".rstrip()
