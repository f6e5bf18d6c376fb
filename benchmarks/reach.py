"""Which models fewbit serves, on one page: `python benchmarks/reach.py` writes docs/models.md.

The tables are those of published.json, block_time.json, pipelines.json and census.json in
benchmarks/results, as far as they are there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

from cells import said
from figures import ROOT, results
from report import table
from tiny_classes import LEFT_OUT

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

BLOCK_TIME = """\
## Time of a block

One block of each kind at the published width with random weights, in a step for a picture of 1,024
tokens (DiT-XL/2: its 256) with a text of 256 or as many as the model pads texts to. Milliseconds in
bf16 and as `rtn w8a8`, the median of rounds in turns, and the load of the machine when they began.
"""

PIPELINES = """\
## Pipelines of the day

Tiny pipelines with random weights: text encoders, VAE and scheduler are there, and two blocks of
each kind. Each is quantized on its own calibration, saved, loaded by diffusers to the same pixels,
and judged. A cell is the SQNR of the noise prediction in dB.
"""

_CENSUS = """\
## Every class of diffusers

Each transformer class with two blocks of each kind is quantized, run, saved and loaded. A cell is
the SQNR of the output in dB, for a loaded model that gives the same bits, or the error that a user
reads. Of what diffusers counts among its transformers there is left out: {left_out}.

What has no timestep is refused by `tq-dit` when it is asked for groups of timesteps, as here; with
`tgq=False` it takes these classes too.

Random weights are harder to round than trained ones: the figures of these two tables say that a
model works, not how good a recipe is.
"""

CENSUS = _CENSUS.format(left_out="; ".join(f"`{name}`, {why}" for name, why in LEFT_OUT.items()))


def main() -> None:
    PAGE.write_text(page())
    print(PAGE.relative_to(ROOT))


def page() -> str:
    found = results()
    parts = [HEAD]
    for name, (head, rows) in TABLES.items():
        if name not in found:
            continue
        where, figures = found[name]["environment"], found[name]["figures"]
        told = f"{where['date']}, {where['cpu']}, commit {_commits(figures) or where['commit']}"
        parts += [head, f"`python benchmarks/{name}.py`, {told}.\n"]
        parts.append(table(*rows(figures)))
    return "\n".join(parts)


def _commits(figures: Mapping[str, Any]) -> str:
    """Those at which rows or their cells were measured, where a table was filled bit by bit."""
    rows = figures.get("classes") or figures.get("pipelines") or {}
    cells = [*figures.get("models", {}).values(), *chain(*(row.values() for row in rows.values()))]
    return " and ".join(sorted({cell["commit"] for cell in cells if "commit" in cell}))


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


def _block_time(figures: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    rows = [
        [name, f"`{kind}`", *(f"{one:,.0f}" for one in times.values()), f"{model['load'][0]:.1f}"]
        for name, model in figures["models"].items()
        for kind, times in model["kinds"].items()
    ]
    return ["model", "blocks", "bf16", "rtn w8a8", "load"], rows


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
    "block_time": (BLOCK_TIME, _block_time),
    "pipelines": (PIPELINES, _pipelines),
    "census": (CENSUS, _census),
}


if __name__ == "__main__":
    main()
