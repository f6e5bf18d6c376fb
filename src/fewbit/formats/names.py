"""Formats by name, and how formats and sizes are written for people."""

from __future__ import annotations

from functools import cache

from fewbit import registry
from fewbit.errors import BadArgument
from fewbit.formats.format import Format


@cache
def formats() -> dict[str, Format]:
    """The formats that have a name of their own: `FORMATS` of the files in this folder, and those
    that were registered."""
    listed = registry.modules("formats", "FORMATS")
    return {fmt.name: fmt for group in listed for fmt in group}


def register(fmt: Format) -> None:
    """Make a format known by its name that is defined elsewhere; files that name it can be read
    from then on."""
    known = format_named(fmt.name)
    if known is not None and known != fmt:
        raise BadArgument(f"there is a format called {fmt.name!r} already")
    formats()[fmt.name] = fmt


def format_named(name: str) -> Format | None:
    """A format by its own name, or one that a file of this folder makes of the name (`from_name`):
    a codebook, several formats joined by `|`."""
    if name in formats():
        return formats()[name]
    made = (from_name(name) for from_name in registry.modules("formats", "from_name"))
    return next((fmt for fmt in made if fmt is not None), None)


def brief(spec: str) -> str:
    """A number format without what goes without saying: float32 scales, one for each row."""
    return spec.replace("/row", "").replace("/fp32", "")


def megabytes(count: float) -> str:
    return f"{count / 1e6:.1f} MB"
