"""What a pipeline that reads prompts was made for, and what it must be told besides the prompt."""

from __future__ import annotations

import inspect
from importlib.util import find_spec
from typing import Any

_CLEANERS = ("bs4", "ftfy")  # what diffusers needs to clean captions


def own_prompts(pipe: Any) -> list[str]:
    """Prompts of the kind a model was trained on, where its tokenizer's config lists some."""
    return list(getattr(getattr(pipe, "tokenizer", None), "init_kwargs", {}).get("prompts", ()))


def own_manner(pipe: Any) -> dict[str, bool]:
    """Keeps a pipeline from what it could not do, and changes nothing of what it can.

    Sizes are not rounded to those of the published models, which have their own size among them;
    captions are not cleaned where the libraries for it are missing, and without a warning.
    """
    without = {"use_resolution_binning"}
    if not all(map(find_spec, _CLEANERS)):
        without.add("clean_caption")
    accepted = inspect.signature(type(pipe).__call__).parameters
    return {name: False for name in accepted if name in without}
