"""Writing aside and renaming: a killed write leaves the old file or folder, or the new, whole."""

from __future__ import annotations

import ctypes
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
        fresh = folder / "new"
        fresh.mkdir()
        yield fresh
        if not path.exists():
            os.replace(fresh, path)
        elif not _exchange(fresh, path):
            _move_away_and_replace(path, folder / "old", fresh)


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


def _move_away_and_replace(path: Path, old: Path, fresh: Path) -> None:
    """In two steps; what was there comes back when the second fails."""
    os.replace(path, old)
    try:
        os.rename(fresh, path)
    except OSError:
        os.replace(old, path)
        raise


def _exchange(one: Path, other: Path) -> bool:
    """Two names change places in one step, where the system can do that (Linux)."""
    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except (OSError, TypeError, AttributeError):
        return False
    at_working_directory, exchange = -100, 2
    paths = os.fsencode(one), os.fsencode(other)
    flags = at_working_directory, paths[0], at_working_directory, paths[1], exchange
    return bool(renameat2(*flags) == 0)
