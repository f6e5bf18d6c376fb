"""The page of one quantization: what it saved, what it cost in each layer, how to repeat it."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Iterator
from pathlib import Path

import torch

from fewbit.engine.report import LayerReport, Report
from fewbit.engine.verdict import words_for
from fewbit.files import write_text
from fewbit.formats.names import brief, megabytes
from fewbit.pages import charts, html
from fewbit.pages.html import NOTHING, Card, Cell

_GAIN = (
    "Rounding dB is the weight's error by plain rounding to the same format, and gain the output's "
    "over that of plain rounding. A weight may be below plain rounding and its output above: what "
    "counts is the error in the directions that the inputs have."
)


def write_page(path: Path, report: Report) -> None:
    name = f"{report.recipe['method']}:{report.recipe['bits']}"
    title = f"{report.family} quantized with {name}"
    lead = f"{len(report.layers)} layers, seed {report.seed}, fewbit {report.fewbit_version}."
    write_text(path, html.document(title, lead, list(_sections(report))))


def _sections(report: Report) -> Iterator[str]:
    yield html.section(
        "summary", "Summary", "", html.cards(_cards(report)) + html.alerts(report.warnings)
    )
    if report.layers:
        yield html.section("roles", "Error by role", _lead(report), _roles(report))
        yield html.section("layers", "Layers", _GAIN, _layers(report))
    lead = "What it cost in pictures and gained in speed, the second command shows."
    yield html.section("repeat", "How to repeat it", lead, _repeat(report))


def _cards(report: Report) -> list[Card]:
    cards = [
        Card("In bfloat16", megabytes(report.bf16_bytes), "the same model"),
        Card("Size", megabytes(report.bytes), f"{report.smaller:.2f}× smaller, saved and loaded"),
        *_measured(report),
        Card("Time", f"{sum(report.seconds.values()):.1f} s", "calibration and solving"),
    ]
    if report.layers:
        worst = report.worst
        cards.append(Card("Worst layer", f"{worst.error_db:.1f} dB", worst.name))
    return cards


def _measured(report: Report) -> list[Card]:
    cards = []
    for found in report.measured.values():
        if found.faster is not None:
            cards.append(Card("Speed", f"{found.faster:.2f}×", "of bfloat16, a call of a few rows"))
        if found.db is not None:
            cards.append(Card("Match", f"{found.db:.1f} dB", words_for(found.db)))
    return cards


def _lead(report: Report) -> str:
    seen = any(layer.output_db is not None for layer in report.layers)
    return (
        "The mean over layers, against full precision, of "
        f"{'the output on calibration inputs' if seen else 'the weight'}. Higher is better."
    )


def _roles(report: Report) -> str:
    roles: dict[str, list[float]] = {}
    for layer in report.layers:
        roles.setdefault(layer.role, []).append(layer.error_db)
    means = {role: sum(values) / len(values) for role, values in roles.items()}
    chart = charts.bars("Error by role", "dB", means)
    return html.side_by_side([html.figure(chart, "Signal to quantization noise.")])


def _layers(report: Report) -> str:
    header = ["layer", "role", "weight", "input", "bits", "MB", "weight dB", "rounding dB",
              "output dB", "gain dB"]  # fmt: skip
    rows = [
        [
            Cell(layer.name),
            Cell(layer.role),
            Cell(brief(layer.weight)),
            Cell(brief(layer.activation or NOTHING)),
            Cell(f"{layer.bits_per_weight:.2f}", layer.bits_per_weight),
            Cell(f"{layer.bytes / 1e6:.3f}", layer.bytes),
            *map(_db, _errors(layer)),
        ]
        for layer in report.layers
    ]
    return html.table("Every layer; a heading sorts", header, rows)


def _errors(layer: LayerReport) -> list[float | None]:
    return [layer.weight_db, layer.rounding_weight_db, layer.output_db, layer.gain_db]


def _db(value: float | None) -> Cell:
    if value is None or math.isnan(value):
        return Cell(NOTHING)
    return Cell(f"{value:.2f}", value)


def _repeat(report: Report) -> str:
    """With the recipe that lies beside the page, and how to see what it cost in pictures."""
    commands = (
        f"fewbit quantize MODEL --recipe fewbit_recipe.json --seed {report.seed} --output OUTPUT\n"
        "fewbit evaluate OUTPUT --reference MODEL --output SCORES"
    )
    facts = {
        "SHA-256 of the source weights": report.source,
        "seed": str(report.seed),
        "versions": f"fewbit {report.fewbit_version}, torch {torch.__version__}, "
        f"python {platform.python_version()}",
        "system": platform.platform(),
        **{f"seconds to {name}": f"{value:.1f}" for name, value in report.seconds.items()},
    }
    recipe = html.folded("The recipe", html.code(json.dumps(report.recipe, indent=1)))
    return html.code(commands) + html.facts(facts) + recipe
