"""How to ask a diffusers pipeline for images: by class label or by prompt.

One of its networks is watched meanwhile.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from fewbit.errors import BadArgument, BadCalibration, BadModel
from fewbit.models.component import DENOISERS
from fewbit.pipelines.prompting import own_manner, own_prompts
from fewbit.pipelines.request import Calibration

EMBEDDED = "prompt_embeds"  # a text as the pipeline's own encoder would give it
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


class Enough(BaseException):
    """Ends a run of a pipeline of which nothing more is wanted. It is no error, and nobody's to
    catch on its way out."""


@dataclass(frozen=True)
class Manner:
    """keyword:           what the pipeline calls the thing to draw.
    subjects:          things to draw.
    guidance, steps:   as given, else the pipeline's own.
    halves:            2 where guidance doubles the batch of the transformer.
    conditional_first: the order of those halves.
    call:              what else the pipeline is told.
    watched:           the name of the network whose calls are wanted.
    """

    keyword: str
    subjects: Sequence[Any]
    guidance: float | None
    steps: int
    halves: int
    conditional_first: bool
    call: Mapping[str, Any]
    watched: str = "transformer"

    def network(self, pipe: Any) -> nn.Module:
        network: nn.Module = getattr(pipe, self.watched)
        return network

    def steps_of(self, pipe: Any) -> list[int]:
        """The steps of the scheduler, once it is set, at which the watched network runs: of two
        experts the second has those of little noise."""
        times = pipe.scheduler.timesteps
        boundary = getattr(getattr(pipe, "config", None), "boundary_ratio", None)
        if boundary is None:
            return list(range(len(times)))
        least = boundary * pipe.scheduler.config.num_train_timesteps
        second = self.watched == DENOISERS[1]
        steps = [step for step, time in enumerate(times) if (time < least) == second]
        if not steps:
            raise BadCalibration(
                f"{self.watched} of {type(pipe).__name__} never runs in {len(times)} steps; give "
                "more with calibration=fewbit.Calibration(steps=...)"
            )
        return steps

    def ask(self, pipe: Any, subjects: Sequence[Any], generators: Sequence[Any]) -> None:
        guidance = {} if self.guidance is None else {"guidance_scale": self.guidance}
        pipe(
            **({} if EMBEDDED in self.call else {self.keyword: list(subjects)}),
            **guidance,
            num_inference_steps=self.steps,
            generator=list(generators),
            **{**own_manner(pipe), **self.call},
        )


def manner_of(pipe: Any, asked: Calibration, watched: str = DENOISERS[0]) -> Manner:
    accepted = inspect.signature(type(pipe).__call__).parameters
    _refuse_unfit(pipe, asked, accepted)
    by_class = "class_labels" in accepted
    if not by_class and "prompt" not in accepted:
        raise BadModel(
            f"{type(pipe).__name__} takes neither class labels nor prompts; give calibration= "
            "forward keyword dicts of the transformer"
        )
    if by_class and asked.prompts is not None:
        raise BadArgument(f"{type(pipe).__name__} draws classes; leave prompts out")
    if EMBEDDED in asked.call and asked.prompts is not None:
        raise BadArgument(f"prompts and {EMBEDDED} exclude each other; give one of them")
    subjects = _classes(pipe) if by_class else asked.prompts or _prompts(pipe)
    steps = asked.steps or accepted["num_inference_steps"].default
    guidance = asked.guidance
    if guidance is None and "guidance_scale" in accepted:
        guidance = accepted["guidance_scale"].default
    distilled = "true_cfg_scale" in accepted  # guidance is an input of the model, as in Flux
    return Manner(
        keyword="class_labels" if by_class else "prompt",
        subjects=subjects,
        guidance=guidance,
        steps=steps,
        halves=2 if guidance is not None and guidance > 1 and not distilled else 1,
        conditional_first=by_class,
        call=asked.call,
        watched=watched,
    )


def _refuse_unfit(pipe: Any, asked: Calibration, accepted: Mapping[str, inspect.Parameter]) -> None:
    """What the pipeline does not take, or needs and is not given."""
    name = type(pipe).__name__
    guidance = {} if asked.guidance is None else {"guidance_scale": asked.guidance}
    given = {**guidance, **asked.call}
    for unknown in given.keys() - accepted.keys():
        raise BadArgument(f"{name} takes no {unknown}; it takes {', '.join(list(accepted)[1:])}")
    for needed, parameter in list(accepted.items())[1:]:
        known = parameter.default is not parameter.empty or parameter.kind is parameter.VAR_KEYWORD
        if not known and needed not in (*asked.call, "prompt", "class_labels"):
            raise BadArgument(
                f"{name} needs {needed}; give calibration=fewbit.Calibration(call="
                f'{{"{needed}": ...}})'
            )


def _classes(pipe: Any) -> Sequence[int]:
    """Those the pipeline has names for, else all the model has."""
    named = sorted(set(pipe.labels.values()))
    return named or range(pipe.transformer.config.num_embeds_ada_norm)


def _prompts(pipe: Any) -> Sequence[str]:
    """Those the pipeline was made for where it lists them, else some for any."""
    return own_prompts(pipe) or PROMPTS
