"""Are a demo's pictures good? `python -m demos.check shapes --png grid.png`.

Guided samples of the shapes demo must be recognised by the classifier 95 times in 100. Of all that
the captions of the scenes demo say (two sizes, colours and shapes, and how the things stand to each
other), 85 % must be read back. A picture of another caption shows about 36 %.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from torch import Tensor

from demos.sampling import SCENES, SHAPES, sample, save_grid
from fewbit.demo import load, shapes
from fewbit.demo.check_scenes import captions, faithfulness
from fewbit.demo.check_shapes import recognised
from fewbit.demo.scenes import FIELDS

REQUIRED = {"shapes": 0.95, "scenes": 0.85}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure a demo's pictures.")
    parser.add_argument("demo", choices=REQUIRED)
    parser.add_argument("--count", type=int, default=96, help="number of pictures")
    parser.add_argument("--png", type=Path, help="where to write a grid of the pictures")
    asked = parser.parse_args()
    started = time.monotonic()
    images, right = (_shapes if asked.demo == "shapes" else _scenes)(asked.count)
    if asked.png:
        names = shapes.NAMES if asked.demo == "shapes" else ()
        save_grid(images, 12, asked.png, names)
    share, required = float(right.float().mean()), REQUIRED[asked.demo]
    print(f"right {share:.2%} of {asked.count} pictures, required {required:.0%}")
    print(f"{1000 * (time.monotonic() - started) / asked.count:.0f} ms a picture")
    if share < required:
        sys.exit(1)


def _shapes(count: int) -> tuple[Tensor, Tensor]:
    label = shapes.labels(range(count))
    images = sample(load("shapes"), label.tolist(), range(count), SHAPES)
    right = recognised(images, label)
    for number, name in enumerate(shapes.NAMES):
        print(f"{name:13} {right[label == number].float().mean():.1%}")
    return images, right


def _scenes(count: int) -> tuple[Tensor, Tensor]:
    wanted = captions(count)
    images = sample(load("scenes"), wanted, range(count), SCENES)
    right = faithfulness(images, wanted)
    for field, share in zip(FIELDS, right.float().mean(0), strict=True):
        print(f"{field:13} {share:.1%}")
    print(f"all of them   {right.all(1).float().mean():.1%}")
    return images, right


if __name__ == "__main__":
    main()
