"""What stands in for the fused attention while a module's forward runs.

Whatever calls `torch.nn.functional.scaled_dot_product_attention` is reached, in the module itself
or in what it calls: processors, functional helpers, a model of one's own. No source is edited.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from fewbit.errors import BadModel
from fewbit.models.own_forward import own_forward


class AttentionCall(NamedTuple):
    """What scaled_dot_product_attention is called with, by its own names."""

    query: Tensor
    key: Tensor
    value: Tensor
    attn_mask: Tensor | None = None
    dropout_p: float = 0.0
    is_causal: bool = False
    scale: float | None = None
    enable_gqa: bool = False

    @property
    def factor(self) -> float:
        """What scores are multiplied with."""
        return float(self.query.shape[-1] ** -0.5) if self.scale is None else self.scale

    def plainly(self) -> Tensor:
        """What torch itself gives."""
        q, k, v, mask, dropout, causal, scale, shared = self
        return scaled_dot_product_attention(
            q, k, v, mask, dropout, causal, scale=scale, enable_gqa=shared
        )


Answer = Callable[[AttentionCall], Tensor]


class StandIn(TorchFunctionMode):
    """Asks `answer` and not the fused attention; everything else goes its way."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self.answer, self.calls = answer, 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is Tensor.unflatten:  # the compiler knows only how to call it on a tensor
            return args[0].unflatten(*args[1:], **(kwargs or {}))
        if func is not scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        self.calls += 1
        return self.answer(AttentionCall(*args, **(kwargs or {})))


def run_with(answer: Answer, name: str, forward: Callable[..., Any], *args: Any, **kw: Any) -> Any:
    """One forward of the module called `name`, which must ask for fused attention just once."""
    stand_in = StandIn(answer)
    with stand_in:
        result = forward(*args, **kw)
    if stand_in.calls != 1:
        raise BadModel(
            f"{name} called scaled_dot_product_attention {stand_in.calls} times in one forward, "
            'so its matmuls cannot be quantized; allowed: once, or leave it out: attention="skip"'
        )
    return result


@contextmanager
def standing_in(answers: Mapping[str, Answer], modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """For a while, each of the modules asks the answer of its name."""

    def bind(name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: run_with(answers[name], name, forward, *args, **kwargs)

    with ExitStack() as inside:
        for name, module in modules.items():
            inside.enter_context(own_forward(module, bind(name, module.forward)))
        yield
