"""What a pipeline's transformer is called with first: enough to see how it is built."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Generator, nn

from fewbit.pipelines.asking import Manner


class _Seen(Exception):
    """Nothing more is wanted of this run of the pipeline."""


def first_call(pipe: Any, manner: Manner) -> dict[str, Any]:
    """The keyword arguments of the first forward, as the pipeline gives them for one image."""
    seen: dict[str, Any] = {}

    def look(transformer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        names = inspect.signature(transformer.forward).parameters
        seen.update({**dict(zip(names, args, strict=False)), **kwargs})
        raise _Seen

    hook = pipe.transformer.register_forward_pre_hook(look, with_kwargs=True)
    try:
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            manner.ask(pipe, manner.subjects[:1], [Generator("cpu").manual_seed(0)])
    except _Seen:
        pass
    finally:
        hook.remove()
        pipe.maybe_free_model_hooks()
    return seen
