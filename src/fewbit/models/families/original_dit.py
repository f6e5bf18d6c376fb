"""DiT as first published, with the parameter names of its checkpoints.

Not interchangeable with the diffusers class: that one spaces timestep frequencies by i/127 instead
of i/128 and runs the norm before the MLP at eps 1e-5 instead of 1e-6.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewbit.models.spec import ModelSpec, Role

CLASSES = ("OriginalDiT",)

_FREQUENCIES = 128
_GUIDED_CHANNELS = 3  # the published sampler guides these and leaves the rest of a latent alone


def spec(model: OriginalDiT) -> ModelSpec:
    return ModelSpec(
        blocks="blocks",
        roles={
            "adaLN_modulation.1": Role.ADALN,
            "attn.qkv": Role.QKV,
            "attn.proj": Role.ATTN_OUT,
            "mlp.fc1": Role.FC1,
            "mlp.fc2": Role.FC2,
        },
        keep=("t_embedder.*", "final_layer.*"),
        heads=model.config.heads,
    )


@dataclass(frozen=True)
class DiTConfig:
    input_size: int
    patch_size: int
    in_channels: int
    width: int
    mlp_width: int
    depth: int
    heads: int
    classes: int  # rows of the label table, the null class included (it is the last row)
    learn_sigma: bool

    @property
    def out_channels(self) -> int:
        return self.in_channels * (2 if self.learn_sigma else 1)


class OriginalDiT(nn.Module):
    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        side = config.input_size // config.patch_size
        self.x_embedder = PatchEmbedder(config)
        self.t_embedder = TimestepEmbedder(config.width)
        self.y_embedder = LabelEmbedder(config.classes, config.width)
        self.pos_embed = nn.Parameter(position_table(side, config.width), requires_grad=False)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.final_layer = FinalLayer(config)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """x: [N, C, H, W], t: [N] timesteps, y: [N] labels -> [N, C or 2C, H, W]."""
        tokens = self.x_embedder(x) + self.pos_embed  # [N, T, width]
        condition = self.t_embedder(t, x.dtype) + self.y_embedder(y)  # [N, width]
        for block in self.blocks:
            tokens = block(tokens, condition)
        return self._image(self.final_layer(tokens, condition))

    def forward_with_cfg(self, x: Tensor, t: Tensor, y: Tensor, cfg_scale: float) -> Tensor:
        """The batch is [conditional, null]; the second half of x is ignored."""
        half = x[: len(x) // 2]
        out = self(torch.cat([half, half]), t, y)
        guided, rest = out[:, :_GUIDED_CHANNELS], out[:, _GUIDED_CHANNELS:]
        conditional, null = guided.chunk(2)
        guided = null + cfg_scale * (conditional - null)
        return torch.cat([torch.cat([guided, guided]), rest], dim=1)

    def _image(self, patches: Tensor) -> Tensor:
        """[N, T, p*p*C] -> [N, C, H, W]."""
        p, side = self.config.patch_size, math.isqrt(patches.shape[1])
        grid = patches.unflatten(2, (p, p, -1)).unflatten(1, (side, side))  # [N, h, w, p, p, C]
        return grid.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


class PatchEmbedder(nn.Module):
    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        p = config.patch_size
        self.proj = nn.Conv2d(config.in_channels, config.width, kernel_size=p, stride=p)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class TimestepEmbedder(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(2 * _FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width)
        )

    def forward(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        angles = t.float()[:, None] * timestep_frequencies().to(t.device)
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=1).to(dtype))


class LabelEmbedder(nn.Module):
    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(classes, width)

    def forward(self, y: Tensor) -> Tensor:
        return self.embedding_table(y)


class Block(nn.Module):
    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.norm1 = _norm(config.width)
        self.attn = SelfAttention(config.width, config.heads)
        self.norm2 = _norm(config.width)
        self.mlp = Mlp(config.width, config.mlp_width)
        self.adaLN_modulation = _modulation(config.width, 6)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        parts = self.adaLN_modulation(condition)[:, None].chunk(6, dim=2)
        shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = parts  # [N, 1, width]
        x = x + gate_attn * self.attn(_modulate(self.norm1(x), shift_attn, scale_attn))
        return x + gate_mlp * self.mlp(_modulate(self.norm2(x), shift_mlp, scale_mlp))


class SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(2, (3, self.heads, -1))  # [N, T, 3, heads, head width]
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class FinalLayer(nn.Module):
    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.norm_final = _norm(config.width)
        self.linear = nn.Linear(config.width, config.patch_size**2 * config.out_channels)
        self.adaLN_modulation = _modulation(config.width, 2)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(condition)[:, None].chunk(2, dim=2)
        return self.linear(_modulate(self.norm_final(x), shift, scale))


def timestep_frequencies() -> Tensor:
    return torch.exp(-math.log(10000) * torch.arange(_FREQUENCIES) / _FREQUENCIES)


def position_table(side: int, width: int) -> Tensor:
    """[1, side*side, width]: sines and cosines of the column, then of the row."""
    speeds = 10000 ** -(torch.arange(width // 4) / (width // 4))
    angles = torch.arange(side)[:, None] * speeds
    line = torch.cat([angles.sin(), angles.cos()], dim=1)  # [side, width/2]
    columns, rows = line.repeat(side, 1), line.repeat_interleave(side, dim=0)
    return torch.cat([columns, rows], dim=1)[None]


def _norm(width: int) -> nn.LayerNorm:
    return nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)


def _modulation(width: int, parts: int) -> nn.Sequential:
    return nn.Sequential(nn.SiLU(), nn.Linear(width, parts * width))


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale) + shift
