"""Where and when a figure was measured; it stands beside every figure that is committed."""

from __future__ import annotations

import json
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def environment() -> dict[str, Any]:
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": _cpu(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit(),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--", "src")),
    }


def write_result(name: str, figures: Any) -> Path:
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    content = {"environment": environment(), "figures": figures}
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path


def commit() -> str:
    return _git("rev-parse", "--short", "HEAD")


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("model name", "flags")):
            name = line.partition(":")[2].strip()
            break
    else:
        return platform.processor()
    flags = Path("/proc/cpuinfo").read_text()
    have = [flag for flag in ("avx2", "avx512_vnni", "avx512_bf16", "amx_int8") if flag in flags]
    return f"{name} ({', '.join(have)})"


def _git(*arguments: str) -> str:
    run = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    return run.stdout.strip()
