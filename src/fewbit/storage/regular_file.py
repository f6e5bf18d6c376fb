"""Strangers' files are opened here: what is no regular file would wait, or give bytes, for ever."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from fewbit.errors import BrokenFile

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_regular(path: Path) -> BinaryIO:
    """Open for reading. A file that takes another's place in between cannot make it wait either."""
    try:
        _refuse_special(path, os.stat(path).st_mode)
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        file = os.fdopen(descriptor, "rb")
    except (OSError, ValueError) as error:  # a name may hold what no name may
        raise BrokenFile(f"cannot read {path}: {_reason(error)}") from None
    _refuse_special(path, os.fstat(descriptor).st_mode)
    return file


def refuse_special_files(folder: Path) -> None:
    """For the sake of foreign readers, which open whatever lies in a folder."""
    for path, mode in _below(folder, set()):
        _refuse_special(path, mode)


def _below(folder: Path, seen: set[tuple[int, int]]) -> Iterator[tuple[Path, int]]:
    """All that is no folder. Links are followed, each folder is entered once."""
    try:
        for path in sorted(folder.iterdir()):
            found = path.stat() if path.exists() else path.lstat()
            if not stat.S_ISDIR(found.st_mode):
                yield path, found.st_mode
            elif (place := (found.st_dev, found.st_ino)) not in seen:
                seen.add(place)
                yield from _below(path, seen)
    except OSError as error:
        raise BrokenFile(f"cannot read {folder}: {_reason(error)}") from None


def _refuse_special(path: Path, mode: int) -> None:
    kind = stat.S_IFMT(mode)
    if kind not in (stat.S_IFREG, stat.S_IFLNK):
        raise BrokenFile(f"{path} is {_KINDS.get(kind, 'special')}, expected a regular file")


def _reason(error: OSError | ValueError) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)
