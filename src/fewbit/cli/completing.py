"""What a shell proposes for a word that is not finished, without the time that torch takes."""

from __future__ import annotations

import re
from importlib import resources

import click
from click.shell_completion import CompletionItem

DEMOS = ("shapes", "scenes")
_NAME = re.compile(r'^METHOD = Method\(\s*"([\w-]+)"', re.MULTILINE)


def models(ctx: click.Context, param: click.Parameter, begun: str) -> list[CompletionItem]:
    """The demos, and files and folders as the shell knows them."""
    named = [CompletionItem(name) for name in DEMOS if name.startswith(begun)]
    return [*named, CompletionItem(begun, type="file")]


def recipes(ctx: click.Context, param: click.Parameter, begun: str) -> list[CompletionItem]:
    return [CompletionItem(name) for name in recipe_names() if name.startswith(begun)]


def recipe_names() -> list[str]:
    """As the files of the folder say, which are not imported for this."""
    files = resources.files("fewbit.methods").iterdir()
    texts = (file.read_text(encoding="utf-8") for file in files if file.name.endswith(".py"))
    return sorted(match[1] for text in texts if (match := _NAME.search(text)))
