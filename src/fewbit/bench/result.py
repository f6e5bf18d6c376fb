"""What was measured, as JSON and as tables of 80 columns."""

from __future__ import annotations

import json
import textwrap
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fewbit.bench.shares import PARTS
from fewbit.bench.turns import Ratio, Times
from fewbit.files import write_text

WIDTH = 80
MUCH_MORE = 1.2  # a call of a millisecond is not clocked better than so


@dataclass(frozen=True)
class Row:
    """sqnr_db: of the output to full precision's. agrees: whether that is the definition's."""

    arm: str
    times: Times
    faster: dict[str, Ratio]  # than other arms
    gop_per_second: float | None
    shares: dict[str, float] | None
    resident_bytes: int | None
    working_bytes: int | None
    sqnr_db: float
    agrees: bool | None

    def to_dict(self) -> dict[str, Any]:
        timing = {"median_ms": self.times.median, "spread": self.times.spread}
        timing["threads_at_work"] = self.times.threads
        ratios = {
            base: {**asdict(ratio), "counts": ratio.counts} for base, ratio in self.faster.items()
        }
        return _rounded({**asdict(self), **timing, "faster": ratios})


@dataclass(frozen=True)
class Table:
    title: str
    reference_db: float | None
    rows: tuple[Row, ...]

    def to_dict(self) -> dict[str, Any]:
        rows = [row.to_dict() for row in self.rows]
        return {"title": self.title, "reference_db": self.reference_db, "rows": rows}

    def __str__(self) -> str:
        products = any(row.gop_per_second for row in self.rows)
        last = "GOP/s" if products else "lin/att/qnt/rest"
        head = (
            f"  {'':18}{'median':>9}{'least':>9}{'+-':>5}{'faster':>8}{last:>16}{'MB':>7}{'dB':>6}"
        )
        lines = [self.title, head, *(_line(row, self.rows[0].arm) for row in self.rows)]
        if self.reference_db is not None:
            lines.append(f"  {'the definition':72}{self.reference_db:6.1f}")
        lines += [line for row in self.rows if row.agrees is not None for line in _compared(row)]
        return "\n".join(lines)


@dataclass(frozen=True)
class Result:
    asked: dict[str, Any]
    environment: dict[str, Any]
    left_out: dict[str, str]  # arm -> why
    tables: tuple[Table, ...]

    def to_dict(self) -> dict[str, Any]:
        own = {"asked": self.asked, "environment": self.environment, "left_out": self.left_out}
        return {**own, "tables": [table.to_dict() for table in self.tables]}

    def save(self, path: Path) -> None:
        write_text(path, json.dumps(self.to_dict(), indent=1) + "\n")

    def __str__(self) -> str:
        asked, here = self.asked, self.environment
        said = (
            f"{asked['model']}, {asked['level']}, {asked['recipe']}, {here['threads']} threads, "
            f"{asked['rounds']} rounds, times in ms; {here['cpu']}, {here['isa'] or 'no native'}, "
            f"torch {here['torch']}"
        )
        why = [f"left out: {arm}: {reason}" for arm, reason in self.left_out.items()]
        lines = [*textwrap.wrap(said, WIDTH), *map(str, self.tables)]
        why += _with_too_many_threads(self.tables, here["threads"])
        return "\n".join([*lines, *(part for line in why for part in textwrap.wrap(line, WIDTH))])


def _with_too_many_threads(tables: tuple[Table, ...], allowed: int) -> list[str]:
    found = {r.arm: r.times.threads for t in tables for r in t.rows}
    return [
        f"not comparable: {arm} had {threads:.1f} threads at work, {allowed} were allowed"
        for arm, threads in found.items()
        if threads > MUCH_MORE * allowed
    ]


def _line(row: Row, first: str) -> str:
    against = row.faster.get(first)
    faster = "" if against is None else f"{'' if against.counts else '~'}{against.median:.2f}x"
    if row.gop_per_second is not None:
        last = f"{row.gop_per_second:.0f}"
    else:
        last = "" if row.shares is None else "/".join(f"{100 * row.shares[p]:.0f}" for p in PARTS)
    size = "" if row.resident_bytes is None else f"{row.resident_bytes / 1e6:.1f}"
    error = "" if row.sqnr_db == float("inf") else f"{row.sqnr_db:.1f}"
    times = f"{row.times.median:9.2f}{min(row.times.wall):9.2f}{100 * row.times.spread:4.0f}%"
    return f"  {row.arm:18}{times}{faster:>8}{last:>16}{size:>7}{error:>6}"


def _compared(row: Row) -> list[str]:
    """One of ours beside the others, with the least and the most of the rounds."""
    ratios = [
        f"{base} {ratio.median:.2f}x ({ratio.least:.2f}-{ratio.most:.2f})"
        + ("" if ratio.counts else " which does not count")
        for base, ratio in row.faster.items()
    ]
    verdict = "as near to fp32 as the definition" if row.agrees else "NOT as near as the definition"
    text = f"{row.arm}, {verdict}; faster than {', '.join(ratios) or 'nothing here'}"
    return textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent="    ")


def _rounded(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _rounded(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_rounded(value) for value in tree]
    if isinstance(tree, float):
        return None if tree == float("inf") else round(tree, 4)
    return tree
