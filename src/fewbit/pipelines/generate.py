"""Pictures from a pipeline, each from its own seed and nothing else.

One picture at a time: in a batch the sums inside a layer are taken in another order (measured: the
last bits change, 1e-6 of full scale), and rounding to four bits may make more of that. Alone, a
picture is the same bits whatever else is asked for; together with others it is so only in the same
company. Schedulers that add noise without being given a generator draw it from the global one,
which is lent the (first) picture's seed and then put back.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING, Any

import torch

from fewbit.errors import BadArgument, BadModel
from fewbit.models import components_of, quantized_components
from fewbit.pipelines.prompting import own_manner, own_prompts
from fewbit.pipelines.quiet import without_bar
from fewbit.progress import Meter
from fewbit.version import __version__

if TYPE_CHECKING:
    from PIL.Image import Image

STEPS, GUIDANCE = "num_inference_steps", "guidance_scale"  # as diffusers calls them


def generate(
    pipe: Any,
    *,
    seeds: Sequence[int],
    labels: Sequence[int | str] = (),
    prompts: Sequence[str] = (),
    steps: int | None = None,
    guidance: float | None = None,
    together: int = 1,
    call: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> list[Image]:
    """One picture for each seed; the subjects (labels or prompts) repeat if they are fewer.

    A video is one picture of its frames side by side. `call` is what else the pipeline is told.

    Without labels every class has its turn, without prompts those that the pipeline was made for.
    Other things left out are as the pipeline has them. So many `together` is faster.
    `picture.info` says how a picture was made.
    """
    subject, subjects = subjects_of(pipe, labels, prompts)
    settings = {**_settings(pipe, steps, guidance), **_checked(pipe, call or {})}
    facts = _facts(pipe, settings)
    wanted = [subjects[index % len(subjects)] for index in range(len(seeds))]
    starts = range(0, len(seeds), together)
    pictures: list[Image] = []
    with _meter(pipe, len(starts) * settings[STEPS], progress):
        for start in starts:
            part = slice(start, start + together)
            pictures += _draw(pipe, {subject: wanted[part], **settings}, seeds[part])
    for picture, seed, what in zip(pictures, seeds, wanted, strict=True):
        picture.info.update({"seed": str(seed), subject: str(what)} | facts)
    return pictures


def _draw(pipe: Any, arguments: dict[str, Any], seeds: Sequence[int]) -> list[Image]:
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seeds[0])
        own = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        generator = own if len(own) > 1 else own[0]
        manner = {"generator": generator, "output_type": "pil", **own_manner(pipe)}
        return _pictures(pipe(**arguments, **manner))


def _pictures(drawn: Any) -> list[Image]:
    """As a pipeline gives them, or the frames of each of its videos in one."""
    if hasattr(drawn, "images"):
        return list(drawn.images)
    return [_side_by_side(frames) for frames in drawn.frames]


def _side_by_side(frames: Sequence[Image]) -> Image:
    from PIL import Image as pillow

    width, height = frames[0].size
    whole = pillow.new("RGB", (width * len(frames), height))
    for number, frame in enumerate(frames):
        whole.paste(frame, (number * width, 0))
    return whole


def subjects_of(
    pipe: Any, labels: Sequence[int | str], prompts: Sequence[str]
) -> tuple[str, list[Any]]:
    """The name of the argument that says what to draw, and its values."""
    name = type(pipe).__name__
    known = _parameters(pipe)
    if "class_labels" in known:
        if prompts:
            raise BadArgument(f"{name} draws classes and reads no prompts; give labels")
        return "class_labels", _classes(pipe, labels)
    if "prompt" not in known:
        raise BadModel(f"{name} takes neither class labels nor prompts: cannot ask it for pictures")
    if labels:
        raise BadArgument(f"{name} draws from prompts and knows no classes; give prompts")
    if not (chosen := list(prompts) or own_prompts(pipe)):
        raise BadArgument(f"{name} needs at least one prompt")
    return "prompt", chosen


def _classes(pipe: Any, labels: Sequence[int | str]) -> list[int]:
    """Classes by their number or name; all there are where none is asked for."""
    names: dict[str, int] = getattr(pipe, "labels", {})
    allowed = sorted(set(names.values())) or range(pipe.transformer.config.num_embeds_ada_norm)
    for label in labels:
        if label not in names and not (str(label).isdecimal() and int(label) in allowed):
            some = f" or a name: {', '.join(list(names)[:12])}" if names else ""
            raise BadArgument(
                f"no class is called {label!r}; give a number, {allowed[0]} to {allowed[-1]}{some}"
            )
    return [names[str(x)] if x in names else int(x) for x in labels] or list(allowed)


def _settings(pipe: Any, steps: int | None, guidance: float | None) -> dict[str, Any]:
    settings: dict[str, Any] = {STEPS: steps, GUIDANCE: guidance}
    known = _parameters(pipe)
    for name, value in settings.items():
        if name in known:
            settings[name] = known[name].default if value is None else value
        elif value is not None:
            raise BadArgument(f"{type(pipe).__name__} has no {name}; leave it out")
    if not (isinstance(settings[STEPS], int) and settings[STEPS] > 0):
        raise BadArgument(f"steps must be a positive number, got {settings[STEPS]!r}")
    if guidance is not None and not 0 <= guidance < math.inf:
        raise BadArgument(f"guidance must be a number from 0 on, got {guidance!r}")
    return {name: value for name, value in settings.items() if value is not None}


def _checked(pipe: Any, call: Mapping[str, Any]) -> Mapping[str, Any]:
    """More arguments of the pipeline's call, those that it takes."""
    known = _parameters(pipe)
    for name in call:
        if name not in known:
            raise BadArgument(
                f"{type(pipe).__name__} takes no {name}; it takes {', '.join(list(known)[1:])}"
            )
    return call


def _parameters(pipe: Any) -> dict[str, inspect.Parameter]:
    if isinstance(pipe, torch.nn.Module):
        raise BadModel(
            f"{type(pipe).__name__} is a transformer alone; pictures also need a VAE and a "
            "scheduler: give a pipeline folder (one with model_index.json)"
        )
    return dict(inspect.signature(type(pipe).__call__).parameters)


def _facts(pipe: Any, settings: dict[str, Any]) -> dict[str, str]:
    return {
        **{name: str(value) for name, value in settings.items()},
        "recipe": recipe_of(pipe),
        "pipeline": type(pipe).__name__,
        "fewbit": __version__,
    }


def recipe_of(pipe: Any) -> str:
    """Of all its networks, in words."""
    made: list[Any] = [one.network.fewbit for one in quantized_components(pipe)]
    said = (f"{one.recipe['method']}:{one.recipe['bits']}" for one in made)
    return ", ".join(dict.fromkeys(said)) or "full precision"


@contextmanager
def _meter(pipe: Any, total: int, show: bool) -> Iterator[None]:
    """One progress for all pictures instead of the pipeline's own bar for each."""
    steps = count(1)
    with without_bar(pipe), Meter(show=show) as meter:
        meter.begin("drawing, steps", total)
        networks = [one.network for one in components_of(pipe)]
        hooks = [one.register_forward_hook(lambda *_: meter.reach(next(steps))) for one in networks]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
