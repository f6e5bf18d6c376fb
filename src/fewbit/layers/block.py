"""Transformer blocks of adaptive norm in few passes, where diffusers' own forward makes many.

LayerNorm, modulation and rotation happen on the way to the codes, GELU and the gated residual on
the way out of the products. It is the same function as the block's own forward, but for fewer
roundings to the model's dtype. A block that is not exactly of the known kind keeps its own forward,
as does whatever is trained, compiled or listened to.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from fewbit.kernels.reference import Reference
from fewbit.kernels.values import AdaLNInput, Epilogue
from fewbit.layers.attention import CHILD as QUANTIZED
from fewbit.layers.bound import Bound
from fewbit.layers.gelu import GELU
from fewbit.layers.intact import Intact
from fewbit.layers.linear import QLinear
from fewbit.layers.swap import RUN_TIME, Forward, may_answer
from fewbit.models.fused_attention import AttentionCall

BLOCK = "BasicTransformerBlock"  # of DiT and PixArt

Half = Callable[[Tensor, Tensor], Tensor]  # of tokens and the modulation of the block


def fused(inherited: Forward, name: str) -> Forward:
    """For blocks that `is_known`."""

    def forward(
        self: Any,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        timestep: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        class_labels: Tensor | None = None,
        added_cond_kwargs: dict[str, Tensor] | None = None,
    ) -> Tensor:
        block = _fused_block(self) if may_answer() else None
        odd = attention_mask is not None or cross_attention_kwargs
        if block is None or odd or not block.takes(hidden_states):
            return inherited(
                self, hidden_states, attention_mask, encoder_hidden_states,
                encoder_attention_mask, timestep, cross_attention_kwargs, class_labels,
                added_cond_kwargs,
            )  # fmt: skip
        x = hidden_states.contiguous()
        vectors = block.modulation(self, x, timestep, class_labels)
        attend, feed_forward = block.halves()
        x = attend(x, vectors)
        if self.attn2 is not None:
            x = x + self.attn2(x, encoder_hidden_states, encoder_attention_mask)
        return feed_forward(x, vectors)

    return forward


class FusedBlock:
    """A block's parts, and whether they are still those."""

    def __init__(self, block: Any) -> None:
        self.block, self.attention, self.intact = block, block.attn1, Intact(block)
        self.processor, self.heads = block.attn1.processor, block.attn1.heads
        projections = block.attn1.to_q, block.attn1.to_k, block.attn1.to_v, block.attn1.to_out[0]
        self.rounded = getattr(block.attn1, QUANTIZED, None)
        self.layers = (*projections, block.ff.net[0].proj, block.ff.net[2])
        self._recorded: tuple[tuple[Bound, ...], Half, Half] | None = None
        self.eps = [norm.eps for norm in _norms(block)]
        self.modulation = _MODULATIONS[block.norm_type]

    def takes(self, x: Tensor) -> bool:
        fits = x.dim() == 3 and x.device.type == "cpu" and x.numel() > 0
        same = self.attention.processor is self.processor and self.block._chunk_size is None
        return fits and same and not self.block.training and self.intact.holds()

    def halves(self) -> tuple[Half, Half]:
        """Attention and feed-forward as the backend of the layers runs them best; made anew when a
        layer was bound anew."""
        bounds, recorded = tuple([layer.bound() for layer in self.layers]), self._recorded
        if recorded is None or any(map(operator.is_not, bounds, recorded[0])):
            record = bounds[0].backend.recorded
            attend = partial(self.attend, *bounds[:4])
            feed_forward = partial(self.feed_forward, *bounds[4:])
            recorded = self._recorded = bounds, record(attend), record(feed_forward)
        return recorded[1:]

    def attend(
        self, to_q: Bound, to_k: Bound, to_v: Bound, out: Bound, x: Tensor, modulation: Tensor
    ) -> Tensor:
        shift, scale, gate = modulation[:3].unbind()
        normal = AdaLNInput(x, shift, scale, self.eps[0])
        q, k, v = (self._by_head(one(normal)) for one in (to_q, to_k, to_v))
        mixed = self._mixed(to_q.backend, q, k, v)
        return _gated(out, mixed.transpose(1, 2).flatten(2), gate, x)

    def _mixed(self, backend: Reference, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.rounded is not None:
            return self.rounded(AttentionCall(q, k, v))
        return backend.attention(q, k, v, None, q.shape[-1] ** -0.5)

    def feed_forward(self, first: Bound, last: Bound, x: Tensor, modulation: Tensor) -> Tensor:
        shift, scale, gate = modulation[3:].unbind()
        normal = AdaLNInput(x, shift, scale, self.eps[1])
        return _gated(last, first(normal, GELU), gate, x)

    def _by_head(self, x: Tensor) -> Tensor:
        images, tokens, columns = x.shape
        return x.view(images, tokens, self.heads, columns // self.heads).transpose(1, 2)


def is_known(module: Any) -> bool:
    """Whether its forward is what `fused` computes, as long as it stays intact."""
    if type(module).__name__ != BLOCK or module.norm_type not in _MODULATIONS:
        return False
    whole = module.pos_embed is None and module._chunk_size is None and not hasattr(module, "fuser")
    norms = all(type(norm) is nn.LayerNorm and norm.weight is None for norm in _norms(module))
    return whole and norms and _is_plain(module.attn1) and _is_gelu_between_linears(module.ff.net)


def _fused_block(block: nn.Module) -> FusedBlock | None:
    """Made once; a copy of the block makes its own."""
    if RUN_TIME not in vars(block):
        vars(block)[RUN_TIME] = FusedBlock(block) if is_known(block) else None
    found: FusedBlock | None = vars(block)[RUN_TIME]
    return found


def _gated(bound: Bound, x: Tensor, gate: Tensor, residual: Tensor) -> Tensor:
    return bound(x, Epilogue(gate=gate, residual=residual.flatten(0, 1)))


def _of_label(block: Any, x: Tensor, timestep: Tensor, class_labels: Tensor) -> Tensor:
    norm = block.norm1
    embedded = norm.emb(timestep, class_labels, hidden_dtype=x.dtype)
    return _six(norm.linear(norm.silu(embedded)))


def _of_table(block: Any, x: Tensor, timestep: Tensor, _: Tensor | None) -> Tensor:
    return _six(block.scale_shift_table[None] + timestep.reshape(len(x), 6, -1))


def _six(modulation: Tensor) -> Tensor:
    """Shift, scale and gate of attention, then of the feed-forward, [6, images, columns]."""
    return modulation.view(len(modulation), 6, -1).transpose(0, 1).float().contiguous()


_MODULATIONS: dict[str, Callable[..., Tensor]] = {
    "ada_norm_zero": _of_label,
    "ada_norm_single": _of_table,
}


def _norms(block: Any) -> tuple[Any, Any]:
    """Before attention and before the feed-forward."""
    if block.norm_type == "ada_norm_zero":
        return block.norm1.norm, block.norm3
    return block.norm1, block.norm2


def _is_plain(attention: Any) -> bool:
    """Whether its forward is projections, the fused attention and a projection."""
    absent = ("spatial_norm", "group_norm", "norm_q", "norm_k")
    return (
        type(attention).__name__ == "Attention"
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
    return all(isinstance(layer, QLinear) for layer in layers)
