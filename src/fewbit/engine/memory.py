"""Giving freed memory back: glibc keeps what was freed below something that is still in use."""

from __future__ import annotations

import ctypes


def release() -> None:
    """After a block's full-precision weights are gone; does nothing where there is no glibc."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, TypeError, AttributeError):
        return
