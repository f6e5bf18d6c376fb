"""A recipe on a DiT-XL/2-sized random model: seconds per block, peak memory, quality of the ETA.

python benchmarks/quantizing.py hq-dit              all 28 blocks; writes quantizing-hq-dit.json
python benchmarks/quantizing.py tq-dit --blocks 3   a model of 3 blocks, and 28 reckoned from it
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
from itertools import pairwise
from pathlib import Path

from environment import write_result
from models import dit_rows, dit_xl_2

import fewbit
from fewbit.engine.workdir import RUN, SURVEY
from fewbit.storage.entries import Entries

BLOCKS, ETA_AFTER = 28, 3
ROWS = {"tq-dit": 64}  # a recipe that is not here gets 128


def main() -> None:
    parser = argparse.ArgumentParser(description="Time a recipe on a DiT-XL/2-sized model.")
    parser.add_argument("recipe", help="such as hq-dit, tq-dit:w6a6")
    parser.add_argument("--blocks", type=int, default=BLOCKS, help="how many of the 28 blocks")
    arguments = parser.parse_args()
    method, _, bits = arguments.recipe.partition(":")
    rows, load = ROWS.get(method, 128), os.getloadavg()[0]
    model = dit_xl_2(arguments.blocks)
    with tempfile.TemporaryDirectory() as folder:
        data = list(dit_rows(rows))
        report = fewbit.quantize(model, method, bits=bits or None, calibration=data, workdir=folder)
        survey, blocks = _seconds(Path(folder))
    figures = {
        "recipe": f"{method}:{report.recipe['bits']}",
        "blocks": arguments.blocks,
        "rows": rows,
        "load_before": load,
        "load_after": os.getloadavg()[0],
        **({} if survey is None else {"seconds_of_survey": round(survey, 2)}),
        "seconds_per_block": [round(s, 2) for s in blocks],
        "cpu_seconds": round(sum(os.times()[:2]), 1),
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "minutes_for_28_blocks": _minutes(survey or 0.0, blocks),
        **_eta(blocks),
    }
    print(json.dumps(figures, indent=1))
    print(write_result(f"quantizing-{method}", figures))


def _seconds(folder: Path) -> tuple[float | None, list[float]]:
    """Of the survey, if there is one, and of each block, by when its file was written."""
    written = Entries(folder).path
    survey = written(SURVEY)
    blocks = sorted(folder.glob(written("block-*").name))
    files = [written(RUN), *([survey] if survey.exists() else []), *blocks]
    took = [after - before for before, after in pairwise(file.stat().st_mtime for file in files)]
    return (took[0], took[1:]) if survey.exists() else (None, took)


def _minutes(survey: float, blocks: list[float]) -> float:
    return round((survey + sum(blocks)) / len(blocks) * BLOCKS / 60, 2)


def _eta(blocks: list[float]) -> dict[str, float]:
    """What was said after the first blocks, over what it took."""
    rest = blocks[ETA_AFTER:]
    said = sum(blocks[:ETA_AFTER]) / ETA_AFTER * len(rest)
    return {"eta_after_block_3_over_true": round(said / sum(rest), 3)} if rest else {}


if __name__ == "__main__":
    main()
