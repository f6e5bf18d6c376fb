"""The model card and what lies beside the weights: the recipe, the report as JSON and page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fewbit.engine.page import write_page
from fewbit.engine.report import Report
from fewbit.engine.stored_size import size_of
from fewbit.formats.names import megabytes
from fewbit.models import quantized_components
from fewbit.storage.hub import CARD, licence_of
from fewbit.storage.provenance import Provenance
from fewbit.storage.reader import Artefact

RECIPE, REPORT = "fewbit_recipe.json", "fewbit_report.json"
PAGE = "fewbit_report.html"
BASE, PLACE = "base_model: ", '"PATH"'


def write_card(model: Any, folder: Path, report: Report | None) -> None:
    artefacts = {one.name: Artefact.open(folder / one.name) for one in quantized_components(model)}
    provenance = next(iter(artefacts.values())).manifest.provenance
    (folder / RECIPE).write_text(json.dumps(provenance.recipe, indent=1))
    if report is not None:
        report.save(folder / REPORT)
        write_page(folder / PAGE, report)
    (folder / CARD).write_text(_card(model, provenance, report, artefacts))


def published_card(folder: Path, repo: str) -> str:
    """The card in a folder as it stands on the hub: with the licence of the base model, which is
    looked up there, and with how to load it from there."""
    card = (folder / CARD).read_text().replace(PLACE, f'"{repo}"')
    base = next((line for line in card.splitlines() if line.startswith(BASE)), None)
    if base is None:
        return card
    licence = licence_of(base.removeprefix(BASE))
    lines = [f"{key}: {value}" for key, value in licence.items()]
    return card.replace(base, "\n".join([base, *lines]), 1)


def _card(
    model: Any,
    provenance: Provenance,
    report: Report | None,
    artefacts: Mapping[str, Artefact],
) -> str:
    recipe = provenance.recipe
    sizes = {one.name: size_of(one.network) for one in quantized_components(model)}
    base = _base_model(model)
    lines = [
        "---",
        *([f"{BASE}{base}", "base_model_relation: quantized"] if base else []),
        f"library_name: {'diffusers' if hasattr(model, 'save_pretrained') else 'fewbit'}",
        "tags: [fewbit, quantized]",
        "---",
        "",
        f"# {base or type(model).__name__}, quantized with fewbit ({recipe['method']}:"
        f"{recipe['bits']})",
        "",
        "## Load",
        "",
        "```python",
        *_how_to_load(model),
        "```",
        "",
        "## What was done",
        "",
        f"- recipe: `{json.dumps(recipe)}`, seed {provenance.seed}",
        *(
            line
            for name, artefact in artefacts.items()
            for line in (
                f"- {name or 'transformer'}: {sizes[name]}{_copies(artefact)}",
                f"- SHA-256 of its source weights: `{artefact.manifest.provenance.source_sha256}`",
            )
        ),
        f"- written by fewbit {provenance.fewbit_version}",
        *([] if report is None else ["", "## Report", "", "```", str(report), "```"]),
    ]
    return "\n".join(lines) + "\n"


def _base_model(model: Any) -> str | None:
    """The hub id the model came from; a local path is nobody's business."""
    name = str(getattr(getattr(model, "config", None), "_name_or_path", "") or "")
    return name if name.count("/") == 1 and not Path(name).exists() else None


def _how_to_load(model: Any) -> list[str]:
    name = type(model).__name__
    if hasattr(model, "save_pretrained"):
        return [
            "import fewbit  # registers fewbit with diffusers",
            f"from diffusers import {name}",
            "",
            f"model = {name}.from_pretrained({PLACE})",
        ]
    return ["import fewbit", "", f"model = fewbit.load({PLACE})"]


def _copies(artefact: Artefact) -> str:
    stored = {n: t for header in artefact.headers for n, t in header.tensors.items()}
    shared = [stored[name].nbytes for name in artefact.manifest.aliases.values()]
    if not shared:
        return ""
    return (
        f"; {len(shared)} tensors are copies of others and share their memory, "
        f"which saves {megabytes(sum(shared))}"
    )
