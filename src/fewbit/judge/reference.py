"""The real pictures that drawn ones are held against: a folder, ADM's npz, or the shapes demo's."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fewbit.demo import shapes
from fewbit.errors import BadArgument, BrokenFile
from fewbit.judge.features import INCEPTION_ADVICE, FeatureNet
from fewbit.judge.moments import Gaussian
from fewbit.judge.reading import CHUNK, PICTURES, NpzPictures, picture_files, read_picture

STATISTICS = (("mu", "sigma"), ("mu_s", "sigma_s"))  # ADM's names: pooled, spatial
UNSEEN_SEED = 1_000_003  # none that the demo's models were trained on
SHAPES_COUNT = 2400


class RealSet(Protocol):
    """name:       what it is called in messages and beside scores.
    size:       width and height of its pictures; None where only statistics are known.
    statistics: of pooled and spatial features, where the file holds them.
    unreadable: files that were passed over, complete after `chunks` was read to its end.
    """

    name: str
    size: tuple[int, int] | None
    statistics: tuple[Gaussian, Gaussian] | None
    unreadable: list[str]

    def chunks(self) -> Iterator[Tensor]:
        """Bytes [N, 3, height, width], a few at a time."""

    def sha256(self) -> str | None:
        """Of the file where it is one; None where it is that of the pictures."""


@dataclass
class Shapes:
    """Pictures of the demo's data set that no model has seen."""

    count: int = SHAPES_COUNT
    name: str = f"shapes data, seed {UNSEEN_SEED}"
    size: tuple[int, int] | None = (shapes.SIZE, shapes.SIZE)
    statistics: tuple[Gaussian, Gaussian] | None = None
    unreadable: list[str] = field(default_factory=list)

    def chunks(self) -> Iterator[Tensor]:
        for start in range(0, self.count, CHUNK):
            yield shapes.pictures(UNSEEN_SEED, range(start, min(start + CHUNK, self.count)))

    def sha256(self) -> None:
        return None


class Folder:
    """What cannot be read is passed over and named."""

    def __init__(self, path: Path) -> None:
        self.statistics: tuple[Gaussian, Gaussian] | None = None
        self.name = str(path)
        self.files = picture_files(path)
        self.unreadable: list[str] = []
        self.size = next((picture_size(tensor) for _, tensor in self._readable()), None)
        if self.size is None:
            raise BrokenFile(f"{path} holds no readable picture")

    def chunks(self) -> Iterator[Tensor]:
        self.unreadable.clear()
        batch: list[Tensor] = []
        for file, picture in self._readable():
            if picture_size(picture) != self.size:
                raise BadArgument(
                    f"{file} has {by(picture_size(picture))} pixels, the pictures before it "
                    f"{by(self.size)}; one set has one resolution"
                )
            batch.append(picture)
            if len(batch) == CHUNK:
                yield torch.stack(batch)
                batch = []
        if batch:
            yield torch.stack(batch)

    def _readable(self) -> Iterator[tuple[Path, Tensor]]:
        for file in self.files:
            try:
                yield file, read_picture(file)
            except BrokenFile as error:
                self.unreadable.append(str(error))

    def sha256(self) -> None:
        return None


class Npz:
    """ADM's reference batches: pictures, statistics of Inception's features, or both."""

    def __init__(self, file: Path) -> None:
        self.file, self.name = file, str(file)
        self.unreadable: list[str] = []
        names, self.statistics = _read_statistics(file)
        self.pictures = NpzPictures(file) if PICTURES in names else None
        self.size = self.pictures.size if self.pictures else None
        if self.pictures is None and self.statistics is None:
            wanted = ", ".join([PICTURES, *(name for pair in STATISTICS for name in pair)])
            raise BrokenFile(f"{file} holds {', '.join(names) or 'nothing'}; allowed: {wanted}")

    def chunks(self) -> Iterator[Tensor]:
        return self.pictures.chunks() if self.pictures else iter(())

    def sha256(self) -> str:
        with self.file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()


def real_for(path: Path | None, net: FeatureNet | None) -> RealSet | None:
    """What was asked for, else the demo's data where the net is the demo's."""
    if path is None:
        return Shapes() if net is not None and net.judges else None
    if net is None:
        raise BadArgument(f"nothing can look at {path}: {INCEPTION_ADVICE}")
    return open_real(path)


def open_real(path: Path) -> RealSet:
    if path.is_dir():
        return Folder(path)
    if not path.is_file():
        raise BrokenFile(f"{path} does not exist; real pictures are a folder or ADM's .npz")
    return Npz(path)


def picture_size(pictures: Tensor) -> tuple[int, int]:
    """Width and height."""
    return pictures.shape[-1], pictures.shape[-2]


def refuse_other_size(real: RealSet, drawn: tuple[int, int]) -> None:
    if real.size not in (None, drawn):
        raise BadArgument(
            f"the pictures of {real.name} have {by(real.size)} pixels, those drawn {by(drawn)}; "
            "give real pictures of the same resolution"
        )


def by(size: tuple[int, int] | None) -> str:
    return f"{size[0]}x{size[1]}" if size else "unknown"


def _read_statistics(file: Path) -> tuple[list[str], tuple[Gaussian, Gaussian] | None]:
    """The names in the file, and its pooled and spatial statistics where all four are there."""
    try:
        with np.load(file, allow_pickle=False) as archive:
            names = list(archive.files)
            if not all(name in names for pair in STATISTICS for name in pair):
                return names, None
            pooled, spatial = (
                _gaussian(file, archive[mean], archive[covariance])
                for mean, covariance in STATISTICS
            )
    except BrokenFile:
        raise
    except Exception as error:  # numpy and zipfile raise nearly anything on a broken archive
        raise BrokenFile(f"{file} is not a readable npz: {error}") from None
    return names, (pooled, spatial)


def _gaussian(file: Path, mean: np.ndarray, covariance: np.ndarray) -> Gaussian:
    width = len(mean) if mean.ndim == 1 else 0
    if not width or covariance.shape != (width, width):
        shapes_got = f"{list(mean.shape)} and {list(covariance.shape)}"
        raise BrokenFile(f"{file}: a mean [D] and a covariance [D, D] are needed, got {shapes_got}")
    tensors = [torch.from_numpy(np.asarray(part, np.float64)) for part in (mean, covariance)]
    if not all(torch.isfinite(tensor).all() for tensor in tensors):
        raise BrokenFile(f"{file}: its statistics are not all finite")
    return Gaussian(tensors[0], tensors[1], None)
