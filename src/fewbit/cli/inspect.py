"""fewbit inspect"""

from __future__ import annotations

import json

import click

from fewbit.cli.options import MODEL_HELP, heads_option, json_option, model_argument
from fewbit.cli.saying import say, show


@click.command(epilog=MODEL_HELP)
@model_argument
@click.option("--layers", is_flag=True, help="Also one row for each layer.")
@click.option("--spec", is_flag=True, help="Only the spec, as JSON to edit and give back.")
@heads_option
@json_option
def inspect(model: str, layers: bool, spec: bool, heads: int | None, as_json: bool) -> None:
    """Show what MODEL is made of.

    Every linear is quantized, quantizable, kept or unknown; it has a role, a shape and bytes.
    """
    import fewbit

    if spec:
        say(_spec(model, heads))
        return
    found = fewbit.inspect(model, heads=heads)
    show(found.to_dict() if as_json else found)
    if layers and not as_json:
        say(found.table())


def _spec(model: str, heads: int | None) -> str:
    """Of the model itself and not of its configuration alone: one that nobody knows is run once."""
    import fewbit
    from fewbit.pipelines.opening import open_model

    return json.dumps(fewbit.inspect(open_model(model, heads=heads)).spec, indent=1)
