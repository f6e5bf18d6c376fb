"""QAttention, what stands where the fused attention stood: both matmuls with quantized operands."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from fewbit import registry
from fewbit.activations.activation import Activation
from fewbit.activations.dynamic import Dynamic
from fewbit.activations.multi_region import MultiRegion
from fewbit.activations.static import Static
from fewbit.errors import BadArgument, BadModel
from fewbit.kernels.choose import backend_for
from fewbit.kernels.precision import is_traced, without_function_modes
from fewbit.kernels.values import OperandRounding, scaled_by_row
from fewbit.layers.swap import Forward, swap, swap_back
from fewbit.models.fused_attention import AttentionCall, run_with
from fewbit.models.own_forward import is_wrapped
from fewbit.rounding.straight_through import straight_through

CHILD = "matmuls"  # the name under which an attention module holds its QAttention
OPERANDS = ("query", "key", "shares", "value")


class QAttention(nn.Module):
    """softmax(q·kᵀ)·v, its operands rounded, the shares that the softmax gives only if so asked;
    products and sums in float32."""

    def __init__(
        self, query: Activation, key: Activation, shares: Activation | None, value: Activation
    ) -> None:
        super().__init__()
        self.query, self.key, self.shares, self.value = query, key, shares, value

    def forward(
        self,
        call: AttentionCall,
    ) -> Tensor:
        """What scaled_dot_product_attention gives in evaluation."""
        if call.is_causal or call.enable_gqa:
            raise BadModel(
                "attention that is causal or shares heads cannot be quantized; "
                'allowed: attention="skip"'
            )
        with torch.autocast(call.query.device.type, enabled=False):
            found = self.quickly(call.query, call.key, call.value, call.attn_mask, call.scale)
            if found is not None:
                return found
            q, k, v = (
                _rounded(self.query, call.query),
                _rounded(self.key, call.key),
                _rounded(self.value, call.value),
            )
            if self.shares is None:
                mask = call.attn_mask
                mask = mask if mask is None or mask.dtype == torch.bool else mask.float()
                result = scaled_dot_product_attention(q, k, v, mask, scale=call.scale)
            else:
                with without_function_modes():
                    weights = attention_weights(q, k, call.attn_mask, call.scale)
                    result = _rounded(self.shares, weights) @ v
        return result.to(call.query.dtype)

    def quickly(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None
    ) -> Tensor | None:
        """The same where a backend rounds the operands on their way; None where none does."""
        if torch.is_grad_enabled() or is_traced() or k.shape[:2] != q.shape[:2]:
            return None
        with without_function_modes():
            rounding = self._rounding(len(q), q.shape[1])
            if rounding is None:
                return None
            factor = q.shape[-1] ** -0.5 if scale is None else scale
            return backend_for(q).rounded_attention(q, k, v, mask, factor, rounding)

    def _rounding(self, images: int, heads: int) -> OperandRounding | None:
        """Of so many images, some of which may share a time; None where operands differ in kind."""
        first, shares = self.query, self.shares
        if not isinstance(first, Static | Dynamic):
            return None
        operands = [one for one in (first, self.key, self.value) if type(one) is type(first)]
        regions = shares.of_weights() if isinstance(shares, MultiRegion) else None
        alike = len(operands) == 3 and all(one.spec == first.spec for one in operands)
        if not alike or (shares is not None and regions is None):
            return None
        regions = None if regions is None else _of_images(regions, images)
        fixed = [one.of_heads(heads) for one in operands if isinstance(one, Static)]
        if not fixed and not scaled_by_row(first.spec):
            return None
        times = images if any(len(one) > 1 for one in fixed) else 1
        steps = torch.stack([_of_images(one, times) for one in fixed]) if fixed else None
        return OperandRounding(first.spec.format, steps, regions)

    def check_heads(self, heads: object) -> None:
        """Refuse steps for other parts than the attention has heads, where that is known."""
        for name in OPERANDS:
            steps = getattr(getattr(self, name), "steps", None)
            parts = 1 if steps is None else steps.shape[-1]
            if parts != 1 and isinstance(heads, int) and parts != heads:
                raise BadArgument(f"{name} has steps for {parts} heads, the attention has {heads}")

    def config(self) -> dict[str, Any]:
        parts = {name: getattr(self, name) for name in OPERANDS}
        return {name: part.config() for name, part in parts.items() if part is not None}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> QAttention:
        built = {name: registry.build("activations", part) for name, part in config.items()}
        return cls(**{"shares": None, **built})


def _of_images(table: Tensor, images: int) -> Tensor:
    """table [times, ..] as [images, ..]"""
    return table.repeat_interleave(images // len(table), 0)


def _rounded(activation: Activation, x: Tensor) -> Tensor:
    with without_function_modes(), torch.no_grad():
        rounded = activation(x)
    return straight_through(x.float(), rounded)


def attention_weights(
    query: Tensor, key: Tensor, mask: Tensor | None, scale: float | None
) -> Tensor:
    """What multiplies the values: [rows, heads, queries, keys]."""
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    return masked_softmax(query @ key.transpose(-1, -2) * factor, mask)


def masked_softmax(scores: Tensor, mask: Tensor | None) -> Tensor:
    """A query that sees no key gets zeros, as in torch's fused attention, and not NaN, which
    would reach all other queries in the next block."""
    if mask is None:
        return scores.softmax(-1)
    boolean = mask.dtype == torch.bool
    masked = scores.masked_fill(~mask, -torch.inf) if boolean else scores + mask
    blind = masked.isneginf().all(-1, keepdim=True)
    return masked.masked_fill(blind, 0.0).softmax(-1).masked_fill(blind, 0.0)


def quantize_attention(module: nn.Module, matmuls: QAttention) -> None:
    """From now on the module's own forward uses these."""
    if is_wrapped(module):  # calls would pass the class by
        raise BadModel(
            f"an attention module ({type(module).__name__}) has a forward of its own, put there by "
            "hooks or by hand, which its quantized matmuls cannot reach; allowed: take it away "
            "before quantizing and put it back afterwards, or leave the matmuls out: "
            'attention="skip"'
        )
    module.add_module(CHILD, matmuls)
    swap(module, rounded)


def restore_attention(module: nn.Module) -> None:
    delattr(module, CHILD)
    swap_back(module)


def quantized_attentions(model: nn.Module, inside: str = "") -> dict[str, QAttention]:
    """By the names of the modules that hold them, of the model or of the block called `inside`."""
    prefix = f"{inside}." if inside else ""
    return {
        name.removesuffix(f".{CHILD}"): module
        for name, module in model.named_modules()
        if isinstance(module, QAttention) and name.startswith(prefix)
    }


def rounded(inherited: Forward, name: str) -> Forward:
    """The module's own forward, which asks its QAttention for the fused attention."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return run_with(self.matmuls, name, partial(inherited, self), *args, **kwargs)

    return forward
