"""The shipped demo pipelines, handed out only after their bytes were checked."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file

from fewbit.errors import BadArgument, BrokenFile

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from fewbit.demo.shape_classifier import ShapeClassifier

ASSETS = Path(__file__).parent / "assets"
MANIFEST = ASSETS / "manifest.json"


def names() -> list[str]:
    return sorted(_manifest())


def path(name: str) -> Path:
    """The folder of a demo, a diffusers pipeline, every file of it checked."""
    manifest = _manifest()
    if name not in manifest:
        raise BadArgument(f"no demo is called {name!r}; there are {', '.join(sorted(manifest))}")
    check(ASSETS / name, manifest[name])
    return ASSETS / name


def load(name: str, dtype: torch.dtype = torch.float32) -> DiffusionPipeline:
    """The demo as a pipeline, ready to sample."""
    from diffusers import DiffusionPipeline

    return DiffusionPipeline.from_pretrained(path(name), dtype=dtype)


def classifier() -> ShapeClassifier:
    """The judge of shapes pictures, which expects values in [-1, 1]."""
    from fewbit.demo.shape_classifier import ShapeClassifier

    with torch.device("meta"):
        model = ShapeClassifier()
    weights = load_file(path("shapes") / "classifier.safetensors")
    model.load_state_dict({key: value.float() for key, value in weights.items()}, assign=True)
    return model.eval().requires_grad_(False)


def digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file below a folder, by its relative path."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): _digest(file) for file in files}


def check(folder: Path, expected: dict[str, str]) -> None:
    for name, digest in expected.items():
        file = folder / name
        if not file.is_file():
            raise BrokenFile(f"{file} is missing; install fewbit again")
        if (found := _digest(file)) != digest:
            raise BrokenFile(
                f"{file} was altered: its SHA-256 is {found} and should be {digest}; "
                "install fewbit again"
            )


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _manifest() -> dict[str, dict[str, str]]:
    return json.loads(MANIFEST.read_text())
