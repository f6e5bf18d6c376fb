"""What the files of results hold, and how each is measured again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
STUDIES = ROOT / "studies" / "results"
TOLD = ("recipe", "demo")  # what a script was told on its command line


def results() -> dict[str, Any]:
    return {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}


def tables_of(path: Path) -> dict[str, list[str]]:
    """The rows of all tables in a Markdown file, by their first cells."""
    rows = [line.strip().strip("|").split("|") for line in path.read_text().splitlines()
            if line.startswith("|")]  # fmt: skip
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}


def study(name: str) -> dict[str, list[str]]:
    return tables_of(STUDIES / f"{name}.md")


def faster(result: Mapping[str, Any], arm: str) -> dict[str, float]:
    """How many times an arm of a bench is as fast as each of the others."""
    (one,) = result["tables"]
    row = next(row for row in one["rows"] if row["arm"] == arm)
    return {base: ratio["median"] for base, ratio in row["faster"].items()}


def threads(result: Mapping[str, Any]) -> str:
    number = result["environment"]["threads"]
    return "one thread" if number == 1 else f"{number} threads"


def command(name: str, result: Mapping[str, Any]) -> str:
    if asked := result.get("asked"):
        recipe = "" if asked["recipe"] == "hq-dit:w4a4" else f" --recipe {asked['recipe']}"
        arms = " --arms 'bf16,ours torch,ours torch fast'" if name.endswith("_torch") else ""
        number = result["environment"]["threads"]
        return (
            f"`fewbit bench {asked['model']} --level {asked['level']} --threads {number}"
            f"{recipe}{arms}`"
        )
    isa = f"FEWBIT_ISA={result['figures']['isa']} " if "isa" in result["figures"] else ""
    told = [result["figures"].get(key) for key in TOLD]
    words = [script(name).name, *(word for word in told if isinstance(word, str))]
    return f"`{isa}python benchmarks/{' '.join(words)}`"


def script(name: str) -> Path:
    return ROOT / "benchmarks" / f"{name.partition('-')[0]}.py"
