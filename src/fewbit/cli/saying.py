"""How a verb ends, and what it prints."""

from __future__ import annotations

import json
from typing import NoReturn

import click


def end(ctx: click.Context, message: str, code: int) -> NoReturn:
    click.echo(" ".join(message.split()), err=True)
    ctx.exit(code)


def show(content: object) -> None:
    is_data = isinstance(content, dict | list)
    click.echo(json.dumps(content, indent=1) if is_data else str(content))
