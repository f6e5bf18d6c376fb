"""A size that calibration can afford: at its own, a large pipeline would take hours or days."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from math import isqrt, sqrt
from typing import Any

from torch import nn

from fewbit.pipelines.asking import Manner

HOURS = 4.0  # a calibration may take, block by block passes included
RATE = 1e11  # multiplications and additions a second: a few cores, by guess, the same everywhere
LEAST, GRAIN = 256, 32  # pixels
FRAMES = 17


@dataclass(frozen=True)
class Size:
    height: int
    width: int
    frames: int | None  # of a video

    def call(self) -> dict[str, int]:
        frames = {} if self.frames is None else {"num_frames": self.frames}
        return {"height": self.height, "width": self.width, **frames}

    def __str__(self) -> str:
        frames = "" if self.frames is None else f", {self.frames} frames"
        return f"{self.width}x{self.height}{frames}"


def affordable(pipe: Any, manner: Manner, forwards: int) -> tuple[Manner, str | None]:
    """The manner with a smaller size, and what to say of it, where the pipeline's own size takes
    too long for so many forwards of its transformer; a size that was asked for stays."""
    own = _own_size(pipe)
    if own is None or own.call().keys() & manner.call.keys():
        return manner, None
    hours = _hours(pipe, own, forwards)
    if hours <= HOURS:
        return manner, None
    size = _smaller(own, pipe, forwards)
    note = (
        f"calibrated at {size}, about {_hours(pipe, size, forwards):.2g} hours on a few CPU cores, "
        f"for {own} would take {hours:.2g}; calibration=fewbit.Calibration(call=...) sets a size"
    )
    return replace(manner, call={**manner.call, **size.call()}), note


def _own_size(pipe: Any) -> Size | None:
    """What the pipeline draws unless told otherwise; None where it does not say."""
    accepted = inspect.signature(type(pipe).__call__).parameters
    if not {"height", "width"} <= accepted.keys():
        return None
    base = getattr(
        pipe, "default_sample_size", getattr(pipe.transformer.config, "sample_size", None)
    )
    side = base * _scale(pipe) if isinstance(base, int) else None
    height, width = (accepted[name].default or side for name in ("height", "width"))
    frames = accepted["num_frames"].default if "num_frames" in accepted else None
    if height is None or width is None:
        return None
    return Size(height, width, frames)


def _smaller(own: Size, pipe: Any, forwards: int) -> Size:
    """Fewer frames first, then fewer pixels of the same shape."""
    size = own if own.frames is None else replace(own, frames=min(own.frames, FRAMES))
    share = sqrt(min(HOURS / _hours(pipe, size, forwards), 1.0))
    share = max(share, min(LEAST / min(own.height, own.width), 1.0))
    height, width = (int(side * share) // GRAIN * GRAIN for side in (own.height, own.width))
    return replace(size, height=height, width=width)


def _hours(pipe: Any, size: Size, forwards: int) -> float:
    transformer: nn.Module = pipe.transformer
    weights = sum(parameter.numel() for parameter in transformer.parameters())
    return 2 * weights * _tokens(pipe, size) * forwards / RATE / 3600


def _tokens(pipe: Any, size: Size) -> int:
    side = _scale(pipe) * _patch(pipe)
    frames = 1
    if size.frames is not None:
        frames = (size.frames - 1) // getattr(pipe, "vae_scale_factor_temporal", 4) + 1
    return max(size.height // side, 1) * max(size.width // side, 1) * frames


def _scale(pipe: Any) -> int:
    """Pixels along a side of a latent."""
    spatial = getattr(pipe, "vae_scale_factor_spatial", 8)
    return int(getattr(pipe, "vae_scale_factor", spatial))


def _patch(pipe: Any) -> int:
    """Latents along a side of a token, whoever packs them."""
    patch = getattr(pipe.transformer.config, "patch_size", 1)
    side = int(patch[-1] if isinstance(patch, list | tuple) else patch or 1)
    latent = getattr(getattr(pipe.vae, "config", None), "latent_channels", None)
    channels = getattr(pipe.transformer.config, "in_channels", None)
    if side == 1 and isinstance(latent, int) and isinstance(channels, int):
        return max(isqrt(channels // latent), 1)
    return side
