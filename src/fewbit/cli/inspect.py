"""fewbit inspect"""

from __future__ import annotations

import click

from fewbit.cli.options import MODEL_HELP, heads_option, json_option, model_argument
from fewbit.cli.saying import say, show


@click.command(epilog=MODEL_HELP)
@model_argument
@click.option("--layers", is_flag=True, help="Also one row for each layer.")
@heads_option
@json_option
def inspect(model: str, layers: bool, heads: int | None, as_json: bool) -> None:
    """Show what MODEL is made of.

    Every linear is quantized, quantizable, kept or unknown; it has a role, a shape and bytes.
    """
    import fewbit

    found = fewbit.inspect(model, heads=heads)
    show(found.to_dict() if as_json else found)
    if layers and not as_json:
        say(found.table())
