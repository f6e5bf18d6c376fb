"""Pictures on disk: labelled grids, and PNG files that say how they were made."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from fewbit.files import replacing

_MARGIN = 4
_FONT_SIZE = 13
_PAPER, _INK = (250, 250, 248), (40, 40, 44)


def grid(
    rows: Sequence[Sequence[Image.Image]],
    labels: Sequence[str] = (),
    columns: Sequence[str] = (),
) -> Image.Image:
    """Equally large pictures in rows; `labels` stand left of the rows, `columns` above them."""
    font = ImageFont.load_default(_FONT_SIZE)
    width, height = rows[0][0].size
    left = _MARGIN + math.ceil(max((font.getlength(line) for line in _lines(labels)), default=0))
    top = _MARGIN + (_FONT_SIZE + _MARGIN if columns else 0)
    left += 3 * _MARGIN if labels else 0
    size = (
        left + max(map(len, rows)) * (width + _MARGIN),
        top + len(rows) * (height + _MARGIN),
    )
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    for j, text in enumerate(columns):
        x = left + j * (width + _MARGIN) + width / 2
        draw.text((x, top - _MARGIN / 2), text, _INK, font, anchor="md")
    for i, row in enumerate(rows):
        y = top + i * (height + _MARGIN)
        if labels:
            draw.multiline_text((_MARGIN, y + height / 2), labels[i], _INK, font, anchor="lm")
        for j, picture in enumerate(row):
            sheet.paste(picture.convert("RGB"), (left + j * (width + _MARGIN), y))
    return sheet


def save_png(picture: Image.Image, path: Path, facts: Mapping[str, str]) -> None:
    """With `facts` as text chunks."""
    info = PngInfo()
    for key, value in facts.items():
        info.add_text(key, value)
    with replacing(path) as aside:
        picture.save(aside, format="PNG", pnginfo=info)


def common_facts(pictures: Sequence[Image.Image]) -> dict[str, str]:
    """The facts of a grid: one value where all pictures agree, else one for each, in order."""
    facts = {}
    for key in pictures[0].info:
        values = [str(picture.info[key]) for picture in pictures]
        facts[str(key)] = values[0] if len(set(values)) == 1 else ", ".join(values)
    return facts


def _lines(labels: Sequence[str]) -> list[str]:
    return [line for label in labels for line in label.split("\n")]
