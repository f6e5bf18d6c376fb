"""Does a picture show what was asked? The cosine of CLIP's two embeddings, in percent.

With CLIP's own weights that is the CLIP score (Hessel et al. 2021), with those of HPSv2 (Wu et
al. 2023) how much people like it.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fewbit.errors import BadArgument, BrokenFile
from fewbit.evaluate.weights import NO_WEIGHTS
from fewbit.tensors import digest

NAMES = {"clip": "CLIP score", "hpsv2": "HPSv2"}
MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
CHUNK = 16


class ClipScore:
    """`kind` is an option's name and a key of NAMES."""

    def __init__(self, kind: str, place: str) -> None:
        self.name = NAMES[kind]
        self.model, self.tokenizer = _load(kind, place)
        self.side: int = self.model.config.vision_config.image_size
        self.resize = f"bicubic and cropped to {self.side}x{self.side}"
        state = sorted(self.model.state_dict().items())
        lines = "".join(f"{name} {digest(weight)}\n" for name, weight in state)
        self.weights_sha256 = hashlib.sha256(lines.encode()).hexdigest()

    @torch.no_grad()
    def measure(self, drawn: Tensor, asked: Sequence[str]) -> list[float]:
        scores: list[float] = []
        for start in range(0, len(drawn), CHUNK):
            part = slice(start, start + CHUNK)
            scores += self._cosines(drawn[part], asked[part]).tolist()
        return [max(100 * score, 0.0) for score in scores]

    def _cosines(self, drawn: Tensor, asked: Sequence[str]) -> Tensor:
        pixels = torch.stack([_prepared(picture, self.side) for picture in drawn])
        words = self.tokenizer(list(asked), padding=True, truncation=True, return_tensors="pt")
        seen = self.model(
            pixel_values=pixels,
            input_ids=words["input_ids"],
            attention_mask=words["attention_mask"],
        )
        return torch.cosine_similarity(seen.image_embeds, seen.text_embeds)


def refuse_without_words(pipe: Any, kind: str) -> None:
    """A class that is only a number cannot be held against a text model."""
    draws_classes = "class_labels" in inspect.signature(type(pipe).__call__).parameters
    if draws_classes and not getattr(pipe, "labels", {}):
        raise BadArgument(
            f"--{kind} judges pictures by words, and the classes of this {type(pipe).__name__} "
            "have no names; leave it out"
        )


def _prepared(picture: Tensor, side: int) -> Tensor:
    """The shorter side to `side`, the middle of the longer one, CLIP's mean and deviation."""
    image = Image.fromarray(picture.permute(1, 2, 0).numpy())
    factor = side / min(image.size)
    width, height = (max(side, round(factor * length)) for length in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - side) // 2, (height - side) // 2
    image = image.crop((left, top, left + side, top + side))
    values = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 255
    mean, deviation = (torch.tensor(three)[:, None, None] for three in (MEAN, DEVIATION))
    return (values - mean) / deviation


def _load(kind: str, place: str) -> tuple[Any, Any]:
    try:
        from transformers import AutoTokenizer, CLIPModel
    except ImportError as error:
        raise BrokenFile(f"--{kind} needs transformers; install fewbit[diffusers]") from error
    try:
        model = CLIPModel.from_pretrained(place, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(place, local_files_only=True)
    except (*NO_WEIGHTS, ImportError) as error:
        raise BrokenFile(
            f"no {NAMES[kind]} weights at {place}; give --{kind} a folder of a transformers "
            "CLIPModel with its tokenizer, or a hub id that is in the local cache"
        ) from error
    return model.eval().requires_grad_(False), tokenizer
