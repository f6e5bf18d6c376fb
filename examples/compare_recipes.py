"""Compare recipes on a demo by `fewbit compare`, and make one picture of what it drew.

python examples/compare_recipes.py --output DIR
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from fewbit.cli import main as fewbit
from fewbit.pages.images import grid

RECIPES = "best:balanced,best:tiny,hq-dit,rtn"
COLUMNS = 8


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Compare recipes on the shapes demo.")
    parser.add_argument("--output", type=Path, required=True, help="what `compare` keeps")
    parser.add_argument("--recipes", default=RECIPES)
    parser.add_argument("--count", type=int, default=8, help="pictures of each")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--picture", type=Path, help="OUTPUT/compare.png if left out")
    given = parser.parse_args(arguments)

    command = ["compare", "shapes", "--recipes", given.recipes, "--output", str(given.output)]
    numbers = ["--n", str(given.count), "--steps", str(given.steps)]
    scores = ["--fidelity-only", "--pictures-only"]  # a minute; without them `compare` tells more
    fewbit([*command, *numbers, *scores], standalone_mode=False)
    picture = given.picture or given.output / "compare.png"
    sheet(given.output).save(picture, optimize=True)
    print(f"look at {picture}")


def sheet(folder: Path) -> Image.Image:
    """A row for full precision, then one for each recipe, the largest model first."""
    rows = json.loads((folder / "comparison.json").read_text())["recipes"]
    names = [row["label"].replace(":", "-") for row in rows]
    labels = [
        f"{row['label'].replace(':', ' ')}\n{row['bytes'] / 1e6:.1f} MB\n{row['psnr']:.1f} dB"
        for row in rows
    ]
    pictures = [drawn(folder, name) for name in ("reference", *names)]
    return grid(pictures, ["full precision", *labels])


def drawn(folder: Path, name: str) -> list[Image.Image]:
    files = sorted((folder / "pictures" / name).glob("*.png"))[:COLUMNS]
    return [doubled(Image.open(file)) for file in files]


def doubled(picture: Image.Image) -> Image.Image:
    """Every pixel a square, so that nothing is smoothed over."""
    return picture.resize((2 * picture.width, 2 * picture.height), Image.Resampling.NEAREST)


if __name__ == "__main__":
    main()
