"""GGUF: a table of named values and of tensors, then the tensors, some of them in blocks."""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from fewbit.errors import BadModel, BrokenFile
from fewbit.files import replacing
from fewbit.storage.foreign.contents import Contents, ForeignLayer, Input
from fewbit.storage.foreign.gguf_blocks import BLOCKS, COLUMNS, Block
from fewbit.storage.foreign.names import WEIGHT, of_the_denoiser
from fewbit.storage.foreign.target import Target
from fewbit.storage.header import MOST_DIMENSIONS
from fewbit.storage.regular_file import open_regular

DIALECT = "gguf"
MAGIC, VERSIONS = b"GGUF", (2, 3)
ALIGNMENT, ALIGNMENT_KEY = 32, "general.alignment"
MOST_ENTRIES = 1 << 17  # of either table
LONGEST_NAME = 256
PLAIN = {
    0: torch.float32,
    1: torch.float16,
    24: torch.int8,
    25: torch.int16,
    26: torch.int32,
    27: torch.int64,
    28: torch.float64,
    30: torch.bfloat16,
}
_WIDE = next(block for block in BLOCKS if block.name == "q8_0")
_BY_NUMBER = {block.number: block for block in BLOCKS}
_VALUES = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_TEXT, _LIST = 8, 9

Contained = dict[str, tuple[int, Sequence[int], Tensor]]  # type, shape and bytes by name


@dataclass(frozen=True)
class _Entry:
    name: str
    kind: int
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        block = _BY_NUMBER.get(self.kind)
        if block is None:
            return math.prod(self.shape) * PLAIN[self.kind].itemsize
        return math.prod(self.shape) // COLUMNS * block.nbytes


def is_gguf(path: Path) -> bool:
    with open_regular(path) as file:
        return file.read(len(MAGIC)) == MAGIC


def read(path: Path) -> Contents:
    """Blocks of two axes as packed layers, all else as plain tensors."""
    with open_regular(path) as file:
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    entries, begin = _tables(_Reader(path, mapping))
    _refuse_overlaps(path, entries, begin, len(mapping))
    layers: dict[str, ForeignLayer] = {}
    tensors: dict[str, Tensor] = {}
    for name, entry in of_the_denoiser({entry.name: entry for entry in entries}).items():
        stored = torch.frombuffer(
            mapping, dtype=torch.uint8, count=entry.nbytes, offset=begin + entry.offset
        )
        if entry.kind in PLAIN:
            tensors[name] = stored.clone().view(PLAIN[entry.kind]).view(entry.shape)
            continue
        packed = _BY_NUMBER[entry.kind].read(stored.view(math.prod(entry.shape[:-1]), -1))
        if name.endswith(WEIGHT) and len(entry.shape) == 2:
            layers[name.removesuffix(WEIGHT)] = ForeignLayer(packed)
        else:
            tensors[name] = packed.dequantize().view(entry.shape)
    return Contents(path, DIALECT, layers, tensors)


class _Reader:
    """Takes values from the front; nothing is believed of their sizes."""

    def __init__(self, path: Path, content: mmap.mmap) -> None:
        self.path, self.content, self.at = path, content, 0

    def bytes(self, count: int) -> bytes:
        if not 0 <= count <= len(self.content) - self.at:
            raise self.error(f"is truncated: at byte {self.at} it should have {count} more")
        self.at += count
        return self.content[self.at - count : self.at]

    def value(self, form: str) -> int:
        (found,) = struct.unpack(f"<{form}", self.bytes(struct.calcsize(form)))
        return int(found) if form not in "fd" else 0

    def count(self) -> int:
        found = self.value("Q")
        if found > MOST_ENTRIES:
            raise self.error(f"has a table of {found} entries, allowed {MOST_ENTRIES}")
        return found

    def text(self) -> str:
        size = self.value("Q")
        try:
            found = self.bytes(size).decode()
        except UnicodeDecodeError:
            raise self.error(f"has a text at byte {self.at} that is not UTF-8") from None
        return found

    def skip(self, kind: int) -> int | None:
        """A value of a kind; a number is given back."""
        if kind in _VALUES:
            return self.value(_VALUES[kind])
        if kind == _TEXT:
            self.bytes(self.value("Q"))
        elif kind == _LIST:
            inner, count = self.value("I"), self.value("Q")
            if inner in _VALUES:
                self.bytes(count * struct.calcsize(_VALUES[inner]))
            elif inner == _TEXT:
                for _ in range(count):
                    self.bytes(self.value("Q"))
            else:
                raise self.error(f"has a list of values of the unknown kind {inner}")
        else:
            raise self.error(f"has a value of the unknown kind {kind}")
        return None

    def error(self, what: str) -> BrokenFile:
        return BrokenFile(f"{self.path} {what}")


def _tables(reader: _Reader) -> tuple[list[_Entry], int]:
    """All tensors, and where their data begin."""
    if reader.bytes(len(MAGIC)) != MAGIC:
        raise reader.error("is no GGUF file")
    version = reader.value("I")
    if version not in VERSIONS:
        raise reader.error(f"has version {version}; versions that are read: 2, 3")
    tensors, values = reader.count(), reader.count()
    numbers: dict[str, int | None] = {}
    for _ in range(values):
        key = reader.text()
        numbers[key] = reader.skip(reader.value("I"))
    alignment = numbers.get(ALIGNMENT_KEY, ALIGNMENT) or 0
    if not 1 <= alignment <= 1 << 16 or alignment & (alignment - 1):
        raise reader.error(f"aligns its data to {alignment} bytes, which is no power of two")
    entries = [_entry(reader) for _ in range(tensors)]
    return entries, -(-reader.at // alignment) * alignment


def _entry(reader: _Reader) -> _Entry:
    name, axes = reader.text(), reader.value("I")
    if not name.isprintable() or not 0 < len(name) <= LONGEST_NAME or axes > MOST_DIMENSIONS:
        raise reader.error(f"has a tensor {name[:80]!r} of {axes} dimensions")
    shape = tuple(reversed([reader.value("Q") for _ in range(axes)]))
    if 0 in shape:
        raise reader.error(f"has {name} {list(shape)}, which is empty")
    kind, offset = reader.value("I"), reader.value("Q")
    if kind not in _BY_NUMBER and kind not in PLAIN:
        allowed = ", ".join(f"{block.name} ({block.number})" for block in BLOCKS)
        raise reader.error(
            f"has {name} in the type {kind}, which is not read; types that are: {allowed}, "
            "float32 (0), float16 (1), bfloat16 (30)"
        )
    if kind in _BY_NUMBER and (not shape or shape[-1] % COLUMNS):
        raise reader.error(f"has {name} {list(shape)} in groups of 32, which do not divide it")
    return _Entry(name, kind, shape, offset)


def _refuse_overlaps(path: Path, entries: list[_Entry], begin: int, size: int) -> None:
    at, names = begin, set()
    for entry in sorted(entries, key=lambda one: (one.offset, one.nbytes)):
        if entry.name in names or begin + entry.offset < at:
            raise BrokenFile(f"{path} has {entry.name} twice, or its bytes in another tensor")
        names.add(entry.name)
        at = begin + entry.offset + entry.nbytes
        if at > size:
            raise BrokenFile(f"{path} is truncated: {entry.name} ends at byte {at} of {size}")


def _target(block: Block) -> Target:
    return Target(f"gguf-{block.name}", ".gguf", partial(_holds, block), partial(_write, block))


def _holds(block: Block, layer: ForeignLayer) -> bool:
    return _block_for(block, layer) is not None


def _block_for(block: Block, layer: ForeignLayer) -> Block | None:
    """That, or 8 bits, in which a modulation may be; inputs are neither rotated nor rounded."""
    if layer.input != Input():
        return None
    return next((one for one in (block, _WIDE) if one.holds(layer.weight.spec)), None)


def _write(
    block: Block,
    path: Path,
    cls: str,
    layers: Mapping[str, ForeignLayer],
    tensors: Mapping[str, Tensor],
) -> None:
    contents: Contained = {n: (_number(n, one), one.shape, one) for n, one in tensors.items()}
    for name, layer in layers.items():
        used = _block_for(block, layer)
        assert used is not None
        stored = used.write(layer.weight)
        contents[f"{name}{WEIGHT}"] = used.number, layer.weight.shape, stored
    values = {"general.architecture": _architecture(cls), "general.name": cls}
    with replacing(path) as aside, aside.open("wb") as file:
        file.write(_head(values, contents))
        for _, _, tensor in contents.values():
            data = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
            file.write(_padded(data))


def _head(values: Mapping[str, str], contents: Contained) -> bytes:
    version, quantization = VERSIONS[-1], 2
    head = MAGIC + struct.pack("<IQQ", version, len(contents), len(values) + 1)
    for key, value in values.items():
        head += _text(key) + struct.pack("<I", _TEXT) + _text(value)
    head += _text("general.quantization_version") + struct.pack("<II", 4, quantization)
    at = 0
    for name, (number, shape, tensor) in contents.items():
        sizes = b"".join(struct.pack("<Q", size) for size in reversed(shape))
        head += _text(name) + struct.pack("<I", len(shape)) + sizes
        head += struct.pack("<IQ", number, at)
        at += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
    return _padded(head)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % ALIGNMENT)


def _text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def _number(name: str, tensor: Tensor) -> int:
    found = next((number for number, dtype in PLAIN.items() if dtype == tensor.dtype), None)
    if found is None:
        raise BadModel(f"{name} is {tensor.dtype}, for which GGUF has no type")
    return found


def _architecture(cls: str) -> str:
    """As such files call it: `FluxTransformer2DModel` is flux."""
    return cls.partition("Transformer")[0].partition("2DModel")[0].lower()


TARGETS = tuple(map(_target, BLOCKS))
