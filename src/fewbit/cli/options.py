"""What several verbs take."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from fewbit.errors import BrokenFile
from fewbit.storage.provenance import LARGEST_SEED

if TYPE_CHECKING:
    import torch

MODEL_HELP = (
    "MODEL is a folder (a diffusers pipeline or transformer, or what fewbit wrote), an original "
    "DiT checkpoint (.pt, .pth, .safetensors), a hub id (org/name), or a shipped demo (shapes, "
    "scenes)."
)

SEEDS = click.IntRange(0, LARGEST_SEED)

model_argument = click.argument("model", metavar="MODEL")
seed_option = click.option("--seed", type=SEEDS, default=0, show_default=True)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, nothing else.")
quiet_option = click.option("--quiet", is_flag=True, help="Print nothing but errors.")
device_option = click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True
)
dtype_option = click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default="float32",
    show_default=True,
    help="Of what is not quantized.",
)
spec_option = click.option(
    "--spec",
    type=click.Path(path_type=Path),
    help="A JSON file that says where the blocks are; `fewbit inspect MODEL --spec` prints one.",
)
heads_option = click.option(
    "--heads", type=int, help="Attention heads of an original checkpoint of unpublished width."
)


def lines_of(file: Path) -> list[str]:
    """What a text file says, line by line."""
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BrokenFile(f"{file} is no UTF-8 text: {error.reason} at byte {error.start}") from None
    return [line for line in text.splitlines() if line.strip()]


def dtype_named(name: str) -> torch.dtype:
    import torch

    dtype: torch.dtype = getattr(torch, name)
    return dtype
