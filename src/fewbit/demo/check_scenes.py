"""Are the scenes demo's pictures faithful? What the captions say is read back from them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fewbit.demo.scene_reader import right_fields
from fewbit.demo.scenes import parse, scenes

PROMPT_SEED = 2_000_003  # none that the demo was trained on


def faithfulness(images: Tensor, captions: Sequence[str]) -> Tensor:
    """Which of FIELDS each picture shows as its caption says."""  # (N, 7) bool
    pairs = zip(images, captions, strict=True)
    return torch.stack([right_fields(image, parse(caption)) for image, caption in pairs])


def captions(count: int) -> list[str]:
    return [scene.caption for scene in scenes(PROMPT_SEED, range(count))]
