"""What several verbs take."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from fewbit.cli.completing import DEMOS, models
from fewbit.errors import BadArgument, BrokenFile
from fewbit.storage.provenance import LARGEST_SEED

if TYPE_CHECKING:
    import torch

F = TypeVar("F", bound=Callable[..., Any])

MODEL_HELP = (
    "MODEL is a folder (a diffusers pipeline or transformer, or what fewbit wrote), an original "
    "DiT checkpoint (.pt, .pth, .safetensors), a hub id (org/name), or a shipped demo "
    f"({', '.join(DEMOS)})."
)

SEEDS = click.IntRange(0, LARGEST_SEED)

model_argument = click.argument("model", metavar="MODEL", shell_complete=models)
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
components_option = click.option(
    "--components",
    metavar="NAMES",
    help="Networks of the pipeline to quantize, such as transformer,text_encoder; those that "
    "denoise if left out.",
)
heads_option = click.option(
    "--heads", type=int, help="Attention heads of an original checkpoint of unpublished width."
)


def call_option(what: str) -> Callable[[F], F]:
    return click.option(
        "--call", "call", multiple=True, metavar="NAME=VALUE",
        help=f"{what} what the pipeline is told, such as height=512 or num_frames=17.",
    )  # fmt: skip


def names_in(text: str | None) -> list[str] | None:
    """Of a list with commas."""
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def named(option: str, texts: tuple[str, ...]) -> dict[str, Any]:
    """`group_size=64` as Python would have it: JSON where it is JSON, else a string."""
    settings = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (equals and name.isidentifier()):
            raise BadArgument(f"{option} takes NAME=VALUE, got {text!r}")
        try:
            settings[name] = json.loads(value)
        except ValueError:
            settings[name] = value
    return settings


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
