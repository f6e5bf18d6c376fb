"""How much the final output feels an error in what a layer gives: squared gradients, streamed.

The full-precision network is a Gaussian around its own prediction y, so the loss of a target t
drawn from it is |y - t|²/2, and its gradient at y is the noise that was drawn: one backward pass
from standard normal noise. The mean square of what arrives at a layer is the diagonal of JᵀJ, the
Fisher information. (The divergence of the network from itself, as in the published code, has no
gradient.)

One forward and backward pass over the data serves all layers of all blocks, a few rows at a time.
Kept of each layer is one number for each output channel in each time group, the mean over its rows
and their tokens, padding left out. (A weight for each single token was measured too and lost
0.2 dB: it leaves too few tokens that count.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import compress
from typing import Any

import torch
from torch import Tensor, nn

from fewbit.calibration.modes import evaluating
from fewbit.calibration.padding import real_tokens, text_mask
from fewbit.calibration.set import CalibrationSet
from fewbit.calibration.tree import by_rows, map_tensors, tensors
from fewbit.errors import BadCalibration
from fewbit.layers.attention import masked_softmax
from fewbit.models.fused_attention import AttentionCall, standing_in
from fewbit.progress import Track

ROWS = 4  # in one backward pass: enough to keep the processor busy, few enough for memory


class _Sums:
    """Of one layer, over the rows of each time group."""

    def __init__(self, groups: Tensor) -> None:
        self.groups = groups  # of each row
        self.rows = torch.zeros(int(groups.max()) + 1)  # added to each group
        self.channels: Tensor | None = None

    def add(self, rows: range, squares: Tensor, real: Tensor | None = None) -> None:
        """squares [..., tokens, channels], real [..., tokens], False where a token is padding."""
        squares = by_rows(squares, len(rows))
        if real is None:
            means = squares.float().mean(1)
        else:
            kept = by_rows(real[..., None], len(rows)).float()
            means = (squares.float() * kept).sum(1) / kept.sum(1).clamp(min=1)
        if self.channels is None:
            self.channels = torch.zeros(len(self.rows), means.shape[-1])
        group = self.groups[rows.start : rows.stop]
        self.channels.index_add_(0, group, means.cpu())
        self.rows += group.bincount(minlength=len(self.rows))

    def means(self, name: str) -> Tensor | None:
        """None where no gradient ever came."""
        if self.channels is None:
            return None
        found = self.channels / self.rows.clamp(min=1)[:, None]
        if not bool(found.isfinite().all()):
            raise _useless(name, "its gradient is NaN or infinite")
        return found


def squared_gradients(
    model: nn.Module,
    linears: Mapping[str, nn.Module],
    attentions: Mapping[str, nn.Module],
    blocks: Sequence[nn.Module],
    data: CalibrationSet,
    groups: Tensor,
    seed: int,
    track: Track = iter,
) -> dict[str, Tensor]:
    """float32 [groups, channels], by the names of linears, and for attentions by NAME.scores (of
    each head) and NAME.products.

    blocks: those that are given the text, whose padding does not count, by name.
    groups: int64 [rows], the time group of each row. Zeros are of layers whose output has no
    effect, as some of the last block have where two streams meet; layers that no gradient reaches
    at all are left out.
    """
    device = next(p.device for p in model.parameters())
    random = torch.Generator("cpu").manual_seed(seed)
    names = [*linears, *(f"{one}.{what}" for one in attentions for what in ("scores", "products"))]
    sums = {name: _Sums(groups) for name in names}
    with evaluating(model), _frozen(model), torch.enable_grad():
        for part in track(data.parts(ROWS)):
            inputs = map_tensors(data.take(part), lambda tensor: tensor.to(device))
            hear = {name: partial(one.add, part) for name, one in sums.items()}
            with (
                _listening_to_linears(linears, blocks, text_mask(inputs), hear),
                _listening_to_attentions(attentions, hear),
            ):
                predictions = _predictions(model, inputs)
            noise = [torch.randn(one.shape, generator=random).to(one) for one in predictions]
            felt = [one.requires_grad for one in predictions]
            if any(felt):  # else none of the layers was run
                torch.autograd.backward(
                    list(compress(predictions, felt)), list(compress(noise, felt))
                )
    means = {name: one.means(name) for name, one in sums.items()}
    found = {name: one for name, one in means.items() if one is not None}
    if names and not found:
        raise _useless(names[0], "no gradient reached it or any other layer")
    if not any(bool(means.any()) for means in found.values()):
        raise _useless(
            next(iter(found)), "its gradient is zero for all data, as of every other layer"
        )
    return found


def _predictions(model: nn.Module, inputs: dict[str, Any]) -> list[Tensor]:
    """What the scheduler reads, without a learned variance behind it; of a model that answers in a
    list, or for several senses, all of it."""
    given = tensors(model(**inputs)).values()
    latent = inputs.get("hidden_states", inputs.get("x"))
    width = latent.shape[1] if isinstance(latent, Tensor) and latent.ndim == 4 else None
    return [one[:, :width] if one.ndim == 4 else one for one in given if one.is_floating_point()]


@contextmanager
def _listening_to_linears(
    linears: Mapping[str, nn.Module],
    blocks: Sequence[nn.Module],
    mask: Tensor | None,
    hear: Mapping[str, Callable[..., None]],
) -> Iterator[None]:
    """Gradients of the outputs, squared, reach those that hear."""
    given: dict[str, Any] = {}  # to the block that is running, by name

    def enter(_: nn.Module, __: Any, kwargs: dict[str, Any]) -> None:
        given.clear()
        given.update(kwargs)

    def watch(name: str, _: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        real = real_tokens(args[0], given, mask) if args else None
        if not output.requires_grad:
            output = output.requires_grad_().clone()  # the model may write into it
        if output.requires_grad:  # else the model itself computes this without gradients
            output.register_hook(lambda g: hear[name](g.square(), real))
        return output

    with ExitStack() as stack:
        for block in blocks:
            hook = block.register_forward_pre_hook(enter, with_kwargs=True)
            stack.callback(hook.remove)
        for name, linear in linears.items():
            stack.callback(linear.register_forward_hook(partial(watch, name)).remove)
        yield


@contextmanager
def _listening_to_attentions(
    attentions: Mapping[str, nn.Module], hear: Mapping[str, Callable[..., None]]
) -> Iterator[None]:
    """The same of their scores and of their products, which are made one after the other."""

    def explicit(
        name: str,
        call: AttentionCall,
    ) -> Tensor:
        scores = call.query @ call.key.transpose(-1, -2)
        if not scores.requires_grad:
            scores.requires_grad_()
        shares = masked_softmax(scores * call.factor, call.attn_mask)
        products = shares @ call.value
        keys = call.key.shape[-2] if call.attn_mask is None else _keys_seen(shares.detach())
        scores.register_hook(lambda g: hear[f"{name}.scores"](_per_head(g, keys)))
        products.register_hook(lambda g: hear[f"{name}.products"](_beside(g)))
        return products

    with standing_in({name: partial(explicit, name) for name in attentions}, attentions):
        yield


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """No gradient of a parameter is asked for, whatever its owner wants."""
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_()


def _keys_seen(shares: Tensor) -> Tensor:
    """How many keys are not padding: a query looks at them. [rows, heads, 1]"""
    return (shares > 0).any(2).sum(-1, keepdim=True).clamp(min=1)


def _per_head(gradient: Tensor, keys: int | Tensor) -> Tensor:
    """[rows, heads, queries, keys] to squares [rows, queries, heads], the mean over the keys."""
    return (gradient.square().sum(-1) / keys).transpose(1, 2)


def _beside(gradient: Tensor) -> Tensor:
    """[rows, heads, queries, width] to squares [rows, queries, heads·width]."""
    return gradient.square().transpose(1, 2).flatten(2)


def _useless(name: str, what: str) -> BadCalibration:
    return BadCalibration(
        f"squared gradients of {name}: {what}, so they say nothing of its errors; allowed: ho=False"
    )
