"""Memory of the process: what is free, what was taken, and giving back what was freed."""

from __future__ import annotations

import ctypes
from pathlib import Path


def release() -> None:
    """After a block's full-precision weights are gone: glibc keeps what was freed below something
    that is still in use. Does nothing where there is no glibc."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, TypeError, AttributeError):
        return


def available_bytes() -> int | None:
    """What may still be taken; None where the system does not tell."""
    return _told(Path("/proc/meminfo"), "MemAvailable:")


def resident_bytes() -> int:
    """What the process has in memory; 0 where the system does not tell."""
    return _told(Path("/proc/self/status"), "VmRSS:") or 0


def _told(file: Path, key: str) -> int | None:
    for line in file.read_text().splitlines() if file.exists() else ():
        if line.startswith(key):
            return 1024 * int(line.split()[1])
    return None
