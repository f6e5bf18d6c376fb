"""From trained models to the folder that ships: a genuine diffusers DiTPipeline, in fp16."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import save_file

from demos import denoiser
from fewbit.demo.shape_classifier import ShapeClassifier
from fewbit.demo.shapes import NAMES

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, DiTTransformer2DModel


def assemble(
    folder: Path,
    transformer: DiTTransformer2DModel,
    vae: AutoencoderKL,
    judge: ShapeClassifier,
) -> None:
    """The blocks' shared embedding is written as one identical copy per block."""
    from diffusers import DiTPipeline, DPMSolverMultistepScheduler

    untied = denoiser.build()
    untied.load_state_dict(transformer.state_dict())
    scheduler = DPMSolverMultistepScheduler(
        num_train_timesteps=denoiser.STEPS,
        beta_start=denoiser.BETAS[0],
        beta_end=denoiser.BETAS[1],
        beta_schedule="linear",
    )
    pipeline = DiTPipeline(untied.half(), vae.half(), scheduler)
    pipeline.register_to_config(id2label={str(i): name for i, name in enumerate(NAMES)})
    pipeline.save_pretrained(folder)
    weights = {name: tensor.half() for name, tensor in judge.state_dict().items()}
    save_file(weights, folder / "classifier.safetensors")
