"""fewbit recipes"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import click

from fewbit.cli import completing
from fewbit.cli.options import json_option
from fewbit.cli.saying import say, show

if TYPE_CHECKING:
    from fewbit.engine.recipe import RecipeInfo

WIDTH = 80


@click.command()
@click.argument("name", required=False, shell_complete=completing.recipes)
@json_option
def recipes(name: str | None, as_json: bool) -> None:
    """List the recipes, or tell all of the recipe NAME: bits, presets and settings.

    The first of a recipe's bits is its default.
    """
    from dataclasses import asdict

    from fewbit.engine.recipe import method_named
    from fewbit.engine.recipe import recipes as known

    if name is not None:
        method_named(name)
    chosen = [recipe for recipe in known() if name in (None, recipe.name)]
    if as_json:
        show([asdict(recipe) for recipe in chosen])
        return
    for recipe in chosen:
        say("\n".join(_head(recipe) if name is None else [*_head(recipe), *_rest(recipe)]))


def _head(recipe: RecipeInfo) -> list[str]:
    bits = ", ".join(recipe.bits)
    return [
        *textwrap.wrap(f"{recipe.name}  {recipe.summary}", WIDTH, subsequent_indent="  "),
        *textwrap.wrap(f"  bits: {bits}", WIDTH, subsequent_indent="    ", break_on_hyphens=False),
        f"  calibration: {'yes' if recipe.calibrated else 'none needed'}",
    ]


def _rest(recipe: RecipeInfo) -> list[str]:
    """Presets and settings, one indented paragraph each."""
    presets = {
        name: ", ".join(f"{key}={value}" for key, value in settings.items())
        for name, settings in recipe.presets.items()
    }
    return [
        *(["", "  presets"] if presets else []),
        *(line for name, text in presets.items() for line in _paragraph(name, text)),
        "",
        "  settings",
        *(
            line
            for one in recipe.settings
            for line in _paragraph(f"{one.name}={one.default}", one.help, f"[{one.allowed}]")
        ),
    ]


def _paragraph(name: str, *texts: str) -> list[str]:
    first, *others = (
        line for text in texts for line in textwrap.wrap(text, WIDTH - 28, break_long_words=False)
    )
    return [f"    {name:<23} {first}", *(f"{'':<28}{line}" for line in others)]
