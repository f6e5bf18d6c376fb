"""The page of an evaluation or a comparison: pictures for the eye, tables and charts for papers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fewbit.files import write_text
from fewbit.formats.names import megabytes
from fewbit.judge.comparison import Comparison, Row
from fewbit.judge.layers import LayerError
from fewbit.judge.scores import Evaluation, Score
from fewbit.judge.spread import EDGE
from fewbit.judge.trajectory import TrajectoryFidelity
from fewbit.pages import charts, html
from fewbit.pages.gallery import PictureRow, gallery, slider
from fewbit.pages.html import NOTHING, Card, Cell

PICTURES = 8  # seeds shown
COLUMNS = 16  # timesteps of a heat map, at most
WORST = 10  # layers listed
SPREADS = 4  # layers whose inputs are shown
OUTLYING = 0.05  # of all errors that lie beyond either end of the colour scale


@dataclass(frozen=True)
class Shown:
    """A model on the page; `pictures` are files in the order of their numbers."""

    label: str
    evaluation: Evaluation
    pictures: Sequence[Path]
    recipe: Mapping[str, Any] | None = None
    warnings: Sequence[str] = ()
    row: Row | None = None  # in a comparison


@dataclass(frozen=True)
class About:
    """command: what repeats it."""

    title: str
    reference: Sequence[Path]
    command: str
    environment: Mapping[str, str]


def write_page(path: Path, about: About, shown: Sequence[Shown]) -> None:
    first = shown[0].evaluation
    lead = (
        f"{first.pictures} pictures of seed {first.seed}, the same seeds in full precision and "
        f"quantized. Steps: {first.steps}; guidance: {first.guidance}."
    )
    write_text(path, html.document(about.title, lead, list(_sections(about, shown))))


def shown_of(comparison: Comparison, pictures: Mapping[str, Sequence[Path]]) -> list[Shown]:
    return [
        Shown(
            row.candidate.label,
            row.candidate.evaluation,
            pictures[row.candidate.label],
            row.candidate.report.recipe,
            row.candidate.report.warnings,
            row,
        )
        for row in comparison.rows
    ]


def _sections(about: About, shown: Sequence[Shown]) -> Iterator[str]:
    summary = _cards_of_one(shown[0]) if len(shown) == 1 else _cards_of_many(shown)
    yield html.section("summary", "Summary", "", html.cards(summary) + html.alerts(_alerts(shown)))
    drawn = [one for one in shown if one.pictures]
    if drawn:
        yield _pictures(about, drawn)
    if any(one.row and one.row.quality for one in shown):
        yield _fronts(shown)
    if any(one.evaluation.scores for one in shown):
        yield _scores_of_one(shown[0]) if len(shown) == 1 else _scores_of_many(shown)
    inside = [(one.label, one.evaluation.trajectory) for one in shown]
    measured = {label: found for label, found in inside if found is not None}
    if measured:
        yield _by_timestep(measured)
    layered = {label: found for label, found in measured.items() if found.layers}
    if layered:
        yield _by_layer(layered)
        yield _spreads(layered)
    yield _repeat(about, shown)


def _cards_of_one(one: Shown) -> list[Card]:
    found, cost = one.evaluation, one.evaluation.cost
    psnr, inside = found.score("PSNR"), found.trajectory
    right = found.score("accuracy") or found.score("faithfulness")
    cards = []
    if cost:
        cards += [
            Card("Size", megabytes(cost.size.bytes), f"{cost.smaller:.2f}× smaller than bfloat16"),
            Card(
                "Speed", f"{cost.faster:.2f}×", f"of bfloat16, {1e3 * cost.seconds:.1f} ms a step"
            ),
        ]
    if psnr:
        cards.append(Card("Pictures", f"{psnr.value:.2f} dB", "PSNR to full precision"))
    if inside:
        cards.append(Card("Noise prediction", f"{inside.sqnr:.2f} dB", "SQNR over all timesteps"))
    if right:
        beside = f"full precision {right.full_precision:.1%}"
        cards.append(Card(right.name.capitalize(), f"{right.value:.1%}", beside))
    return [*cards, _gate([one])]


def _cards_of_many(shown: Sequence[Shown]) -> list[Card]:
    rows = [one.row for one in shown if one.row]
    best = max(rows, key=lambda row: row.candidate.quality).candidate
    least = min(rows, key=lambda row: row.candidate.bytes).candidate
    front = [row for row in rows if row.on_front]
    return [
        Card("Closest to full precision", best.label, f"PSNR {best.quality:.2f} dB"),
        Card("Smallest", least.label, f"{megabytes(least.bytes)}, PSNR {least.quality:.2f} dB"),
        *_fastest(rows),
        Card("On the front", f"{len(front)} of {len(rows)}", "nothing as small is better"),
        _gate(shown),
    ]


def _fastest(rows: Sequence[Row]) -> list[Card]:
    timed = [(row.candidate.evaluation.cost, row.candidate.label) for row in rows]
    speeds = [(cost.faster, label) for cost, label in timed if cost]
    if not speeds:
        return []
    speed, label = max(speeds)
    return [Card("Fastest", label, f"{speed:.2f}× the speed of bfloat16")]


def _gate(shown: Sequence[Shown]) -> Card:
    broken = [one.label for one in shown if not one.evaluation.passed]
    if broken:
        return Card("Quality gate", "broken", ", ".join(broken), "bad")
    return Card("Quality gate", "passed", "finite, not flat, true in colour", "good")


def _alerts(shown: Sequence[Shown]) -> list[str]:
    broken = [
        f"{one.label} is broken: {one.evaluation.verdict}"
        for one in shown
        if not one.evaluation.passed
    ]
    warned = [
        f"{one.label}: {one.warnings[0]}"
        + (f" (and {len(one.warnings) - 1} more)" if len(one.warnings) > 1 else "")
        for one in shown
        if one.warnings
    ]
    return broken + warned


def _pictures(about: About, drawn: Sequence[Shown]) -> str:
    count = min(PICTURES, *(len(one.pictures) for one in drawn), len(about.reference))
    rows = [PictureRow("full precision", _opened(about.reference[:count]))]
    rows += [PictureRow(one.label, _opened(one.pictures[:count])) for one in drawn]
    columns = [f"{p.info.get('asked', '')} #{n}" for n, p in enumerate(rows[0].pictures)]
    return html.section(
        "pictures",
        "Pictures",
        "Every column is one seed; only the model differs. Move the line, or choose a model and a "
        "picture, to see what changed.",
        slider(rows, columns) + gallery(rows, columns),
    )


def _opened(files: Sequence[Path]) -> list[Image.Image]:
    pictures: list[Image.Image] = []
    for file in files:
        with Image.open(file) as picture:
            picture.load()
            pictures.append(picture)
    return pictures


def _fronts(shown: Sequence[Shown]) -> str:
    rows = [one.row for one in shown if one.row and one.row.quality]
    by_size = [_point(row, row.candidate.bytes / 1e6) for row in rows]
    front = [number for number, row in enumerate(rows) if row.on_front]
    size, speed = "size in MB", "speed beside bfloat16"
    quality = "PSNR in dB"
    figures = [
        html.figure(
            charts.scatter("Size and quality", charts.Axes(size, quality), by_size, front),
            "Bars are 95 % intervals over seeds. The dashed step is the front: nothing as small "
            "is better.",
        )
    ]
    timed = [
        _point(row, row.candidate.evaluation.cost.faster)
        for row in rows
        if row.candidate.evaluation.cost
    ]
    if timed:
        figures.append(
            html.figure(
                charts.scatter("Speed and quality", charts.Axes(speed, quality), timed, ()),
                "One forward of the transformer on this machine, 1 being bfloat16; further to the "
                "right is faster.",
            )
        )
    lead = "Quality is the PSNR to the same seeds in full precision, the mean over pictures."
    return html.section("front", "Size, speed and quality", lead, html.side_by_side(figures))


def _point(row: Row, x: float) -> charts.Point:
    assert row.quality is not None
    one = row.candidate
    return charts.Point(one.label, x, one.quality, row.quality.low, row.quality.high)


def _scores_of_one(one: Shown) -> str:
    """A row for each score, which a phone is wide enough for."""
    header = ["score", one.label, "full precision", "bias", "better"]
    rows = [
        [
            Cell(score.name, None, score.unit),
            *map(_number, (score.value, score.full_precision, score.bias)),
            Cell(score.better),
        ]
        for score in one.evaluation.scores
    ]
    lead = (
        "Bias is about how much of a distance is only due to the number of pictures; it is in the "
        "value and in full precision's alike."
    )
    body = html.table("Scores; a heading sorts", header, rows)
    return html.section("scores", "Scores", lead, body)


def _scores_of_many(shown: Sequence[Shown]) -> str:
    names = list(dict.fromkeys(score.name for one in shown for score in one.evaluation.scores))
    costs = any(one.evaluation.cost for one in shown)
    header = ["model", *(["MB", "× smaller", "ms a step", "× speed"] if costs else []), *names]
    rows = [[Cell(one.label, None, _mark(one)), *_cost(one, costs), *_of(one, names)]
            for one in shown]  # fmt: skip
    exact = {score.name: score.full_precision for score in shown[0].evaluation.scores}
    if any(value is not None for value in exact.values()):
        blank = [Cell(NOTHING)] * (4 if costs else 0)
        rows.append([Cell("full precision"), *blank, *(_number(exact.get(n)) for n in names)])
    lead = (
        "Sizes and speeds are those of the transformer, beside bfloat16. ≈ marks what cannot be "
        "told apart from the best of its size, over the same seeds, at 95 %."
    )
    body = html.table("Scores; a heading sorts", header, rows)
    return html.section("scores", "Scores", lead, body)


def _mark(one: Shown) -> str:
    if not one.evaluation.passed:
        return "broken"
    return "≈" if one.row and one.row.tied else ""


def _cost(one: Shown, wanted: bool) -> list[Cell]:
    cost = one.evaluation.cost
    if cost is None:
        return [Cell(NOTHING)] * (4 if wanted else 0)
    return [
        Cell(f"{cost.size.bytes / 1e6:.2f}", cost.size.bytes),
        Cell(f"{cost.smaller:.2f}", cost.smaller),
        Cell(f"{1e3 * cost.seconds:.1f}", cost.seconds),
        Cell(f"{cost.faster:.2f}", cost.faster),
    ]


def _of(one: Shown, names: Sequence[str]) -> list[Cell]:
    return [_score_cell(one.evaluation.score(name)) for name in names]


def _score_cell(score: Score | None) -> Cell:
    return Cell(NOTHING) if score is None else _number(score.value)


def _number(value: float | None) -> Cell:
    return Cell(NOTHING) if value is None else Cell(f"{value:.3f}", value)


def _by_timestep(measured: Mapping[str, TrajectoryFidelity]) -> str:
    series = {label: sorted(found.by_timestep.items()) for label, found in measured.items()}
    axes = charts.Axes("timestep, pure noise on the right", "SQNR in dB")
    chart = charts.lines("Error of the noise prediction by timestep", axes, series)
    lead = (
        "What the scheduler reads, on latents of full precision that no calibration has seen. "
        "Higher is better."
    )
    caption = "Signal to quantization noise of the noise prediction."
    body = html.side_by_side([html.figure(chart, caption)])
    return html.section("timesteps", "Error by timestep", lead, body)


def _by_layer(layered: Mapping[str, TrajectoryFidelity]) -> str:
    values = [db for found in layered.values() for one in found.layers for db in _finite(one)]
    low, high = _most(values)
    figures = [
        html.figure(
            charts.heat_map(f"Error by layer and timestep, {label}", _rows(found), low, high),
            label,
        )
        for label, found in layered.items()
    ]
    worst = [_worst(label, found) for label, found in layered.items()]
    lead = (
        "Each layer's output beside full precision's, both networks on the same latents: an error "
        "grows from layer to layer, and the step from one row to the next is what a layer adds. "
        "Where a method rotates the values of an attention, the layer that gives them is left out."
    )
    body = html.side_by_side(figures) + html.folded(
        f"The {WORST} worst layers of each model", "".join(worst)
    )
    return html.section("layers", "Error by layer", lead, body)


def _most(values: Sequence[float]) -> tuple[float, float]:
    """The range of nearly all: a few layers that lose nothing would take all contrast."""
    if not values:
        return 0.0, 1.0
    low, high = np.quantile(values, [OUTLYING, 1 - OUTLYING]).tolist()
    return low, high


def _finite(layer: LayerError) -> list[float]:
    return [db for db in layer.by_timestep.values() if abs(db) != float("inf")]


def _rows(found: TrajectoryFidelity) -> dict[str, dict[float, float]]:
    times = sorted({time for layer in found.layers for time in layer.by_timestep})
    stride = -(-len(times) // COLUMNS)
    return {
        layer.name: {t: layer.by_timestep[t] for t in times[::stride] if t in layer.by_timestep}
        for layer in found.layers
    }


def _worst(label: str, found: TrajectoryFidelity) -> str:
    layers = sorted(found.layers, key=lambda layer: layer.sqnr)[:WORST]
    rows = [
        [Cell(layer.name), Cell(layer.role), Cell(f"{layer.sqnr:.2f}", layer.sqnr)]
        for layer in layers
    ]
    return html.table(label, ["layer", "role", "SQNR dB"], rows)


def _spreads(layered: Mapping[str, TrajectoryFidelity]) -> str:
    """Of a model that transforms its inputs if there is one."""
    label, found = max(
        layered.items(), key=lambda item: any(one.transformed for one in item[1].layers)
    )
    by_counts = {one.inputs.counts: one for one in reversed(found.layers)}  # consumers of one input
    loud = sorted(by_counts.values(), key=lambda one: -one.inputs.kurtosis)
    figures = [_spread(one) for one in loud if one.inputs.kurtosis == one.inputs.kurtosis][:SPREADS]
    lead = (
        f"The inputs of the layers with the heaviest tails in {label}, every token divided by its "
        "own root mean square. Kurtosis is in excess of a normal distribution's; what lies far "
        "out costs a token's one scale its resolution."
    )
    return html.section("inputs", "Activations", lead, html.side_by_side(figures))


def _spread(layer: LayerError) -> str:
    series = {f"as it comes, kurtosis {layer.inputs.kurtosis:z.1f}": layer.inputs.counts}
    if layer.transformed:
        name = f"transformed, kurtosis {layer.transformed.kurtosis:z.1f}"
        series[name] = layer.transformed.counts
    return html.figure(charts.histogram(f"Input of {layer.name}", EDGE, series), layer.name)


def _repeat(about: About, shown: Sequence[Shown]) -> str:
    recipes = "".join(
        html.folded(f"Recipe of {one.label}", html.code(json.dumps(one.recipe, indent=1)))
        for one in shown
        if one.recipe
    )
    bases = html.folded("Where each score comes from", _bases(shown[0].evaluation))
    notes = html.alerts(list(dict.fromkeys(note for one in shown for note in one.evaluation.notes)))
    body = html.code(about.command) + notes + html.facts(about.environment) + recipes + bases
    return html.section("repeat", "How to repeat it", "", body)


def _bases(found: Evaluation) -> str:
    rows = [
        [
            Cell(score.name),
            Cell(str(score.basis.samples), score.basis.samples),
            Cell(score.basis.reference or NOTHING, None, (score.basis.reference_sha256 or "")[:12]),
            Cell(score.basis.features or NOTHING, None, (score.basis.features_sha256 or "")[:12]),
            Cell(score.basis.resize),
        ]
        for score in found.scores
    ]
    header = ["score", "samples", "held against", "seen by", "resized"]
    return html.table("Scores and their bases", header, rows)
