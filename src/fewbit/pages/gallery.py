"""Same-seed pictures in rows, and two of them under a slider; all of them inside the page."""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from PIL import Image

SMALL = 160  # pictures up to this wide show their pixels as squares under the slider
SHOWN = 512  # larger ones are embedded no wider than this
PAGE_BYTES = 4_500_000  # of all pictures together, before base64
QUALITIES = (90, 80, 65, 50)


@dataclass(frozen=True)
class PictureRow:
    name: str
    pictures: Sequence[Image.Image]


def gallery(rows: Sequence[PictureRow], columns: Sequence[str]) -> str:
    """The first row is full precision; a column is a seed and says what was asked for."""
    each = PAGE_BYTES // max(1, sum(len(row.pictures) for row in rows))
    style = f"grid-template-columns: minmax(5rem, 8rem) repeat({len(columns)}, minmax(6rem, 8rem))"
    cells = ['<div class="name"></div>', *(f'<div class="seed">{escape(c)}</div>' for c in columns)]
    for number, row in enumerate(rows):
        cells.append(f'<div class="name">{escape(row.name)}</div>')
        for column, picture in enumerate(row.pictures):
            alt = escape(f"{columns[column]}, drawn by {row.name}")
            cells.append(
                f'<img data-row="{number}" data-column="{column}" alt="{alt}" loading="lazy" '
                f'width="{picture.width}" height="{picture.height}" src="{_data(picture, each)}">'
            )
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="pictures of the same seeds">'
        f'<div class="gallery" style="{style}">\n' + "\n".join(cells)
        + "\n</div></div>\n"
    )  # fmt: skip


def slider(rows: Sequence[PictureRow], columns: Sequence[str]) -> str:
    """Full precision on the left, a chosen row on the right of a line that can be moved."""
    first, second = rows[0].pictures[0], rows[1].pictures[0]
    each = PAGE_BYTES // 20
    alts = [escape(f"{columns[0]}, drawn by {row.name}") for row in rows[:2]]
    return (
        f'<figure class="slider{_pixelated(first)}">\n<div class="stage">'
        f'<img alt="{alts[0]}" src="{_data(first, each)}">'
        f'<img class="after" alt="{alts[1]}" src="{_data(second, each)}"></div>\n'
        '<div class="controls">'
        f"<label>Model on the right{_choice([row.name for row in rows], 1)}</label>"
        f"<label>Picture{_choice(columns, 0)}</label>"
        "<label>Full precision on the left, the model on the right"
        '<input type="range" min="0" max="100" value="50"></label>'
        '<label class="check"><input type="checkbox"> Show the difference, six times as bright'
        "</label></div>\n</figure>\n"
    )


def _choice(names: Sequence[str], first: int) -> str:
    options = "".join(
        f'<option value="{number}">{escape(name)}</option>'
        for number, name in enumerate(names)
        if number >= first
    )
    return f"<select>{options}</select>"


def _data(picture: Image.Image, most: int) -> str:
    kind, content = _encoded(picture.convert("RGB"), most)
    return f"data:image/{kind};base64,{b64encode(content).decode()}"


def _encoded(picture: Image.Image, most: int) -> tuple[str, bytes]:
    """Without loss where that is small enough."""
    if picture.width <= SHOWN:
        exact = io.BytesIO()
        picture.save(exact, format="PNG", optimize=True)
        if exact.tell() <= most:
            return "png", exact.getvalue()
    picture = picture.copy()
    while True:
        picture.thumbnail((SHOWN, SHOWN))
        for quality in QUALITIES:
            lossy = io.BytesIO()
            picture.save(lossy, format="JPEG", quality=quality)
            if lossy.tell() <= most or (quality == QUALITIES[-1] and picture.width <= 64):
                return "jpeg", lossy.getvalue()
        picture = picture.resize((max(1, picture.width // 2), max(1, picture.height // 2)))


def _pixelated(picture: Image.Image) -> str:
    return " pixelated" if picture.width <= SMALL else ""
