"""Does a picture show what was asked? The cosine of CLIP's two embeddings, in percent.

With CLIP's own weights that is the CLIP score (Hessel et al. 2021), with those of HPSv2 (Wu et
al. 2023) how much people like it. CLIP looks at the middle square of a picture, HPSv2 at all of it.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fewbit.errors import BadArgument, BrokenFile
from fewbit.judge.open_clip import load_open_clip
from fewbit.judge.weights import NO_WEIGHTS
from fewbit.storage.tensors import digest

NAMES = {"clip": "CLIP score", "hpsv2": "HPSv2"}
MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
CHUNK = 16
HPSV2_FILES = ("HPS_v2.1_compressed.pt", "HPS_v2_compressed.pt")
ADVICE = {
    "clip": "give --clip a folder of a transformers CLIPModel with its tokenizer, or a hub id that "
    "is in the local cache",
    "hpsv2": f"give --hpsv2 the published {HPSV2_FILES[0]} or {HPSV2_FILES[1]}, or a folder or "
    "cached hub id that holds one of them or a transformers CLIPModel with its tokenizer",
}


class ClipScore:
    """`kind` is an option's name and a key of NAMES."""

    def __init__(self, kind: str, place: str) -> None:
        self.name = NAMES[kind]
        self.model, self.tokenizer = _load(kind, place)
        self.side: int = self.model.config.vision_config.image_size
        self.fit = _whole if kind == "hpsv2" else _middle
        done = "padded" if kind == "hpsv2" else "cropped"
        self.resize = f"bicubic and {done} to {self.side}x{self.side}"
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
        pixels = torch.stack([_normalized(self.fit(picture, self.side)) for picture in drawn])
        words = self.tokenizer(
            list(asked),
            padding=True,
            truncation=True,
            max_length=self.model.config.text_config.max_position_embeddings,
            return_tensors="pt",
        )
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


def _middle(picture: Tensor, side: int) -> Image.Image:
    """The shorter side to `side`, and the middle of the longer one."""
    image = _resized(picture, side / min(picture.shape[1:]))
    left, top = ((length - side) // 2 for length in image.size)
    return image.crop((left, top, left + side, top + side))


def _whole(picture: Tensor, side: int) -> Image.Image:
    """The longer side to `side`, and black on both sides of the shorter one."""
    image = _resized(picture, side / max(picture.shape[1:]))
    square = Image.new("RGB", (side, side))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def _resized(picture: Tensor, factor: float) -> Image.Image:
    image = Image.fromarray(picture.permute(1, 2, 0).numpy())
    width, height = (max(1, round(factor * length)) for length in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def _normalized(image: Image.Image) -> Tensor:
    """With CLIP's mean and deviation."""
    values = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 255
    mean, deviation = (torch.tensor(three)[:, None, None] for three in (MEAN, DEVIATION))
    return (values - mean) / deviation


def _load(kind: str, place: str) -> tuple[Any, Any]:
    try:
        import transformers
    except ImportError as error:
        raise BrokenFile(f"--{kind} needs transformers; install fewbit[diffusers]") from error
    try:
        published = _published(place) if kind == "hpsv2" else None
        if published is not None:
            model, tokenizer = load_open_clip(published, ADVICE[kind])
        else:
            model = transformers.CLIPModel.from_pretrained(place, local_files_only=True)
            tokenizer = transformers.AutoTokenizer.from_pretrained(place, local_files_only=True)
    except (*NO_WEIGHTS, ImportError) as error:
        raise BrokenFile(f"no {NAMES[kind]} weights at {place}; {ADVICE[kind]}") from error
    return model.eval().requires_grad_(False), tokenizer


def _published(place: str) -> Path | None:
    """The file that HPSv2's authors publish: itself, in a folder, or in the hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    path = Path(place).expanduser()
    if path.is_file():
        return path
    inside = [path / name for name in HPSV2_FILES]
    if not path.exists() and place.count("/") == 1:
        cached = (try_to_load_from_cache(place, name) for name in HPSV2_FILES)
        inside = [Path(file) for file in cached if isinstance(file, str)]
    return next((file for file in inside if file.is_file()), None)
