"""The pictures of a model and of its reference, in two folders side by side."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from fewbit.errors import BadArgument, BadModel
from fewbit.judge.finite import NotFinite
from fewbit.judge.folder import Series, fill
from fewbit.judge.reading import CHUNK, read_picture
from fewbit.judge.reference import by, picture_size

REFERENCE, MODEL = "reference", "model"


class Drawing:
    def __init__(
        self, reference: Series, model: Series, folder: Path, model_folder: str = MODEL
    ) -> None:
        self.reference, self.model = reference, model
        self.folder, self.model_folder = folder, model_folder
        self.files: dict[str, list[Path]] = {}
        self.redrawn: list[str] = []

    def fill(self, count: int, progress: bool) -> None:
        """The reference first; NotFinite is of the model."""
        try:
            self._fill(REFERENCE, self.reference, count, progress)
        except NotFinite as broken:
            raise BadModel(f"the reference is broken itself: {broken}") from None
        self._fill(self.model_folder, self.model, count, progress)

    def common_size(self, count: int) -> tuple[int, int]:
        """Of the first pictures: what does not fit together shows before the long work."""
        try:
            self.fill(min(count, self.model.together), progress=False)
        except NotFinite:
            return self._size(REFERENCE)  # the model has none; that is told in its turn
        ours, theirs = self._size(self.model_folder), self._size(REFERENCE)
        if ours != theirs:
            raise BadArgument(
                f"the model draws {by(ours)} pixels, the reference {by(theirs)}; "
                "give a reference of the same resolution"
            )
        return theirs

    def pairs(self, count: int) -> Iterator[tuple[range, Tensor, Tensor]]:
        """Numbers, the reference's and the model's pictures, a chunk at a time."""
        for start in range(0, count, CHUNK):
            part = range(start, min(start + CHUNK, count))
            yield part, self._read(REFERENCE, part), self._read(self.model_folder, part)

    def _fill(self, name: str, series: Series, count: int, progress: bool) -> None:
        filled = fill(self.folder / name, series, count, progress)
        self.files[name] = filled.files
        self.redrawn += filled.redrawn

    def _read(self, name: str, numbers: range) -> Tensor:
        return torch.stack([read_picture(self.files[name][number]) for number in numbers])

    def _size(self, name: str) -> tuple[int, int]:
        return picture_size(read_picture(self.files[name][0]))
