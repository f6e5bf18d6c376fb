"""Where and when a figure was measured; it stands beside every figure that is kept."""

from __future__ import annotations

import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from fewbit.engine.doctor import examine
from fewbit.kernels.native import ops as native
from fewbit.version import __version__

PEERS = (
    "torchao",
    "sdnq",
    "openvino",
    "nncf",
    "onnxruntime",
    "orbitquant",
    "comfy-kitchen",
    "gguf",
)


def environment() -> dict[str, Any]:
    found = examine()
    features = [name for name, there in (found.cpu_features or {}).items() if there]
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "fewbit": __version__,
        "commit": _git("rev-parse", "--short", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--", ".")),
        "cpu": found.cpu,
        "cpu_features": features,
        "gpus": found.gpus,
        "isa": native.isa(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "peers": {name: _version(name) for name in PEERS},
        "python": platform.python_version(),
        "system": found.system,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    """Of the checkout this file is in; None where it is installed."""
    try:
        run = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parents[1], capture_output=True, text=True
        )
    except OSError:
        return None
    return run.stdout.strip() if run.returncode == 0 else None
