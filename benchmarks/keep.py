"""Keep what `fewbit bench --output` wrote as a result: medians, spreads, ratios; not each round.

fewbit bench dit-xl-2 --level block --output FILE
python benchmarks/keep.py bench_dit-xl-2_block_2 < FILE
"""

from __future__ import annotations

import json
import sys
from typing import Any

from environment import RESULTS


def without_rounds(result: dict[str, Any]) -> dict[str, Any]:
    for table in result["tables"]:
        for row in table["rows"]:
            row["least_ms"] = min(row.pop("times")["wall"])
    return result


if __name__ == "__main__":
    kept = json.dumps(without_rounds(json.load(sys.stdin)), indent=1)
    (RESULTS / f"{sys.argv[1]}.json").write_text(kept + "\n")
