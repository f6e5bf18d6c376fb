"""Plain rounding of a DiT-XL/2-sized random model: seconds, peak memory, bytes, inspection.

python benchmarks/foundation.py      writes benchmarks/results/foundation.json
Each figure comes from a process of its own, so that no peak hides behind another.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time

from environment import write_result

IMPORT = """
import time, torch
start = time.perf_counter(); import fewbit; print(time.perf_counter() - start)
"""


def main() -> None:
    figures = {
        "import_fewbit_beyond_torch_seconds": _import_seconds(),
        "rtn_dit_xl_2": _child("quantize"),
        "inspect_dit_xl_2": _child("inspect"),
    }
    print(json.dumps(figures, indent=1))
    print(write_result("foundation", figures))


def _import_seconds() -> float:
    runs = [
        float(subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True).stdout)
        for _ in range(5)
    ]
    return round(statistics.median(runs), 4)


def _child(what: str) -> dict[str, float]:
    run = subprocess.run(
        [sys.executable, __file__, what], capture_output=True, text=True, check=True
    )
    figures: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
    return figures


def quantize() -> dict[str, float]:
    from models import dit_xl_2

    import fewbit
    from fewbit.engine.plan import make_plan
    from fewbit.engine.recipe import Recipe
    from fewbit.engine.stored_size import size_of

    model = dit_xl_2()
    before = size_of(model).bytes
    arithmetic = make_plan(model, Recipe.make("rtn", "w4a4", {}), None, False)
    planned = arithmetic.size_after.bytes
    start = time.perf_counter()
    report = fewbit.quantize(model, "rtn", bits="w4a4", progress=False)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    packed = sum(layer.bytes for layer in report.layers)
    planned_packed = planned - (before - sum(x.bytes_before for x in report.layers))
    return {
        "seconds": round(seconds, 1),
        "fp32_bytes": before,
        "bytes": report.bytes,
        "peak_rss_over_fp32_bytes": round(peak / before, 3),
        "packed_bytes_over_arithmetic": round(packed / planned_packed, 5),
    }


def inspect() -> dict[str, float]:
    from models import dit_xl_2

    import fewbit

    model = dit_xl_2()
    start = time.perf_counter()
    inspection = fewbit.inspect(model)
    text = str(inspection)
    return {"seconds": round(time.perf_counter() - start, 3), "lines": text.count("\n") + 1}


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps({"quantize": quantize, "inspect": inspect}[sys.argv[1]]()))
    else:
        main()
