"""Text that may hold a stranger's words, safe to show on a terminal."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text with control, format and lone surrogate characters spelled as \\uXXXX.

    Line breaks and tabs stay. A terminal executes the others, or shows what follows them elsewhere.
    The spelling is also that of JSON, so a printed table stays one.
    """
    return "".join(c if c.isprintable() or c in "\n\t" else _spelled(c) for c in text)


def _spelled(character: str) -> str:
    code = ord(character)
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
