"""How large a model a stranger's configuration may ask for, judged before it is built.

A skeleton has no weights, yet its layers cost time and its tables memory. The tensors of the
artefact say how many parameters there can be and how wide; what no tensor tells has a limit.
"""

from __future__ import annotations

import inspect
import math
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from fewbit.errors import BrokenFile

LARGEST_NUMBER = 1 << 20  # of classes, tokens, channels, periods
MOST_TOKENS = {  # in the table of positions that sides, one or several, ask for
    ("sample_size",): 1 << 17,  # an image of 5792 pixels
    ("input_size",): 1 << 17,
    ("pos_embed_max_size",): 1 << 17,
    ("sample_height", "sample_width", "sample_frames"): 1 << 21,
}
MOST_PARAMETERS = 10_000  # of a model whose weights were not looked at
_ALLOWED: dict[str, tuple[type, ...]] = {
    "int": (int, float, list, tuple),
    "float": (float, int),
    "str": (str,),
}
MARGIN = 4  # parameters made for one that stays, and columns for one stored byte of their codes


def refuse_large_numbers(where: str, config: Mapping[str, Any]) -> None:
    """A loop or a table of that size would take the machine's time or memory."""
    for key, value in config.items():
        for number in _numbers(value):
            if abs(number) > LARGEST_NUMBER:
                raise BrokenFile(f"{where} says {key} = {number:.3g}, allowed {LARGEST_NUMBER}")
    patch = config.get("patch_size")
    area = patch**2 if type(patch) is int and patch > 0 else 1
    for keys, most in MOST_TOKENS.items():
        sides = [number for key in keys for number in _numbers(config.get(key))]
        if min(sides, default=1) < 1:
            raise BrokenFile(f"{where} says {', '.join(keys)} = {_listed(sides)}, allowed: from 1")
        tokens = math.prod(sides * 2 if len(sides) == 1 else sides) / area
        if tokens > most:
            raise BrokenFile(
                f"{where} says {', '.join(keys)} = {_listed(sides)}: {tokens:.0f} tokens, "
                f"allowed {most}"
            )


def refuse_other_types(where: str, cls: type, config: Mapping[str, Any]) -> None:
    """A text in the place of a number, say, which a constructor may keep until the first forward.
    Only where the class names a plain type; a list of numbers passes for a number."""
    for key, parameter in inspect.signature(cls).parameters.items():
        hint = parameter.annotation
        allowed = _ALLOWED.get(hint if isinstance(hint, str) else getattr(hint, "__name__", ""))
        value = config.get(key, parameter.default)
        if allowed is not None and value != parameter.default and not isinstance(value, allowed):
            raise BrokenFile(
                f"{where} says {key} = {value!r:.80}, which is no {allowed[0].__name__}"
            )


@contextmanager
def bounded_parameters(where: str, count: int, widest: int) -> Iterator[None]:
    """Stop the building of a model of many more or much wider parameters than `count` and
    `widest`, which is the longest side of one."""
    left, thread = [MARGIN * count], threading.get_ident()

    def judge(module: nn.Module, name: str, parameter: Tensor | None) -> None:
        if parameter is None or threading.get_ident() != thread:
            return
        left[0] -= 1
        if left[0] < 0:
            raise BrokenFile(f"{where} describes more parameters than the {count} of the weights")
        if max(parameter.shape, default=0) > MARGIN * widest:
            raise BrokenFile(
                f"{where} describes a {name} of shape {list(parameter.shape)}, but no tensor of "
                f"the weights is longer than {widest}"
            )

    hook = register_module_parameter_registration_hook(judge)
    try:
        yield
    finally:
        hook.remove()


def _listed(numbers: Iterable[int | float]) -> str:
    return ", ".join(f"{number:g}" for number in numbers)


def _numbers(value: Any) -> Iterator[int | float]:
    """All in it, however deep; the reader has bounded the depth."""
    if isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _numbers(part)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value
