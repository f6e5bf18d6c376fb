"""Pictures, and a feature net small enough to know by heart."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from fewbit.judge.features import InputStats


class Colours:
    """Sees the mean colour, and of the left half apart; its classes are the brightest channel."""

    name = "colours"
    names = ("distance", "distance, spatial")
    widths = (3, 6)
    classes = 3
    judges = False
    resize = "none"
    sha256 = "c0104a5"

    def see(self, pictures: Tensor) -> InputStats:
        values = pictures.float()
        halves = torch.stack([half.mean((2, 3)) for half in values.chunk(2, dim=3)], 1)
        pooled = values.mean((2, 3))
        return InputStats(pooled, halves.flatten(1), pooled.softmax(1))


@pytest.fixture
def colours() -> Colours:
    return Colours()


def random_pictures(count: int, height: int = 16, width: int = 16, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


@pytest.fixture
def pictures() -> Callable[..., Tensor]:
    return random_pictures


@pytest.fixture
def save() -> Callable[[Tensor, Path], None]:
    def save(picture: Tensor, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(file)

    return save


@pytest.fixture
def other_pipe(made_pipeline: Path, pipe: Any) -> Any:
    """The same again, to be changed."""
    return type(pipe).from_pretrained(made_pipeline)
