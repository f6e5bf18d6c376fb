"""fewbit recipes"""

from __future__ import annotations

import click

from fewbit.cli.options import json_option
from fewbit.cli.saying import show


@click.command()
@json_option
def recipes(as_json: bool) -> None:
    """List the recipes and their bits.

    The first of a recipe's bits is its default.
    """
    from dataclasses import asdict

    from fewbit.recipe import recipes as known

    if as_json:
        show([asdict(recipe) for recipe in known()])
        return
    for recipe in known():
        click.echo(f"{recipe.name}  {recipe.summary}")
        click.echo(f"  bits: {', '.join(recipe.bits)}")
        click.echo(f"  calibration: {'yes' if recipe.calibrated else 'none needed'}")
