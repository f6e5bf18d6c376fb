"""Pictures in files, as bytes [3, height, width]: PNG or JPEG in folders, batches in ADM's npz.

Nothing is unpickled, and no more than a chunk of a large file is in memory.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import torch
from numpy.lib import format as npy
from PIL import Image
from torch import Tensor

from fewbit.errors import BrokenFile
from fewbit.files import replacing

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
CHUNK = 64
PICTURES = "arr_0"  # ADM's name for [N, height, width, 3] bytes
_BAD_ZIP = (zipfile.BadZipFile, OSError, ValueError, KeyError, EOFError, NotImplementedError)


def read_picture(file: Path) -> Tensor:
    try:
        with Image.open(file) as picture:
            return as_bytes(picture)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BrokenFile(f"cannot read the picture {file}: {error}") from None


def as_bytes(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1).contiguous()


def picture_files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in ENDINGS)


class NpzPictures:
    """The batch `arr_0` of an npz file, read in order."""

    def __init__(self, file: Path) -> None:
        self.file = file
        shape = self._shape()
        self.count, self.size = shape[0], (shape[2], shape[1])

    def chunks(self) -> Iterator[Tensor]:
        """[N, 3, height, width]."""
        width, height = self.size
        each = height * width * 3
        with zipfile.ZipFile(self.file) as archive, archive.open(f"{PICTURES}.npy") as stream:
            self._header(stream)
            for start in range(0, self.count, CHUNK):
                wanted = min(CHUNK, self.count - start)
                content = stream.read(wanted * each)
                if len(content) != wanted * each:
                    raise BrokenFile(f"{self.file} ends after {start} of {self.count} pictures")
                rows = np.frombuffer(bytearray(content), np.uint8).reshape(-1, height, width, 3)
                yield torch.from_numpy(rows).permute(0, 3, 1, 2).contiguous()

    def _shape(self) -> tuple[int, ...]:
        try:
            with zipfile.ZipFile(self.file) as archive, archive.open(f"{PICTURES}.npy") as stream:
                shape, by_columns, dtype = self._header(stream)
        except _BAD_ZIP as error:
            raise BrokenFile(f"{self.file} holds no readable {PICTURES}: {error}") from None
        if len(shape) != 4 or shape[3] != 3 or dtype != np.uint8 or by_columns:
            raise BrokenFile(
                f"{self.file}: {PICTURES} must be bytes in rows, [N, height, width, 3], got "
                f"{dtype} {list(shape)}"
            )
        return shape

    @staticmethod
    def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
        version = npy.read_magic(stream)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        return read(stream)


def write_npz(files: list[Path], target: Path) -> None:
    """As ADM's evaluator expects its samples: one uncompressed `arr_0`, written as it is read."""
    first = read_picture(files[0])
    header = {
        "descr": npy.dtype_to_descr(np.dtype(np.uint8)),
        "fortran_order": False,
        "shape": (len(files), *first.permute(1, 2, 0).shape),
    }
    with (
        replacing(target) as aside,
        zipfile.ZipFile(aside, "w") as archive,
        archive.open(f"{PICTURES}.npy", "w", force_zip64=True) as stream,
    ):
        npy.write_array_header_1_0(stream, header)
        for file in files:
            stream.write(read_picture(file).permute(1, 2, 0).contiguous().numpy().tobytes())
