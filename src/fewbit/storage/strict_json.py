"""JSON from strangers: one table of bounded size and depth, every name once."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NoReturn

from fewbit.errors import BrokenFile
from fewbit.storage.regular_file import open_regular

LARGEST = 8 << 20  # bytes; a model of ten thousand tensors needs about three
DEEPEST = 32


def read_table(path: Path) -> dict[str, Any]:
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            text = file.read(LARGEST + 1) if size <= LARGEST else b""
    except OSError as error:
        raise BrokenFile(f"cannot read {path}: {error.strerror}") from None
    if size > LARGEST:
        raise BrokenFile(f"{path} holds {size} bytes of JSON, allowed {LARGEST}")
    return parse_table(text, str(path))


def parse_table(text: str | bytes, where: str) -> dict[str, Any]:
    """`where` is named in the error: which file, which part of it."""
    if len(text) > LARGEST:
        raise BrokenFile(f"{where} holds {len(text)} bytes of JSON, allowed {LARGEST}")
    try:
        decoded = text.decode() if isinstance(text, bytes) else text
        content = json.loads(decoded, object_pairs_hook=_each_once, parse_constant=_refuse)
        if not isinstance(content, dict):
            raise ValueError("it is not a table")
        _refuse_deep(content)
    except (ValueError, RecursionError) as error:
        raise BrokenFile(f"{where} is not valid JSON: {str(error)[:100]}") from None
    return content


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for name, value in pairs:
        if name in table:
            raise ValueError(f"the name {name[:80]!r} occurs twice")
        if not name.isprintable():
            raise ValueError(f"the name {name[:80]!r} holds characters that cannot be shown")
        table[name] = value
    return table


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a number")


def _refuse_deep(content: dict[str, Any]) -> None:
    """What comes later may recurse through the content without fear."""
    level: list[Any] = [content]
    for _ in range(DEEPEST):
        children = (c for node in level for c in (node.values() if type(node) is dict else node))
        level = [child for child in children if isinstance(child, dict | list)]
        if not level:
            return
    raise ValueError(f"it is nested deeper than {DEEPEST} levels")
