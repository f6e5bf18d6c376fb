"""Where a verb may write, asked before the long work and not after it."""

from __future__ import annotations

import os
from pathlib import Path

from fewbit.errors import BadOutput
from fewbit.files import checked_path


def refuse_taken(path: Path, overwrite: bool) -> None:
    """Before the long work, not after it."""
    refuse_unwritable(path)
    if path.exists() and not path.is_dir():
        raise BadOutput(f"{path} is a file; choose a folder to write")
    if path.exists() and any(path.iterdir()) and not overwrite:
        raise BadOutput(f"{path} already holds something; choose another or give --overwrite")
    if path.resolve() in (Path.cwd(), *Path.cwd().parents):
        raise BadOutput(f"{path} is the folder you are in or above it; choose another")


def refuse_files(paths: list[Path]) -> None:
    for path in paths:
        if path.suffix != ".png":
            raise BadOutput(f"{path} must end in .png")
        if path.is_dir():
            raise BadOutput(f"{path} is a folder; choose a file")
        refuse_unwritable(path)


def refuse_unwritable(path: Path) -> None:
    checked_path("a path to write", path)
    nearest = next(parent for parent in path.absolute().parents if parent.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise BadOutput(f"cannot write to {path}: {nearest} is not a folder we may write to")
