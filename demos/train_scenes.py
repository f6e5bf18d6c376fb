"""Train the scenes demo: `python -m demos.train_scenes --out DIR`.

Stopped at any moment, the same command goes on from where it was. DIR/scenes is the result, there
and up to date from the first look at the pictures on; `--steps` smaller than before ends it sooner.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor

from demos import assemble_scenes, autoencoder, language, text_denoiser
from demos.latents import latents
from demos.loop import Steps, Training
from demos.sampling import SCENES, sample, save_grid
from fewbit.demo import check_scenes, scenes
from fewbit.demo.assets import path
from fewbit.demo.shapes import as_float

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, PixArtAlphaPipeline
    from transformers import PreTrainedTokenizerFast, T5EncoderModel

AUTOENCODER_SEED, READER_SEED, DENOISER_SEED = 4, 5, 6
LATENTS = 16_000
LOOK_EVERY, LOOK_AT = 300, 48


def train_autoencoder(folder: Path, steps: int, batch: int = 16) -> AutoencoderKL:
    """The shapes demo's autoencoder, which has to learn that there may be two colours."""
    from diffusers import AutoencoderKL

    model = AutoencoderKL.from_pretrained(path("shapes") / "vae", dtype=torch.float32)

    def loss(step: int, random: Generator) -> Tensor:
        image = scenes.pictures(AUTOENCODER_SEED, range(step * batch, (step + 1) * batch))
        return autoencoder.loss(model, as_float(image), random)

    budget = Steps(steps)
    Training("autoencoder", model, loss, budget, 1e-3, folder, memory=0.99).run()
    autoencoder.standardise(model, as_float(scenes.pictures(AUTOENCODER_SEED, range(1024))))
    return model


def train_reader(
    folder: Path, tokenizer: PreTrainedTokenizerFast, steps: int, batch: int = 128
) -> T5EncoderModel:
    with torch.random.fork_rng():
        torch.manual_seed(READER_SEED)
        model = language.Reader(len(tokenizer))

    def loss(step: int, random: Generator) -> Tensor:
        read = scenes.scenes(READER_SEED, range(step * batch, (step + 1) * batch))
        ids = language.tokens(tokenizer, [scene.caption for scene in read])
        return language.loss(model, ids, read)

    Training("reader", model, loss, Steps(steps), 3e-3, folder, memory=0.99).run()
    return model.encoder.eval().requires_grad_(False)


def train_denoiser(
    folder: Path,
    pipeline: PixArtAlphaPipeline,
    latent: Tensor,
    steps: int,
    look: Callable[[int], None],
    batch: int = 64,
) -> None:
    text_denoiser.initialise(pipeline.transformer, Generator().manual_seed(DENOISER_SEED))
    read = scenes.scenes(DENOISER_SEED, range(len(latent)))
    ids = language.tokens(pipeline.tokenizer, [scene.caption for scene in read])
    empty = language.tokens(pipeline.tokenizer, [""])

    def loss(step: int, random: Generator) -> Tensor:
        chosen = torch.randint(len(latent), (batch,), generator=random)
        return text_denoiser.loss(
            pipeline.transformer, pipeline.text_encoder, latent[chosen], ids[chosen], empty, random
        )

    Training(
        "denoiser",
        pipeline.transformer,
        loss,
        Steps(steps),
        rate=1.2e-3,
        folder=folder,
        memory=0.998,
        save_every=100,
        look=look,
        look_every=LOOK_EVERY,
    ).run()


def train(folder: Path, steps: int) -> None:
    tokenizer = language.tokenizer()
    reader = train_reader(folder, tokenizer, steps=500)
    vae = train_autoencoder(folder, steps=600)
    pipeline = assemble_scenes.pipeline(tokenizer, reader, vae, text_denoiser.build())
    pipeline.set_progress_bar_config(disable=True)

    def look(step: int) -> None:
        captions = check_scenes.captions(LOOK_AT)
        images = sample(pipeline, captions, range(LOOK_AT), SCENES)
        right = check_scenes.faithfulness(images, captions)
        save_grid(images, 12, folder / f"pictures-{step:05}.png")
        shares = ", ".join(f"{x:.0%}" for x in right.float().mean(0))
        print(f"faithfulness {step} {right.float().mean():.1%} ({shares})", flush=True)
        assemble_scenes.assemble(folder / "scenes", pipeline)

    pictures = partial(scenes.pictures, DENOISER_SEED)
    latent = latents(folder / "latents.safetensors", vae, pictures, LATENTS)
    train_denoiser(folder, pipeline, latent, steps, look)
    look(steps)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the scenes demo.")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and result")
    parser.add_argument("--steps", type=int, default=4000, help="of the denoiser")
    arguments = parser.parse_args()
    train(arguments.out, arguments.steps)


if __name__ == "__main__":
    main()
