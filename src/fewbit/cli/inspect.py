"""fewbit inspect"""

from __future__ import annotations

from pathlib import Path

import click

from fewbit.cli.options import MODEL_HELP, heads_option, json_option, model_argument
from fewbit.cli.saying import show


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
    from fewbit.source import check_folder, locate, open_model

    place = locate(model)
    if isinstance(place, Path) and place.is_dir():
        check_folder(place)
        found = fewbit.inspect(place)
    else:
        found = fewbit.inspect(open_model(model, heads=heads))
    show(found.to_dict() if as_json else found)
    if layers and not as_json:
        click.echo(found.table())
