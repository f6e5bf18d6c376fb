"""A process that knows only diffusers and says `import fewbit`: draws from a saved folder."""

import sys

import numpy as np
import torch
from diffusers import DiTPipeline

import fewbit  # noqa: F401


def draw(pipe: DiTPipeline) -> np.ndarray:
    pipe.set_progress_bar_config(disable=True)
    random = torch.Generator().manual_seed(0)
    drawn = pipe([3], generator=random, num_inference_steps=4, output_type="np")
    return drawn.images


if __name__ == "__main__":
    folder, picture = sys.argv[1:]
    torch.set_num_threads(1)
    np.save(picture, draw(DiTPipeline.from_pretrained(folder)))
