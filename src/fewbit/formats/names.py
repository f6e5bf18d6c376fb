"""How formats and sizes are written for people."""

from __future__ import annotations


def brief(spec: str) -> str:
    """A number format without what goes without saying: float32 scales, one for each row."""
    return spec.replace("/row", "").replace("/fp32", "")


def megabytes(count: float) -> str:
    return f"{count / 1e6:.1f} MB"
