"""What is measured of single pictures: beside full precision's, or beside what was asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from fewbit.judge.pixels import psnr, sqnr, ssim


class Metric(Protocol):
    """`weights_sha256` is None where nothing was learned."""

    @property
    def name(self) -> str: ...

    @property
    def resize(self) -> str: ...

    @property
    def weights_sha256(self) -> str | None: ...


class PairMetric(Metric, Protocol):
    @property
    def unit(self) -> str: ...

    @property
    def better(self) -> Literal["higher", "lower"]: ...

    def measure(self, reference: Tensor, drawn: Tensor) -> list[float]:
        """Of bytes [N, 3, height, width], a number for each pair."""


class PictureMetric(Metric, Protocol):
    """Higher is better."""

    def measure(self, drawn: Tensor, asked: Sequence[str]) -> list[float]:
        """Of bytes [N, 3, height, width] and of what they should show, a number for each."""


@dataclass(frozen=True)
class PixelMetric:
    name: str
    unit: str
    of_pair: Callable[[Tensor, Tensor], float]
    better: Literal["higher", "lower"] = "higher"
    resize: str = "none"
    weights_sha256: str | None = None

    def measure(self, reference: Tensor, drawn: Tensor) -> list[float]:
        return [self.of_pair(one, other) for one, other in zip(reference, drawn, strict=True)]


PIXEL_METRICS = (
    PixelMetric("PSNR", "dB", psnr),
    PixelMetric("SQNR", "dB", sqnr),
    PixelMetric("SSIM", "", ssim),
)
