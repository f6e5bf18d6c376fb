"""The shapes denoiser: a diffusers DiT of width 192, and its noise-prediction loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

if TYPE_CHECKING:
    from diffusers import DiTTransformer2DModel

NO_CLASS = 1000  # the row that DiTPipeline takes for the unconditional half
DROP = 0.1
STEPS = 1000
BETAS = (1e-4, 0.02)


def build() -> DiTTransformer2DModel:
    from diffusers import DiTTransformer2DModel

    return DiTTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=48,
        num_layers=6,
        sample_size=16,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_embeds_ada_norm=NO_CLASS,
    ).eval()  # in train mode the label embedding would drop labels by the global generator


def tie(model: DiTTransformer2DModel) -> None:
    """Let all blocks share one embedding of time and class, as in the original DiT."""
    for block in model.transformer_blocks:
        block.norm1.emb = model.transformer_blocks[0].norm1.emb


@torch.no_grad()
def initialise(model: DiTTransformer2DModel, classes: int, random: Generator) -> None:
    """Blocks start as the identity and the output as zero (adaLN-Zero); unused classes are zero."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight, generator=random)
            nn.init.zeros_(module.bias)
    for block in model.transformer_blocks:
        nn.init.zeros_(block.norm1.linear.weight)
    nn.init.zeros_(model.proj_out_1.weight)
    nn.init.zeros_(model.proj_out_2.weight)
    patch = model.pos_embed.proj
    nn.init.xavier_uniform_(patch.weight.flatten(1), generator=random)
    nn.init.zeros_(patch.bias)
    embedding = model.transformer_blocks[0].norm1.emb
    for layer in (embedding.timestep_embedder.linear_1, embedding.timestep_embedder.linear_2):
        nn.init.normal_(layer.weight, std=0.02, generator=random)
    table = embedding.class_embedder.embedding_table.weight
    nn.init.zeros_(table)
    for row in (*range(classes), NO_CLASS):
        nn.init.normal_(table[row], std=0.02, generator=random)


def loss(model: DiTTransformer2DModel, latent: Tensor, label: Tensor, random: Generator) -> Tensor:
    """Predict the noise; steps where neither noise nor signal is faint count most."""
    count = len(latent)
    step = draw_steps(count, random)
    dropped = torch.rand(count, generator=random) < DROP
    noise = torch.randn(latent.shape, generator=random)
    signal = (1 - torch.linspace(*BETAS, STEPS)).cumprod(0)[step]
    share = signal[:, None, None, None]
    noisy = share.sqrt() * latent + (1 - share).sqrt() * noise
    label = label.where(~dropped, NO_CLASS)
    with sdpa_kernel(SDPBackend.MATH):  # for 64 tokens faster to train than the flash kernel
        guess = model(noisy, timestep=step, class_labels=label).sample.float()
    ratio = signal / (1 - signal)
    weight = (5 / ratio).clamp(max=1) * (1 + 1 / ratio).clamp(max=4)
    return (weight * (guess - noise).square().mean((1, 2, 3))).mean()


def draw_steps(count: int, random: Generator) -> Tensor:
    """Mostly the steps that decide on the picture, logit-normal around 350, and some of all."""
    middle = (STEPS * torch.sigmoid(0.9 * torch.randn(count, generator=random) - 0.6)).long()
    anywhere = torch.randint(STEPS, (count,), generator=random)
    return torch.where(torch.rand(count, generator=random) < 0.75, middle, anywhere)
