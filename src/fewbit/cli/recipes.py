"""fewbit recipes"""

from __future__ import annotations

import click

from fewbit.cli.options import json_option
from fewbit.cli.saying import say, show


@click.command()
@json_option
def recipes(as_json: bool) -> None:
    """List the recipes and their bits.

    The first of a recipe's bits is its default.
    """
    from dataclasses import asdict

    from fewbit.engine.recipe import recipes as known

    if as_json:
        show([asdict(recipe) for recipe in known()])
        return
    for recipe in known():
        say(f"{recipe.name}  {recipe.summary}")
        say(f"  bits: {', '.join(recipe.bits)}")
        say(f"  calibration: {'yes' if recipe.calibrated else 'none needed'}")
