"""fewbit export"""

from __future__ import annotations

from pathlib import Path

import click

from fewbit.cli.options import json_option, model_argument, quiet_option
from fewbit.cli.places import refuse_unwritable
from fewbit.cli.saying import say, show

FORMATS = (
    *("comfy-int8", "comfy-w4a8", "comfy-convrot-w4a4", "comfy-nvfp4"),
    *("gguf-q8_0", "gguf-q5_1", "gguf-q5_0", "gguf-q4_1", "gguf-q4_0", "gguf-mxfp4"),
)
GRAPHS = ("onnx", "openvino")


@click.command()
@model_argument
@click.option(
    "--format",
    "name",
    type=click.Choice((*FORMATS, *GRAPHS)),
    metavar="FORMAT",
    required=True,
    help=f"One of {', '.join((*FORMATS, *GRAPHS))}.",
)
@click.option("--output", "-o", type=click.Path(path_type=Path), required=True, help="The file.")
@click.option("--overwrite", is_flag=True, help="Replace a file that is there.")
@json_option
@quiet_option
def export(
    model: str, name: str, output: Path, overwrite: bool, as_json: bool, quiet: bool
) -> None:
    """Write MODEL, a folder that fewbit wrote, as a file for another runtime.

    Layers are written as they are stored. `fewbit quantize ORIGINAL --recipe portable:FORMAT` makes
    those that a format holds. For onnx and openvino MODEL is a folder of a pipeline.
    """
    refuse_unwritable(output)
    import fewbit
    from fewbit.formats.names import megabytes

    files = fewbit.export(fewbit.load(model), output, name, overwrite=overwrite)
    size = sum(file.stat().st_size for file in files)
    if as_json:
        show({"files": [str(file) for file in files], "format": name, "bytes": size})
    elif not quiet:
        say(f"{output}: {name}, {megabytes(size)}")
