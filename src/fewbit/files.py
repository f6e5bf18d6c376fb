"""Paths that can be, locks, and writing aside and renaming: a killed write leaves the old or the
new."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from fewbit.errors import BadArgument, BadOutput, DiskFull

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]

ASIDE = ".fewbit-"  # how hidden folders begin, which a killed write leaves behind
OLD = "old"  # in such a folder: what stood under the name before
LONGEST_NAME = 255  # bytes, on all file systems in use
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def checked_path(what: str, path: object) -> Path:
    """A path that a file system can hold; `what` is its name in the error."""
    if not isinstance(path, str | os.PathLike):
        raise BadArgument(f"{what} must be a path, got {path!r:.80}")
    text = os.fsdecode(path)
    if not text or "\0" in text:
        raise BadArgument(f"{what} must not be empty or hold NUL, got {text!r:.80}")
    for name in Path(text).parts:
        if (size := len(os.fsencode(name))) > LONGEST_NAME:
            raise BadArgument(
                f"{what} has a name of {size} bytes, {name[:40]!r}…; allowed: {LONGEST_NAME}"
            )
    return Path(text)


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
    clear_stale(path.parent.glob(f"{_prefix(path)}*"))
    with _aside(path) as folder:
        fresh = folder / "new"
        fresh.mkdir()
        yield fresh
        if not path.exists():
            os.replace(fresh, path)
        elif not _exchange(fresh, path):
            _move_away_and_replace(path, folder / OLD, fresh)


def held(path: Path, wait: bool = False) -> ExitStack:
    """The lock of `path`, taken now and given back at the end of the block, or when the process
    dies, however that is.

    BlockingIOError says that somebody else holds it; another OSError, that it cannot be locked.
    """
    if fcntl is None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)  # NFS wants to write
    with ExitStack() as closing:
        closing.callback(os.close, descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        return closing.pop_all()


def clear_stale(folders: Iterable[Path]) -> None:
    """Delete those that killed writes have left, and none that is being written. Where one holds
    what stood under the name before, that is the only copy."""
    for folder in list(folders):
        with suppress(OSError), held(folder):
            if not (folder / OLD).exists():
                shutil.rmtree(folder)


@contextmanager
def keeping(workdir: Path | None) -> Iterator[None]:
    """Where the disk is full, say what the work folder has kept, or would have."""
    try:
        yield
    except DiskFull as error:
        kept = f"the finished blocks in {workdir} are kept and not computed again"
        if workdir is None:
            kept = "with a workdir the finished blocks are kept"
        raise DiskFull(f"{error}; {kept}") from error.__cause__


@contextmanager
def _aside(path: Path) -> Iterator[Path]:
    """A hidden folder beside `path`, on the same file system, gone afterwards."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder, lock = _new_and_held(path)
    except OSError as error:
        _refuse_full(error, path)
        raise BadOutput(f"cannot write to {path}: {error.strerror}") from None
    try:
        yield folder
    except Exception as error:
        _refuse_full(error, path)
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.close()


def _new_and_held(path: Path) -> tuple[Path, ExitStack]:
    """Another one, where somebody took it for stale before it was held."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_prefix(path), dir=path.parent))
        try:
            lock = held(folder, wait=True)
        except FileNotFoundError:
            continue
        except OSError:  # where nothing can be locked, nobody clears either
            return folder, ExitStack()
        if folder.exists():
            return folder, lock
        lock.close()


def _prefix(path: Path) -> str:
    """Of hidden folders for `path`; its name itself may be as long as a name can be."""
    return f"{ASIDE}{zlib.crc32(os.fsencode(path.name)):08x}-"


def _refuse_full(error: Exception, path: Path) -> None:
    """Name `path` where there was no room, and not a hidden file on the way to it."""
    cause = error.__cause__ if isinstance(error, DiskFull) else error
    number = _system_error(cause)
    if number in _NO_ROOM:
        raise DiskFull(
            f"no room to write {path} ({os.strerror(number)}); make room and do the same again"
        ) from cause


def _system_error(error: BaseException | None) -> int:
    """Its number, 0 for none; Rust's libraries raise no OSError but say "(os error 28)"."""
    if isinstance(error, OSError):
        return error.errno or 0
    spelled = re.search(r"\(os error (\d+)\)", str(error))
    return int(spelled[1]) if spelled else 0


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
