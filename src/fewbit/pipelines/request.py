"""How a pipeline is asked to make its own calibration data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from fewbit.errors import BadArgument, BadCalibration

OURS = {  # what a pipeline is asked for by other names
    "num_inference_steps": "steps=",
    "guidance_scale": "guidance=",
    "generator": "seed=",
    "class_labels": "leave it out, for all classes are drawn",
}


@dataclass(frozen=True)
class Calibration:
    """How a pipeline draws its calibration data while its transformer is watched.

    Attributes:
        samples: How many rows of the transformer's forward are kept. A row is one image at one
            timestep in one half of the guidance. The recipe's own number if left out.
        prompts: The texts to draw, where the pipeline reads texts; else its own, or some for any.
        steps: The number of denoising steps; the pipeline's own if left out.
        guidance: The guidance scale; the pipeline's own if left out.
        call: More keyword arguments of the pipeline's call, such as `height`, `width`,
            `num_frames`, `image` or `prompt` (one text or several).
    """

    samples: int | None = None
    prompts: Sequence[str] | None = None
    steps: int | None = None
    guidance: float | None = None
    call: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "call", _checked_call(self.call))
        if "prompt" in self.call:
            if self.prompts is not None:
                raise BadArgument("prompts are given twice, by prompts and in call; give one")
            prompt = self.call.pop("prompt")  # type: ignore[attr-defined]
            one = isinstance(prompt, str)
            object.__setattr__(self, "prompts", (prompt,) if one else prompt)
        for name in ("samples", "steps"):
            _refuse_no_count(name, getattr(self, name))
        if self.prompts is not None:
            _refuse_no_texts(self.prompts)
            object.__setattr__(self, "prompts", tuple(self.prompts))
        if self.guidance is not None:
            _refuse_no_scale(self.guidance)


def _checked_call(call: object) -> dict[str, Any]:
    if not isinstance(call, Mapping) or not all(isinstance(name, str) for name in call):
        raise BadArgument(f"call must be a dict of keyword arguments, got {call!r:.80}")
    for name in OURS.keys() & call.keys():
        raise BadArgument(f"call cannot set {name}; allowed: {OURS[name]}")
    return dict(call)


def _refuse_no_count(name: str, value: object) -> None:
    if value is not None and (type(value) is not int or value < 1):
        raise BadArgument(f"{name} must be a positive integer, got {value!r}")


def _refuse_no_texts(prompts: object) -> None:
    some = isinstance(prompts, Sequence) and not isinstance(prompts, str) and len(prompts) > 0
    if not some or not all(isinstance(prompt, str) for prompt in prompts):  # type: ignore[attr-defined]
        raise BadCalibration(f"prompts must be one string or more in a list, got {prompts!r:.80}")


def _refuse_no_scale(guidance: object) -> None:
    number = isinstance(guidance, int | float) and not isinstance(guidance, bool)
    if not number or not isfinite(guidance) or guidance < 0:  # type: ignore[arg-type, operator]
        raise BadArgument(f"guidance must be a number from 0 on, got {guidance!r}")
