"""Transformer blocks of adaptive norm in few passes, where diffusers' own forward makes many.

LayerNorm, modulation and rotation happen on the way to the codes, GELU and the gated residual on
the way out of the products. It is the same function as the block's own forward, but for fewer
roundings to the model's dtype; a block that is not exactly of the known kind keeps its own forward,
as does whatever is trained or compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from fewbit.kernels.modes import unasked
from fewbit.kernels.values import After, Modulated
from fewbit.layers.attention import CHILD as QUANTIZED
from fewbit.layers.linear import QLinear
from fewbit.models.own_forward import own_forward

BLOCK = "BasicTransformerBlock"  # of DiT and PixArt
GELU = After(gelu=True)

Modulation = tuple[Tensor, ...]  # shift, scale and gate of attention, then of the feed-forward


@contextmanager
def quick_blocks(model: nn.Module) -> Iterator[None]:
    """For the time of the context."""
    blocks = [module for module in model.modules() if _is_known(module)]
    with ExitStack() as inside:
        for block in blocks:
            inside.enter_context(own_forward(block, _quick(block, block.forward)))
        yield


def _quick(block: Any, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def quick(
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        timestep: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        class_labels: Tensor | None = None,
        added_cond_kwargs: dict[str, Tensor] | None = None,
    ) -> Tensor:
        traced = torch.is_grad_enabled() or torch.compiler.is_compiling() or block.training
        odd = attention_mask is not None or cross_attention_kwargs or hidden_states.dim() != 3
        if traced or odd or hidden_states.device.type != "cpu" or not hidden_states.numel():
            return forward(
                hidden_states, attention_mask, encoder_hidden_states, encoder_attention_mask,
                timestep, cross_attention_kwargs, class_labels, added_cond_kwargs,
            )  # fmt: skip
        x = hidden_states.contiguous()
        with unasked():
            modulation = _MODULATIONS[block.norm_type](block, x, timestep, class_labels)
        shift, scale, gate, *for_feed_forward = modulation
        x = _attend(block, x, shift, scale, gate)
        if block.attn2 is not None:
            x = x + block.attn2(x, encoder_hidden_states, encoder_attention_mask)
        return _feed_forward(block, x, *for_feed_forward)

    return quick


def _attend(block: Any, x: Tensor, shift: Tensor, scale: Tensor, gate: Tensor) -> Tensor:
    attention = block.attn1
    with unasked():
        normal = Modulated(x, shift, scale, _norms(block)[0].eps)
        layers = attention.to_q, attention.to_k, attention.to_v
        q, k, v = (
            layer(normal).unflatten(-1, (attention.heads, -1)).transpose(1, 2) for layer in layers
        )
    mixed = scaled_dot_product_attention(q, k, v)
    with unasked():
        return _gated(attention.to_out[0], mixed.transpose(1, 2).flatten(2), gate, x)


def _feed_forward(block: Any, x: Tensor, shift: Tensor, scale: Tensor, gate: Tensor) -> Tensor:
    first, last = block.ff.net[0].proj, block.ff.net[2]
    with unasked():
        normal = Modulated(x, shift, scale, _norms(block)[1].eps)
        return _gated(last, first(normal, GELU), gate, x)


def _gated(layer: QLinear, x: Tensor, gate: Tensor, residual: Tensor) -> Tensor:
    return layer(x, After(gate=gate, residual=residual.flatten(0, 1)))


def _of_label(block: Any, x: Tensor, timestep: Tensor, class_labels: Tensor) -> Modulation:
    norm = block.norm1
    embedded = norm.emb(timestep, class_labels, hidden_dtype=x.dtype)
    return _six(norm.linear(norm.silu(embedded)))


def _of_table(block: Any, x: Tensor, timestep: Tensor, _: Tensor | None) -> Modulation:
    return _six(block.scale_shift_table[None] + timestep.reshape(len(x), 6, -1))


def _six(modulation: Tensor) -> Modulation:
    vectors = modulation.view(len(modulation), 6, -1).transpose(0, 1)
    return vectors.float().contiguous().unbind()


_MODULATIONS: dict[str, Callable[..., Modulation]] = {
    "ada_norm_zero": _of_label,
    "ada_norm_single": _of_table,
}


def _norms(block: Any) -> tuple[Any, Any]:
    """Before attention and before the feed-forward."""
    if block.norm_type == "ada_norm_zero":
        return block.norm1.norm, block.norm3
    return block.norm1, block.norm2


def _is_known(module: Any) -> bool:
    if type(module).__name__ != BLOCK or module.norm_type not in _MODULATIONS:
        return False
    if "forward" in vars(module):  # of whoever put it there, who is asked and not passed over
        return False
    whole = module.pos_embed is None and module._chunk_size is None and not hasattr(module, "fuser")
    norms = all(type(norm) is nn.LayerNorm and norm.weight is None for norm in _norms(module))
    parts = _is_plain(module.attn1) and _is_gelu_between_linears(module.ff.net)
    return whole and norms and parts and not any(map(_is_watched, _passed_over(module)))


def _passed_over(block: Any) -> Iterator[nn.Module]:
    """What is not called while its layers are."""
    yield from (block.norm1, *_norms(block), block.attn1, block.attn1.to_out[1])
    yield from (block.ff, block.ff.net[0], block.ff.net[1])


def _is_watched(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks) or "forward" in vars(module)


def _is_plain(attention: Any) -> bool:
    """Whether its forward is projections, the fused attention and a projection."""
    absent = ("spatial_norm", "group_norm", "norm_q", "norm_k")
    return (
        type(attention).__name__ == "Attention"
        and not hasattr(attention, QUANTIZED)
        and type(attention.processor).__name__ == "AttnProcessor2_0"
        and all(getattr(attention, name) is None for name in absent)
        and not (attention.residual_connection or attention.only_cross_attention)
        and attention.rescale_output_factor == 1
        and _are_quantized(attention.to_q, attention.to_k, attention.to_v, attention.to_out[0])
    )


def _is_gelu_between_linears(net: Any) -> bool:
    gelu = net[0]
    known = type(gelu).__name__ == "GELU" and gelu.approximate == "tanh"
    return known and _are_quantized(gelu.proj, net[2])


def _are_quantized(*layers: nn.Module) -> bool:
    return all(type(layer) is QLinear for layer in layers)
