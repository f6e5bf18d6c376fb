"""How a verb ends, and what it prints: whatever goes to the terminal goes through `say`."""

from __future__ import annotations

import json
from typing import NoReturn

import click

from fewbit.errors import printable


def say(text: object, err: bool = False) -> None:
    click.echo(printable(str(text)), err=err)


def end(ctx: click.Context, message: str, code: int) -> NoReturn:
    say(" ".join(message.split()), err=True)
    ctx.exit(code)


def show(content: object) -> None:
    is_data = isinstance(content, dict | list)
    say(json.dumps(content, indent=1, allow_nan=False) if is_data else content)
