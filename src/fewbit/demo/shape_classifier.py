"""A small convolutional classifier of shapes; its features serve as a picture metric."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from fewbit.demo.shapes import NAMES


class Features(NamedTuple):
    grid: Tensor  # (N, 96, 8, 8)
    pooled: Tensor  # (N, 96)


class ShapeClassifier(nn.Module):
    def __init__(self, classes: int = len(NAMES)) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _stage(3, 32, stride=2),
            _stage(32, 48, stride=2),
            _stage(48, 64, stride=1),
            _stage(64, 96, stride=2),
            _stage(96, 96, stride=1),
        )
        self.head = nn.Linear(96, classes)

    def features(self, image: Tensor) -> Features:
        """What the classifier sees in pictures with values in [-1, 1]."""
        grid = self.body(image)
        return Features(grid, grid.mean((2, 3)))

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.features(image).pooled)


def _stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1), nn.GroupNorm(8, outputs), nn.SiLU()
    )


def loss(model: nn.Module, image: Tensor, label: Tensor, random: Generator) -> Tensor:
    return F.cross_entropy(model(roughen(image, random)).float(), label, label_smoothing=0.05)


def roughen(image: Tensor, random: Generator) -> Tensor:
    """What decoders and samplers do to a picture: blur, noise, a shift of brightness."""

    def strength() -> Tensor:
        return torch.rand(len(image), 1, 1, 1, generator=random)

    blurred = F.avg_pool2d(F.pad(image, (2, 2, 2, 2), mode="replicate"), 5, stride=1)
    image = image.lerp(blurred, strength())
    noise = torch.randn(image.shape, generator=random)
    image = image + 0.15 * strength() * noise
    return image * (0.8 + 0.4 * strength()) + 0.2 * (strength() - 0.5)
