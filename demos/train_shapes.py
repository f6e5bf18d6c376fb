"""Train the shapes demo from nothing: `python -m demos.train_shapes --out DIR`.

Stopped at any moment, the same command goes on from where it was. DIR/shapes is the result.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor

from demos import autoencoder, denoiser
from demos.assemble import assemble
from demos.latents import latents
from demos.loop import Budget, Minutes, Training
from fewbit.demo import shape_classifier, shapes

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, DiTTransformer2DModel

AUTOENCODER_SEED, CLASSIFIER_SEED, DENOISER_SEED = 1, 2, 3
HARDER = {"cross": 3.0, "star": 3.0}  # outlines with many corners are drawn more often
LATENTS = 18_000


def train_autoencoder(folder: Path, budget: Budget, batch: int = 16) -> AutoencoderKL:
    with torch.random.fork_rng():
        torch.manual_seed(AUTOENCODER_SEED)
        model = autoencoder.build()

    def loss(step: int, random: Generator) -> Tensor:
        image = shapes.pictures(AUTOENCODER_SEED, range(step * batch, (step + 1) * batch))
        return autoencoder.loss(model, shapes.as_float(image), random)

    Training("autoencoder", model, loss, budget, rate=1.5e-3, folder=folder).run()
    autoencoder.standardise(model, shapes.as_float(shapes.pictures(AUTOENCODER_SEED, range(1020))))
    return model


def train_classifier(
    folder: Path, budget: Budget, batch: int = 60
) -> shape_classifier.ShapeClassifier:
    with torch.random.fork_rng():
        torch.manual_seed(CLASSIFIER_SEED)
        model = shape_classifier.ShapeClassifier()

    def loss(step: int, random: Generator) -> Tensor:
        index = range(step * batch, (step + 1) * batch)
        image = shapes.as_float(shapes.pictures(CLASSIFIER_SEED, index))
        return shape_classifier.loss(model, image, shapes.labels(index), random)

    Training("classifier", model, loss, budget, rate=3e-3, folder=folder).run()
    return model


def train_denoiser(
    folder: Path, budget: Budget, latent: Tensor, batch: int = 48
) -> DiTTransformer2DModel:
    model = denoiser.build()
    denoiser.tie(model)
    denoiser.initialise(model, len(shapes.NAMES), Generator().manual_seed(DENOISER_SEED))
    label = shapes.labels(range(len(latent)))
    often = torch.tensor([HARDER.get(name, 1.0) for name in shapes.NAMES])[label]

    def loss(step: int, random: Generator) -> Tensor:
        chosen = torch.multinomial(often, batch, replacement=True, generator=random)
        return denoiser.loss(model, latent[chosen], label[chosen], random)

    Training("denoiser", model, loss, budget, rate=1e-3, folder=folder).run()
    return model


def train(folder: Path, minutes: float) -> None:
    vae = train_autoencoder(folder, Minutes(0.14 * minutes))
    judge = train_classifier(folder, Minutes(0.03 * minutes))
    pictures = partial(shapes.pictures, DENOISER_SEED)
    latent = latents(folder / "latents.safetensors", vae, pictures, LATENTS)
    transformer = train_denoiser(folder, Minutes(0.83 * minutes), latent)
    assemble(folder / "shapes", transformer, vae, judge)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the shapes demo from nothing.")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and result")
    parser.add_argument("--minutes", type=float, default=60, help="time for all training together")
    arguments = parser.parse_args()
    train(arguments.out, arguments.minutes)


if __name__ == "__main__":
    main()
