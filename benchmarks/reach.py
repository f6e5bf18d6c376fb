"""Which models fewbit serves, on one page: `python benchmarks/reach.py` writes docs/models.md.

The tables are those of published.json, pipelines.json and census.json in benchmarks/results.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cells import said
from figures import ROOT, results
from report import table

PAGE = ROOT / "docs" / "models.md"

HEAD = """\
# Models

fewbit needs no list of models. Where the blocks of a transformer are, what its linear layers do and
which of them read one tensor is found by one forward on a call of the pipeline. Recipes that need
no data find it by the names of modules, before any weight is read. Five classes have a file of
their own in `src/fewbit/models/families`, which adds what only people know: DiT, PixArt,
HunyuanDiT, SD3 and Flux. What was found is printed by `fewbit inspect MODEL` and lies in the saved
model.
"""

PUBLISHED = """\
## Published models

Planned from the configurations alone. "Quantized" is the share of the weights that recipes
quantize; the rest stays as it is. Sizes are those of the saved transformer in GB, without its text
encoders. `best` is planned with its budget: 4.5, 3.5 and 2.5 bits a weight.
"""

PIPELINES = """\
## Pipelines of the day

Tiny pipelines with random weights: text encoders, VAE and scheduler are there, and two blocks of
each kind. Each is quantized on its own calibration, saved, loaded by diffusers to the same pixels,
and judged. A cell is the SQNR of the noise prediction in dB.
"""

CENSUS = """\
## Every class of diffusers

Each transformer class with two blocks of each kind is quantized, run, saved and loaded. A cell is
the SQNR of the output in dB, for a loaded model that gives the same bits, or the error that a user
reads.

Random weights are harder to round than trained ones: the figures of these two tables say that a
model works, not how good a recipe is.
"""


def main() -> None:
    PAGE.write_text(page())
    print(PAGE.relative_to(ROOT))


def page() -> str:
    found = results()
    parts = [HEAD]
    for name, (head, rows) in TABLES.items():
        where, figures = found[name]["environment"], found[name]["figures"]
        told = f"{where['date']}, {where['cpu']}, commit {_commits(figures) or where['commit']}"
        parts += [head, f"`python benchmarks/{name}.py`, {told}.\n"]
        parts.append(table(*rows(figures)))
    return "\n".join(parts)


def _commits(figures: Mapping[str, Any]) -> str:
    """Those at which the cells were measured, if cells are what there is."""
    rows = figures.get("classes") or figures.get("pipelines") or {}
    return " and ".join(sorted({c["commit"] for cells in rows.values() for c in cells.values()}))


def _published(figures: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    models = figures["models"]
    widths = list(next(iter(models.values()))["bytes_after"])
    rows = [
        [
            name,
            f"`{one['class']}`",
            f"{one['parameters'] / 1e9:.1f}",
            f"{one['quantized']:.1%}",
            *(f"{size / 1e9:.2f}" for size in (one["bytes"], *one["bytes_after"].values())),
        ]
        for name, one in models.items()
    ]
    return ["model", "class", "10⁹ weights", "quantized", "bf16", *widths], rows


def _pipelines(figures: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    rows = []
    for name, cells in figures["pipelines"].items():
        first = next(iter(cells.values()))
        counts = [str(first.get(what, "")) for what in ("kinds", "layers")]
        rows.append([f"`{name}`", *counts, *_cells(figures, cells)])
    return ["pipeline", "networks", "layers", *_heads(figures)], rows


def _census(figures: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    rows = [[f"`{name}`", *_cells(figures, cells)] for name, cells in figures["classes"].items()]
    return ["class", *_heads(figures)], rows


def _cells(figures: Mapping[str, Any], cells: Mapping[str, Any]) -> Iterator[str]:
    return (said(cells[recipe]) if recipe in cells else "" for recipe in figures["recipes"])


def _heads(figures: Mapping[str, Any]) -> Iterator[str]:
    for recipe, settings in figures["recipes"].items():
        yield f"{recipe} {settings.get('bits') or settings['preset']}"


TABLES: Mapping[str, tuple[str, Any]] = {
    "published": (PUBLISHED, _published),
    "pipelines": (PIPELINES, _pipelines),
    "census": (CENSUS, _census),
}


if __name__ == "__main__":
    main()
