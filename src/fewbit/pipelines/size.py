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
FRAMES, FEWEST_FRAMES = 17, 9


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
    too long for so many forwards of the watched network; a size that was asked for stays."""
    network = manner.network(pipe)
    own = _own_size(pipe, network)
    if own is None or own.call().keys() & manner.call.keys():
        return manner, None
    hours = _hours(pipe, network, own, forwards)
    if hours <= HOURS:
        return manner, None
    size = _smaller(own, pipe, network, forwards)
    note = (
        f"calibrated at {size}, about {_hours(pipe, network, size, forwards):.2g} hours on a few "
        f"CPU cores, for {own} would take {hours:.2g}; calibration=fewbit.Calibration(call=...) "
        "sets a size"
    )
    return replace(manner, call={**manner.call, **size.call()}), note


def smallest(pipe: Any, manner: Manner) -> Manner:
    """The manner at a size that shows how a network is built, without the time of its own size."""
    own = _own_size(pipe, manner.network(pipe)) or _any_size(pipe)
    if own is None or own.call().keys() & manner.call.keys():
        return manner
    share = min(LEAST / min(own.height, own.width), 1.0)
    size = _scaled(own, share, FEWEST_FRAMES)
    return replace(manner, call={**manner.call, **size.call()})


def _own_size(pipe: Any, network: nn.Module) -> Size | None:
    """What the pipeline draws unless told otherwise; None where it does not say."""
    accepted = inspect.signature(type(pipe).__call__).parameters
    if not {"height", "width"} <= accepted.keys():
        return None
    config: Any = network.config
    base = getattr(pipe, "default_sample_size", getattr(config, "sample_size", None))
    side = base * _scale(pipe) if isinstance(base, int) else getattr(pipe, "target_size", None)
    height, width = (accepted[name].default or side for name in ("height", "width"))
    frames = accepted["num_frames"].default if "num_frames" in accepted else None
    if height is None or width is None:
        return None
    return Size(height, width, frames)


def _any_size(pipe: Any) -> Size | None:
    """Where the pipeline does not say its own, but takes one."""
    accepted = inspect.signature(type(pipe).__call__).parameters
    if not {"height", "width"} <= accepted.keys():
        return None
    return Size(LEAST, LEAST, FEWEST_FRAMES if "num_frames" in accepted else None)


def _smaller(own: Size, pipe: Any, network: nn.Module, forwards: int) -> Size:
    """Fewer frames first, then fewer pixels of the same shape."""
    size = _scaled(own, 1.0, FRAMES)
    share = sqrt(min(HOURS / _hours(pipe, network, size, forwards), 1.0))
    share = max(share, min(LEAST / min(own.height, own.width), 1.0))
    return _scaled(size, share, FRAMES)


def _scaled(size: Size, share: float, frames: int) -> Size:
    """The same shape and no more frames than that; sides are whole numbers of grains."""
    if share < 1.0:
        height, width = (int(side * share) // GRAIN * GRAIN for side in (size.height, size.width))
        size = replace(size, height=height, width=width)
    return replace(size, frames=None if size.frames is None else min(size.frames, frames))


def _hours(pipe: Any, network: nn.Module, size: Size, forwards: int) -> float:
    weights = sum(parameter.numel() for parameter in network.parameters())
    return 2 * weights * _tokens(pipe, network, size) * forwards / RATE / 3600


def _tokens(pipe: Any, network: nn.Module, size: Size) -> int:
    side = _scale(pipe) * _patch(pipe, network)
    frames = 1
    if size.frames is not None:
        frames = (size.frames - 1) // getattr(pipe, "vae_scale_factor_temporal", 4) + 1
    return max(size.height // side, 1) * max(size.width // side, 1) * frames


def _scale(pipe: Any) -> int:
    """Pixels along a side of a latent."""
    spatial = getattr(pipe, "vae_scale_factor_spatial", 8)
    return int(getattr(pipe, "vae_scale_factor", spatial))


def _patch(pipe: Any, network: nn.Module) -> int:
    """Latents along a side of a token, whoever packs them."""
    config: Any = network.config
    patch = getattr(config, "patch_size", 1)
    side = int(patch[-1] if isinstance(patch, list | tuple) else patch or 1)
    latent = getattr(getattr(pipe.vae, "config", None), "latent_channels", None)
    channels = getattr(config, "in_channels", None)
    if side == 1 and isinstance(latent, int) and isinstance(channels, int):
        return max(isqrt(channels // latent), 1)
    return side
