"""The scenes denoiser: a PixArt transformer of width 192, and the loss PixArt is trained by."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from demos.denoiser import BETAS, DROP, STEPS, draw_steps
from demos.language import WIDTH

if TYPE_CHECKING:
    from diffusers import PixArtTransformer2DModel
    from transformers import T5EncoderModel


def build() -> PixArtTransformer2DModel:
    from diffusers import PixArtTransformer2DModel

    return PixArtTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=48,
        cross_attention_dim=192,
        num_layers=6,
        sample_size=16,
        patch_size=2,
        in_channels=4,
        out_channels=8,  # the noise and, as in PixArt, where its variance lies
        caption_channels=WIDTH,
        use_additional_conditions=False,
    )


@torch.no_grad()
def initialise(model: PixArtTransformer2DModel, random: Generator) -> None:
    """As PixArt starts: captions are not heard at first, and the output is zero."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight, generator=random)
            nn.init.zeros_(module.bias)
    small = (
        model.adaln_single.emb.timestep_embedder.linear_1,
        model.adaln_single.emb.timestep_embedder.linear_2,
        model.adaln_single.linear,
    )
    for layer in small:
        nn.init.normal_(layer.weight, std=0.02, generator=random)
    for block in model.transformer_blocks:
        nn.init.zeros_(block.attn2.to_out[0].weight)
        nn.init.normal_(block.scale_shift_table, std=192**-0.5, generator=random)
    nn.init.zeros_(model.proj_out.weight)
    nn.init.normal_(model.scale_shift_table, std=192**-0.5, generator=random)
    patch = model.pos_embed.proj
    nn.init.xavier_uniform_(patch.weight.flatten(1), generator=random)
    nn.init.zeros_(patch.bias)


def loss(
    model: PixArtTransformer2DModel,
    encoder: T5EncoderModel,
    latent: Tensor,
    ids: Tensor,
    empty: Tensor,
    random: Generator,
) -> Tensor:
    """Predict the noise, weighted as v-prediction with a limit, and its variance's place.

    `ids` are the captions' words; some captions are dropped, that is, replaced by the `empty` one.
    """
    count = len(latent)
    step = draw_steps(count, random)
    dropped = torch.rand(count, 1, generator=random) < DROP
    noise = torch.randn(latent.shape, generator=random)
    signal = (1 - _betas()).cumprod(0)[step].float()
    share = signal[:, None, None, None]
    noisy = share.sqrt() * latent + (1 - share).sqrt() * noise
    guess, place = predict(model, encoder, noisy, step, ids.where(~dropped, empty))
    ratio = signal / (1 - signal)
    weight = (5 / ratio).clamp(max=1) * (1 + 1 / ratio).clamp(max=8)
    error = guess - noise
    return (weight * error.square().mean((1, 2, 3))).mean() + _divergence(error, place, step)


def predict(
    model: PixArtTransformer2DModel,
    encoder: T5EncoderModel,
    noisy: Tensor,
    step: Tensor,
    ids: Tensor,
) -> tuple[Tensor, Tensor]:
    """The noise, and where between its bounds the logarithm of the step's variance lies."""
    mask = (ids != 0).long()
    with torch.no_grad():
        text = encoder(ids, attention_mask=mask).last_hidden_state
    with sdpa_kernel(SDPBackend.MATH):  # for 64 tokens faster to train than the flash kernel
        output = model(
            noisy, encoder_hidden_states=text, encoder_attention_mask=mask, timestep=step
        ).sample
    guess, place = output.float().chunk(2, dim=1)
    return guess, place


def _divergence(error: Tensor, place: Tensor, step: Tensor) -> Tensor:
    """Kullback-Leibler, true step backwards to predicted one; it teaches the variance alone.

    Nichol and Dhariwal, Improved Denoising Diffusion Probabilistic Models, equations 4, 10, 11, 15.
    """
    beta = _betas()
    signal = (1 - beta).cumprod(0)
    before = signal / (1 - beta)
    true = beta * (1 - before) / (1 - signal)
    true[0] = true[1]  # zero otherwise: the last step has no noise
    drift = beta * (before / signal / (1 - signal)).sqrt()  # of the mean, per error of the noise
    low, high, drift = (
        x[step, None, None, None].to(error.dtype) for x in (true.log(), beta.log(), drift)
    )
    guess = low.lerp(high, (place + 1) / 2)
    apart = (drift * error.detach()).square()
    return (guess - low + (low - guess).exp() + apart * (-guess).exp() - 1).mean() / 2


def _betas() -> Tensor:
    return torch.linspace(*BETAS, STEPS, dtype=torch.float64)
