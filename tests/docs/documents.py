"""The documents of this repository, and the code that stands in them."""

import re
import runpy
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
DOCUMENTS = sorted(
    path for place in (".", "docs", "examples", "studies") for path in (ROOT / place).glob("*.md")
)
FENCED = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(path: Path, language: str) -> list[str]:
    return [text for kind, text in FENCED.findall(path.read_text()) if kind == language]


def prose(path: Path) -> str:
    """The text without its code."""
    return re.sub(r"`[^`\n]*`", "", FENCED.sub("", path.read_text()))


def script(place: str) -> dict[str, Any]:
    """What a script of the repository defines; it finds its neighbours, as when it is called."""
    folder = str((ROOT / place).parent)
    sys.path.insert(0, folder)
    try:
        return runpy.run_path(str(ROOT / place))
    finally:
        sys.path.remove(folder)
