"""fewbit doctor"""

from __future__ import annotations

from typing import Any

import click

from fewbit.cli.completing import models, recipes
from fewbit.cli.options import device_option, json_option
from fewbit.cli.saying import show


@click.command()
@click.argument("model", metavar="[MODEL]", required=False, shell_complete=models)
@click.option(
    "--recipe",
    default="best",
    show_default=True,
    shell_complete=recipes,
    help="For a MODEL that is not quantized yet.",
)
@device_option
@json_option
def doctor(model: str | None, recipe: str, device: str, as_json: bool) -> None:
    """Show what this machine offers.

    Versions, processor, memory, GPUs, and on which path quantized layers run and why; with a
    MODEL the path of each of its layers, or what a recipe would make of them.
    """
    from fewbit.engine.doctor import examine, examine_layers
    from fewbit.pipelines.opening import device_named, open_model

    if model is None:
        found: Any = examine()
    else:
        found = examine_layers(open_model(model, device=device_named(device)), recipe)
    show(found.to_dict() if as_json else found)
