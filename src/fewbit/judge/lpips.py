"""LPIPS (Zhang et al. 2018), version 0.1 over VGG-16: how far two pictures are apart to the eye.

Features after the last activation of each of five stages are brought to unit length, and the
learned weights say how much a squared difference in each channel counts.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from fewbit.errors import BadArgument, BrokenFile
from fewbit.judge.weights import read_state

VGG_FILE, LINEAR_FILE = "vgg16-397923af.pth", "vgg.pth"
ADVICE = (
    f"give --lpips a folder with {VGG_FILE}, torchvision's VGG-16, and {LINEAR_FILE}, which the "
    "LPIPS authors publish as weights/v0.1/vgg.pth"
)
STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
LEAST = 16  # pixels that four halvings leave something of
CHUNK = 16


class Lpips:
    name = "LPIPS"
    unit = ""
    better: Literal["higher", "lower"] = "lower"
    resize = "none"

    def __init__(self, folder: Path) -> None:
        files = [folder / name for name in (VGG_FILE, LINEAR_FILE)]
        for file in files:
            if not file.is_file():
                raise BrokenFile(f"{file} is missing; {ADVICE}")
        self.stages = _vgg(files[0])
        self.weights = _linear(files[1])
        content = b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)
        self.weights_sha256 = hashlib.sha256(content).hexdigest()

    @torch.no_grad()
    def measure(self, reference: Tensor, drawn: Tensor) -> list[float]:
        """Of bytes [N, 3, height, width]."""
        if min(drawn.shape[-2:]) < LEAST:
            size = f"{drawn.shape[-1]}x{drawn.shape[-2]}"
            raise BadArgument(f"LPIPS needs pictures of {LEAST}x{LEAST} pixels or more, got {size}")
        distances: list[float] = []
        for one, other in zip(reference.split(CHUNK), drawn.split(CHUNK), strict=True):
            distances += self._distance(one, other).tolist()
        return distances

    def _distance(self, one: Tensor, other: Tensor) -> Tensor:
        x, y = _scaled(one), _scaled(other)
        total = torch.zeros(len(one))
        for stage, weight in zip(self.stages, self.weights, strict=True):
            x, y = stage(x), stage(y)
            apart = (_unit(x) - _unit(y)).square()  # (N, C, H, W)
            total += (apart * weight[:, None, None]).sum(1).mean((1, 2))
        return total


def _scaled(pictures: Tensor) -> Tensor:
    shift, scale = (torch.tensor(three)[:, None, None] for three in (SHIFT, SCALE))
    return (pictures.float() / 127.5 - 1 - shift) / scale


def _unit(features: Tensor) -> Tensor:
    return features / (features.square().sum(1, keepdim=True).sqrt() + 1e-10)


def _vgg(file: Path) -> list[nn.Sequential]:
    """The convolutions of VGG-16 up to the last activation, stage by stage."""
    state = read_state(file, ADVICE)
    stages: list[nn.Sequential] = []
    channels, number = 3, 0
    for widths in STAGES:
        parts: list[nn.Module] = [nn.MaxPool2d(2)] if stages else []
        number += len(parts)
        for width in widths:
            convolution = nn.Conv2d(channels, width, 3, padding=1)
            for kind in ("weight", "bias"):
                _fill(file, getattr(convolution, kind), state, f"features.{number}.{kind}")
            parts += [convolution, nn.ReLU()]
            channels, number = width, number + 2
        stages.append(nn.Sequential(*parts).eval().requires_grad_(False))
    return stages


def _linear(file: Path) -> list[Tensor]:
    state = read_state(file, ADVICE)
    weights = [torch.empty(1, widths[-1], 1, 1) for widths in STAGES]
    for number, weight in enumerate(weights):
        _fill(file, weight, state, f"lin{number}.model.1.weight")
    return [weight.flatten() for weight in weights]


def _fill(file: Path, place: Tensor, state: dict[str, Tensor], name: str) -> None:
    found = state.get(name)
    if found is None or found.shape != place.shape:
        got = "nothing" if found is None else str(list(found.shape))
        raise BrokenFile(f"{file}: {name} must be {list(place.shape)}, got {got}; {ADVICE}")
    place.data.copy_(found)
