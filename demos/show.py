"""What few bits do to pictures, on the shipped demo: `python -m demos.show --output DIR`.

Each variant is quantized, saved, loaded from disk by stock diffusers, and asked for the same
pictures as the full-precision pipeline.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging
from PIL.Image import Image, Resampling

import fewbit
from demos.sampling import SHAPES
from fewbit import demo
from fewbit.demo.check_shapes import recognised
from fewbit.demo.shapes import as_float
from fewbit.formats.names import megabytes
from fewbit.judge.pixels import psnr
from fewbit.judge.reading import as_bytes
from fewbit.pages.images import common_facts, grid, save_png
from fewbit.pipelines.generate import generate

RECIPE = "rtn"
VARIANTS = ("w8a8", "w4a4")
ZOOM = 2


@dataclass(frozen=True)
class Row:
    name: str
    pictures: list[Image]
    bytes: int
    seconds: float  # of drawing


def show(output: Path, count: int) -> None:
    original = demo.load("shapes")
    print(f"drawing {count} pictures in full precision", flush=True)
    rows = [_row("full precision", original, demo.path("shapes"), count)]
    for bits in VARIANTS:
        folder = output / f"shapes-{RECIPE}-{bits}"
        print(f"\n{folder}", flush=True)
        print(_quantized(bits, folder))
        rows.append(_row(f"{RECIPE} {bits}", _stock(folder), folder, count))
    names = {number: name for name, number in original.labels.items()}
    save_grid(rows, [names[i % len(names)] for i in range(count)], output / "shapes.png")
    print(f"\n{_table(rows)}\n\nlook at {output / 'shapes.png'}")


def _quantized(bits: str, folder: Path) -> fewbit.Report:
    pipe = demo.load("shapes")
    report = fewbit.quantize(pipe, RECIPE, bits=bits, progress=False)
    fewbit.save(pipe, folder, report=report, overwrite=True)
    return report


def _stock(folder: Path) -> Any:
    from diffusers import DiTPipeline

    return DiTPipeline.from_pretrained(folder)


def _row(name: str, pipe: Any, folder: Path, count: int) -> Row:
    started = time.perf_counter()
    steps, guidance = SHAPES["num_inference_steps"], SHAPES["guidance_scale"]
    pictures = generate(pipe, seeds=range(count), steps=steps, guidance=guidance, progress=True)
    weights = sum(file.stat().st_size for file in (folder / "transformer").glob("*.safetensors"))
    return Row(name, pictures, weights, time.perf_counter() - started)


def save_grid(rows: list[Row], columns: list[str], path: Path) -> None:
    full = rows[0].pictures
    labels = [f"{rows[0].name}\n{megabytes(rows[0].bytes)}"] + [
        f"{row.name}\n{megabytes(row.bytes)}\n{likeness(full, row.pictures):.1f} dB"
        for row in rows[1:]
    ]
    cells = [[_enlarged(picture) for picture in row.pictures] for row in rows]
    facts = common_facts([picture for row in rows for picture in row.pictures])
    save_png(grid(cells, labels, columns), path, facts)


def _table(rows: list[Row]) -> str:
    full = rows[0].pictures
    lines = [f"  {'pictures':<15} {'on disk':>9} {'PSNR':>10} {'recognised':>11} {'a picture':>10}"]
    for row in rows:
        like = f"{likeness(full, row.pictures):.2f} dB" if row is not rows[0] else "-"
        lines.append(
            f"  {row.name:<15} {megabytes(row.bytes):>9} {like:>10} "
            f"{_recognised(row.pictures):>11} {row.seconds / len(row.pictures):>8.2f} s"
        )
    return "\n".join(lines)


def likeness(reference: list[Image], pictures: list[Image]) -> float:
    """PSNR in dB over all pictures together."""
    exact, actual = (
        torch.stack([as_bytes(one) for one in drawn]) for drawn in (reference, pictures)
    )
    return psnr(exact, actual)


def _enlarged(picture: Image) -> Image:
    """Every pixel a square, so that nothing is smoothed over."""
    return picture.resize((picture.width * ZOOM, picture.height * ZOOM), Resampling.NEAREST)


def _recognised(pictures: list[Image]) -> str:
    """How many of them the shipped classifier takes for what they should be."""
    images = torch.stack([as_bytes(picture) for picture in pictures])  # (N, 3, H, W)
    labels = torch.tensor([int(picture.info["class_labels"]) for picture in pictures])
    right = int(recognised(as_float(images), labels).sum())
    return f"{right} of {len(pictures)}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Quantize the shapes demo and compare pictures.")
    parser.add_argument("--output", type=Path, required=True, help="folder for models and grid")
    parser.add_argument("--count", type=int, default=12, help="number of pictures")
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    torch.set_num_threads(1)  # a picture is so small that a second thread would mostly be awaited
    show(arguments.output, arguments.count)


if __name__ == "__main__":
    main()
