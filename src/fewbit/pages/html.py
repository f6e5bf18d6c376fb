"""The page: one HTML file that asks nothing of any network, and what sections are made of.

What is handed in as text is escaped here; what is called `body` or `html` is HTML already.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from typing import Literal

Tone = Literal["plain", "good", "bad"]
NOTHING = "–"


@dataclass(frozen=True)
class Card:
    """A figure of the summary: what it is, the figure, and what it is beside."""

    name: str
    figure: str
    beside: str = ""
    tone: Tone = "plain"


@dataclass(frozen=True)
class Cell:
    """Of a table; `order` is what the column is sorted by, the text itself where it is None."""

    text: str
    order: float | None = None
    note: str = ""


def document(title: str, lead: str, sections: Sequence[str]) -> str:
    """The content policy keeps the page from asking for anything, whatever stands in it."""
    style, script = (_own(name) for name in ("page.css", "page.js"))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; \
style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<link rel="icon" href="data:,">
<title>{escape(title)}</title>
<style>
{style}</style>
</head>
<body>
<main>
<header>
<p class="brand">fewbit</p>
<h1>{escape(title)}</h1>
<p class="lead">{escape(lead)}</p>
</header>
{"".join(sections)}</main>
<script>
{script}</script>
</body>
</html>
"""


def section(name: str, heading: str, text: str, body: str) -> str:
    lead = f"<p>{escape(text)}</p>\n" if text else ""
    return (
        f'<section aria-labelledby="{name}">\n<h2 id="{name}">{escape(heading)}</h2>\n'
        f"{lead}{body}</section>\n"
    )


def cards(shown: Sequence[Card]) -> str:
    parts = [
        f'<div class="card {card.tone}"><dt>{escape(card.name)}</dt><dd><strong>'
        f"{escape(card.figure)}</strong> <span>{escape(card.beside)}</span></dd></div>\n"
        for card in shown
    ]
    return f'<dl class="cards">\n{"".join(parts)}</dl>\n'


def alerts(texts: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(text)}</li>\n" for text in texts)
    return f'<ul class="alerts">\n{items}</ul>\n' if texts else ""


def table(caption: str, header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """Sortable by its headings; the first column names the row, others may hold numbers."""
    kinds = [_kind(number, rows) for number in range(len(header))]
    head = "".join(
        f'<th scope="col"{kind}><button type="button">{escape(name)}</button></th>'
        for name, kind in zip(header, kinds, strict=True)
    )
    body = "".join(f"<tr>{''.join(map(_cell, range(len(row)), row, kinds))}</tr>\n" for row in rows)
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(caption)}">\n'
        f"<table>\n<caption>{escape(caption)}</caption>\n"
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table>\n</div>\n"
    )


def figure(body: str, caption: str, name: str = "") -> str:
    kind = f' class="{name}"' if name else ""
    return f"<figure{kind}>\n{body}<figcaption>{escape(caption)}</figcaption>\n</figure>\n"


def side_by_side(figures: Sequence[str]) -> str:
    return f'<div class="figures">\n{"".join(figures)}</div>\n'


def folded(summary: str, html: str) -> str:
    return f"<details>\n<summary>{escape(summary)}</summary>\n{html}</details>\n"


def facts(content: Mapping[str, str]) -> str:
    rows = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>\n"
        for name, value in content.items()
    )
    return f'<dl class="facts">\n{rows}</dl>\n'


def code(text: str) -> str:
    return f'<pre tabindex="0"><code>{escape(text)}</code></pre>\n'


def _kind(column: int, rows: Sequence[Sequence[Cell]]) -> str:
    """A column of numbers stands on the right, its heading too."""
    counts = column > 0 and any(row[column].order is not None for row in rows)
    return ' class="number"' if counts else ""


def _cell(number: int, cell: Cell, kind: str) -> str:
    order = "" if cell.order is None else f' data-order="{_javascript(cell.order)}"'
    note = f" <small>{escape(cell.note)}</small>" if cell.note else ""
    if number == 0:
        return f'<th scope="row"{order}>{escape(cell.text)}{note}</th>'
    return f"<td{kind}{order}>{escape(cell.text)}{note}</td>"


def _javascript(number: float) -> str:
    return f"{number:.6g}".replace("inf", "Infinity")


def _own(name: str) -> str:
    return files("fewbit.pages").joinpath(name).read_text(encoding="utf-8")
