"""Writing aside and renaming: a killed write leaves the old file or folder, or the new, whole."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fewbit.errors import BadOutput


def write_text(path: Path, text: str) -> None:
    with replacing(path) as aside:
        aside.write_text(text)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A place to write a file to; it takes the name `path` only when all went well."""
    with _aside(path) as folder:
        yield folder / path.name
        os.replace(folder / path.name, path)


@contextmanager
def new_folder(path: Path, overwrite: bool = False) -> Iterator[Path]:
    """A folder to fill; it takes the name `path` only when all went well."""
    if path.exists() and not overwrite and not (path.is_dir() and not any(path.iterdir())):
        raise BadOutput(f"{path} already exists and is not empty; choose another or overwrite it")
    with _aside(path) as folder:
        fresh, old = folder / "new", folder / "old"
        fresh.mkdir()
        yield fresh
        if path.exists():
            os.replace(path, old)
        os.replace(fresh, path)


@contextmanager
def _aside(path: Path) -> Iterator[Path]:
    """A hidden folder beside `path`, on the same file system, gone afterwards."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    except OSError as error:
        raise BadOutput(f"cannot write to {path}: {error.strerror}") from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
