"""fewbit bench"""

from __future__ import annotations

from pathlib import Path

import click

from fewbit.cli.options import device_option, json_option
from fewbit.cli.places import refuse_unwritable
from fewbit.cli.saying import show


@click.command()
@click.argument("model", metavar="[MODEL]", default="dit-xl-2")
@click.option("--level", default="block", show_default=True, help="gemm, block, step or image.")
@click.option("--recipe", help="Ours; hq-dit if left out, unless MODEL is quantized already.")
@click.option("--bits", help="A variant of the recipe.")
@click.option("--arms", help="Such as 'bf16,ours native'; all that run here if left out.")
@click.option("--threads", type=int, help="Of the CPU; as torch has them if left out.")
@click.option("--rounds", type=click.IntRange(5), default=7, show_default=True)
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Images.")
@device_option
@click.option("--output", type=click.Path(path_type=Path), help="Also write a JSON file.")
@json_option
def bench(
    model: str,
    level: str,
    recipe: str | None,
    bits: str | None,
    arms: str | None,
    threads: int | None,
    rounds: int,
    batch: int,
    device: str,
    output: Path | None,
    as_json: bool,
) -> None:
    """Measure speed, memory and error beside other ways to run MODEL.

    MODEL is dit-xl-2 or pixart-1024 (full size, random weights, nothing to download), a demo, or
    what the other verbs take. All ways run in turn in one process on the same weights; those that
    cannot run are named with the reason. A recipe runs with what it costs at run time, but without
    its search for better weights.
    """
    if output is not None:
        refuse_unwritable(output)

    from fewbit.bench import bench as measure
    from fewbit.pipelines.opening import device_named

    found = measure(
        model,
        level,
        recipe=recipe,
        bits=bits,
        arms=None if arms is None else [name.strip() for name in arms.split(",")],
        device=device_named(device),
        threads=threads,
        rounds=rounds,
        batch=batch,
    )
    show(found.to_dict() if as_json else str(found))
    if output is not None:
        found.save(output)
