"""From trained models to the folder that ships: a genuine PixArtAlphaPipeline, in fp16."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING

from demos import denoiser
from fewbit.files import write_text

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, PixArtAlphaPipeline, PixArtTransformer2DModel
    from transformers import PreTrainedTokenizerFast, T5EncoderModel


def pipeline(
    tokenizer: PreTrainedTokenizerFast,
    encoder: T5EncoderModel,
    vae: AutoencoderKL,
    transformer: PixArtTransformer2DModel,
) -> PixArtAlphaPipeline:
    from diffusers import DPMSolverMultistepScheduler, PixArtAlphaPipeline

    scheduler = DPMSolverMultistepScheduler(
        num_train_timesteps=denoiser.STEPS,
        beta_start=denoiser.BETAS[0],
        beta_end=denoiser.BETAS[1],
        beta_schedule="linear",
    )
    return PixArtAlphaPipeline(tokenizer, encoder, vae, transformer, scheduler)


def assemble(folder: Path, trained: PixArtAlphaPipeline) -> None:
    """The encoder stays in fp32: transformers, unlike diffusers, loads in the dtype that is stored.

    The pipeline that is given stays as it is.
    """
    vae, transformer = (copy.deepcopy(part).half() for part in (trained.vae, trained.transformer))
    pipeline(trained.tokenizer, trained.text_encoder, vae, transformer).save_pretrained(folder)
    for file in (folder / "model_index.json", folder / "tokenizer" / "tokenizer_config.json"):
        name = type(trained.tokenizer).__name__  # in transformers 5; the older name is in both
        write_text(file, file.read_text().replace(name, "PreTrainedTokenizerFast"))
