"""Every way fewbit says no. Each message is one sentence: what, where, got, allowed."""

from __future__ import annotations

import re


class FewbitError(Exception):
    """Base of all errors that are the caller's to fix; the command line exits with 2 on them.

    The message is one line that is safe to print, whatever a stranger's file brought into it.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(" ".join(message.splitlines())))


class BadArgument(FewbitError, ValueError):
    """A name, setting or value that is not among the allowed ones."""


class BadModel(FewbitError):
    """A model that cannot be quantized as asked: unknown layers, impossible shapes, bad weights."""


class BadCalibration(FewbitError):
    """Calibration data that is missing, not needed, or not usable."""


class BrokenFile(FewbitError):
    """A file that is missing, truncated, altered, or not what it claims to be."""


class BadOutput(FewbitError):
    """A place that cannot be written to, or already holds something else."""


class DiskFull(BadOutput):
    """A file system, a quota or a file size limit that has no room for what was to be written."""


def printable(text: str) -> str:
    """The text with control, format and lone surrogate characters spelled as \\uXXXX.

    Line breaks and tabs stay. A terminal executes the others, or shows what follows them elsewhere.
    The spelling is also that of JSON, so a printed table stays one.
    """
    return "".join(c if c.isprintable() or c in "\n\t" else _spelled(c) for c in text)


def first_sentence(error: Exception) -> str:
    """What a foreign error says first, for a message of our own."""
    sentence = re.split(r"\. | \(|\n", str(error).strip())[0].rstrip(".")
    return sentence[:200] or type(error).__name__


def _spelled(character: str) -> str:
    code = ord(character)
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
