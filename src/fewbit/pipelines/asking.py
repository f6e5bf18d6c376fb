"""How to ask a diffusers pipeline for images: by class label or by prompt."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fewbit.errors import BadArgument, BadModel
from fewbit.pipelines.prompting import own_manner, own_prompts
from fewbit.pipelines.request import Calibration

PROMPTS = (
    "a portrait of an old fisherman in soft morning light",
    "two children building a sandcastle on a crowded beach",
    "a red fox asleep in fresh snow",
    "a bowl of ramen with a soft-boiled egg, seen from above",
    "a narrow street in the rain at night, neon signs, reflections",
    "an oil painting of a ship in a storm",
    "a watercolor of a mountain village in autumn",
    "a pencil drawing of a cat on a windowsill",
    "a glass of water on a wooden table",
    "the skyline of a large city at sunset",
    "a robot reading a newspaper in a park, digital art",
    "a field of sunflowers under a blue sky",
    "the word OPEN on an old shop door",
    "a steam locomotive crossing a stone bridge",
    "a macro photograph of a bee on a purple flower",
    "an empty white room with one green chair",
)


@dataclass(frozen=True)
class Manner:
    """keyword:           what the pipeline calls the thing to draw.
    subjects:          things to draw.
    guidance, steps:   as given, else the pipeline's own.
    halves:            2 where guidance doubles the batch of the transformer.
    conditional_first: the order of those halves.
    """

    keyword: str
    subjects: Sequence[Any]
    guidance: float
    steps: int
    halves: int
    conditional_first: bool

    def ask(self, pipe: Any, subjects: Sequence[Any], generators: Sequence[Any]) -> None:
        pipe(
            **{self.keyword: list(subjects)},
            guidance_scale=self.guidance,
            num_inference_steps=self.steps,
            generator=list(generators),
            **own_manner(pipe),
        )


def manner_of(pipe: Any, asked: Calibration) -> Manner:
    accepted = inspect.signature(type(pipe).__call__).parameters
    by_class = "class_labels" in accepted
    if not by_class and "prompt" not in accepted:
        raise BadModel(
            f"{type(pipe).__name__} takes neither class labels nor prompts; give calibration= "
            "forward keyword dicts of the transformer"
        )
    if by_class and asked.prompts is not None:
        raise BadArgument(f"{type(pipe).__name__} draws classes; leave prompts out")
    subjects = _classes(pipe) if by_class else asked.prompts or _prompts(pipe)
    steps = asked.steps or accepted["num_inference_steps"].default
    guidance = asked.guidance
    if guidance is None:
        guidance = accepted["guidance_scale"].default
    distilled = "true_cfg_scale" in accepted  # guidance is an input of the model, as in Flux
    return Manner(
        keyword="class_labels" if by_class else "prompt",
        subjects=subjects,
        guidance=guidance,
        steps=steps,
        halves=2 if guidance > 1 and not distilled else 1,
        conditional_first=by_class,
    )


def _classes(pipe: Any) -> Sequence[int]:
    """Those the pipeline has names for, else all the model has."""
    named = sorted(set(pipe.labels.values()))
    return named or range(pipe.transformer.config.num_embeds_ada_norm)


def _prompts(pipe: Any) -> Sequence[str]:
    """Those the pipeline was made for where it lists them, else some for any."""
    return own_prompts(pipe) or PROMPTS
