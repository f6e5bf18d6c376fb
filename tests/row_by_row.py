"""Every sum in the order it has for a row alone, so that only true batch mates could be felt.

BLAS and convolutions add in another order when there are more rows, and rounding makes steps of
such last bits. Where they are called for one row after the other, an image alone and in company
has to be the same to the bit.
"""

from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
SUMS = {aten.mm: (0,), aten.addmm: (1,), aten.bmm: (0, 1), aten.convolution: (0,)}
"""Which of their arguments have the rows in front: images, or each with its tokens or heads."""


class RowByRow(TorchDispatchMode):
    """`modules` are those that are called with as many rows as whatever they call."""

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        self.modules, self.rows = modules, 1
        self.hooks: list[Any] = []

    def __enter__(self) -> Any:
        self.hooks = [m.register_forward_pre_hook(self._count, with_kwargs=True)
                      for m in self.modules]  # fmt: skip
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        for hook in self.hooks:
            hook.remove()
        super().__exit__(*exception)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs, places = kwargs or {}, SUMS.get(func.overloadpacket)
        if places is None:
            return func(*args, **kwargs)
        rows = len(args[0]) if func.overloadpacket is aten.convolution else self.rows
        alone = zip(*(args[place].chunk(rows) for place in places), strict=True)
        return torch.cat([func(*_put(args, places, row), **kwargs) for row in alone])

    def _count(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.rows = len(args[0] if args else kwargs["hidden_states"])


def _put(args: tuple[Any, ...], places: tuple[int, ...], parts: tuple[Any, ...]) -> list[Any]:
    given = dict(enumerate(args)) | dict(zip(places, parts, strict=True))
    return list(given.values())
