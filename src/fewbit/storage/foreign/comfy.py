"""Single files of ComfyUI: safetensors in which a marker says of each layer how it is stored.

A marker is JSON, in a tensor `LAYER.comfy_quant` or, in older files, in the metadata of the header.
The formats are those of `QUANT_ALGOS` in ComfyUI's quant_ops.py; tests hold them to comfy-kitchen.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from fewbit.errors import BrokenFile
from fewbit.formats import FORMATS, LUT16, MXFP4, NVFP4, QTensor, Scales, Spec
from fewbit.formats.scale import TABLE
from fewbit.storage.foreign.blocked import blocked, blocked_shape, unblocked
from fewbit.storage.foreign.contents import Contents, ForeignLayer, Input, Parts
from fewbit.storage.foreign.names import PREFIX, of_the_denoiser
from fewbit.storage.foreign.target import Target
from fewbit.storage.header import Header, read_header
from fewbit.storage.strict_json import parse_table
from fewbit.storage.tensors import mapped, write_tensors
from fewbit.transforms.regular_hadamard import allowed_blocks

DIALECT = "comfy"
MARKER, OLD_MARKERS = "comfy_quant", "_quantization_metadata"
SCALED = "scaled_fp8"  # a tensor of this name says of an older file that its FP8 has scales
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
_FP8 = {E4M3: "float8_e4m3fn", E5M2: "float8_e5m2"}
_OLD_NAMES = {"scale_weight": "weight_scale", "scale_input": "input_scale"}
_UNREAD = ("params", "orig_dtype", "orig_shape")  # of a marker; what they say is known otherwise
_INT8, _INT4 = Spec(FORMATS["int8"]), Spec(FORMATS["int4"])
_MXFP8 = Spec(FORMATS["e4m3"], 32, MXFP4.scale)
_WIDE = "int8_tensorwise"
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Marker:
    format: str
    convrot: bool = False
    convrot_groupsize: int = 256
    group_size: int = 16
    linear_dtype: str = "int4"  # of the inputs of convrot_w4a4
    full_precision_matrix_mult: bool = False  # the input is not rounded

    @classmethod
    def parse(cls, table: object, where: str) -> Marker:
        """One that says what this version does not know may mean other numbers: it is refused."""
        if not isinstance(table, dict):
            raise BrokenFile(f"{where} is no table but {table!r:.80}")
        inner = table.get("params")
        inner = inner if isinstance(inner, dict) else {}
        said = {**{key: value for key, value in table.items() if key not in _UNREAD}, **inner}
        kinds = {one.name: type(one.default) for one in fields(cls)} | {"format": str}
        for key, value in said.items():
            if type(value) is not kinds.get(key):
                raise BrokenFile(
                    f"{where} says {key[:80]} = {value!r:.80}; this version knows "
                    f"{', '.join(f'{name}: {kind.__name__}' for name, kind in kinds.items())}"
                )
        if said.get("format") not in KINDS:
            raise BrokenFile(
                f"{where} has the format {said.get('format')!r:.80}; formats that are read: "
                f"{', '.join(KINDS)}"
            )
        return cls(**said)


@dataclass(frozen=True)
class Kind:
    """How a format stores a layer, and what it does to the input."""

    read: Callable[[Parts, Marker], QTensor]
    spec: Spec
    activation: Spec | None = None
    rotates: bool | None = False  # None: where the marker says so
    padding: int = 1  # rows are padded to multiples of it
    write: Callable[[QTensor], Mapping[str, Tensor]] | None = None  # the inverse of `read`
    spans: tuple[str | int, ...] = ()  # of a scale, that can be written
    multiple: int = 1  # of it are the columns then

    def holds(self, layer: ForeignLayer) -> bool:
        """Whether the layer can be written so."""
        spec, rotated = layer.weight.spec, layer.input.block is not None
        return (
            spec.span in self.spans
            and replace(spec, span=self.spec.span) == self.spec
            and layer.weight.columns % self.multiple == 0
            and self.rotates in (None, rotated)
            and layer.input.activation in (self.activation, None)
        )


def is_comfy(header: Header) -> bool:
    fp8 = any(one.dtype in _FP8 and len(one.shape) == 2 for one in header.tensors.values())
    marked = any(name.endswith(f".{MARKER}") for name in header.tensors)
    return fp8 or marked or OLD_MARKERS in header.metadata


def read(path: Path) -> Contents:
    """Layers as they are stored, and the tensors, which lie in the mapped file."""
    header = read_header(path)
    tensors = of_the_denoiser(mapped(header))
    tensors.pop(SCALED, None)
    markers = _markers(header, tensors)
    layers = {}
    for name, own in _by_layer(tensors).items():
        marker = markers.pop(name, None) or _unmarked(own.get("weight"))
        if marker is not None:
            layers[name] = _layer(path, name, marker, own)
            for leaf in own:
                del tensors[f"{name}.{leaf}"]
    if markers:
        raise BrokenFile(
            f"{path} marks the layer {next(iter(markers))[:200]!r}, of which it holds no tensor"
        )
    return Contents(path, DIALECT, layers, tensors)


def _markers(header: Header, tensors: dict[str, Tensor]) -> dict[str, Marker]:
    """By the name of the layer; the tensors that hold them are taken out."""
    path, suffix = header.path, f".{MARKER}"
    new = {
        name.removesuffix(suffix): _parsed(path, name, tensors.pop(name))
        for name in [name for name in tensors if name.endswith(suffix)]
    }
    if OLD_MARKERS not in header.metadata:
        return new
    old = _old_markers(path, header.metadata[OLD_MARKERS])
    if new and old != new:
        name = next(n for n in {**old, **new} if old.get(n) != new.get(n))
        raise BrokenFile(
            f"{path}: the metadata and the tensor {name[:200]}{suffix} say different things of a "
            "layer; one of them was altered"
        )
    return old


def _old_markers(path: Path, text: str) -> dict[str, Marker]:
    where = f"{path}: {OLD_MARKERS}"
    layers = parse_table(text, where).get("layers")
    if not isinstance(layers, dict):
        raise BrokenFile(f"{where} has no table of layers")
    return {
        name.removeprefix(PREFIX): Marker.parse(
            {"format": said} if isinstance(said, str) else said, f"{where} of {name[:200]}"
        )
        for name, said in layers.items()
    }


def _parsed(path: Path, name: str, stored: Tensor) -> Marker:
    where = f"{path}: {name[:200]}"
    if stored.dtype != torch.uint8 or stored.dim() != 1:
        raise BrokenFile(f"{where} is {stored.dtype} {list(stored.shape)}, expected bytes of JSON")
    return Marker.parse(parse_table(stored.numpy().tobytes(), where), where)


def _by_layer(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """All that may belong to a packed weight: all tensors of a module but its bias."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        stem, _, leaf = name.rpartition(".")
        if leaf != "bias":
            found.setdefault(stem, {})[leaf] = tensor
    return found


def _unmarked(weight: Tensor | None) -> Marker | None:
    """Files of FP8 are older than markers."""
    if weight is None or weight.dim() != 2 or weight.dtype not in _FP8:
        return None
    return Marker(_FP8[weight.dtype])


def _layer(path: Path, name: str, marker: Marker, own: Mapping[str, Tensor]) -> ForeignLayer:
    kind = KINDS[marker.format]
    parts = Parts(path, name, marker.format, {_OLD_NAMES.get(n, n): t for n, t in own.items()})
    weight = kind.read(parts, marker)
    parts.done()
    rotates = marker.convrot if kind.rotates is None else kind.rotates
    block = marker.convrot_groupsize if rotates else None
    if block is not None and block not in allowed_blocks(weight.columns):
        raise parts.error(
            f"rotates groups of {block} channels, which are no power of 4 or do not divide "
            f"{weight.columns} columns"
        )
    return ForeignLayer(weight, Input(block, _rounding(parts, kind, marker)), kind.padding)


def _rounding(parts: Parts, kind: Kind, marker: Marker) -> Spec | None:
    if kind.activation is None or marker.full_precision_matrix_mult:
        return None
    if marker.linear_dtype not in _INPUTS:
        allowed = ", ".join(_INPUTS)
        raise parts.error(f"has inputs in {marker.linear_dtype!r:.80}; allowed: {allowed}")
    return _INPUTS[marker.linear_dtype] if kind.activation == _INT4 else kind.activation


def _int8_tensorwise(parts: Parts, marker: Marker) -> QTensor:
    weight = parts.take("weight", torch.int8, dimensions=2)
    spec, scales = _scaled("int8", parts, len(weight))
    return QTensor(weight.view(torch.uint8), scales, spec, weight.shape[1])


def _convrot_w4a4(parts: Parts, marker: Marker) -> QTensor:
    weight = parts.take("weight", torch.int8, torch.uint8, dimensions=2)
    spec, scales = _scaled("int4", parts, len(weight))
    return QTensor(weight.view(torch.uint8), scales, spec, 2 * weight.shape[1])


def _scaled(
    fmt: str, parts: Parts, rows: int, missing: Tensor | None = None
) -> tuple[Spec, Scales]:
    """One scale for each row, or one for all."""
    found = parts.perhaps("weight_scale", *_FLOATS)
    found = missing if found is None else found
    if found is None:
        raise parts.lacks("weight_scale")
    one = found.numel() == 1 and rows > 1
    scale = parts.shaped("weight_scale", found.float(), *((1, 1) if one else (rows, 1)))
    return Spec(FORMATS[fmt], "tensor" if one else "row"), Scales(scale)


def _asym_w4a8_int8(parts: Parts, marker: Marker) -> QTensor:
    """Scales of groups, relative to that of the row; one that is 0 makes nothing but zeros, as the
    smallest there is does too."""
    weight = parts.take("weight", torch.int8, torch.uint8, dimensions=2)
    rows, columns = len(weight), 2 * weight.shape[1]
    group = parts.group(marker.group_size, columns)
    relative = parts.take("weight_s_rel", E4M3, torch.uint8).view(E4M3)
    relative = parts.shaped("weight_s_rel", relative, rows, columns // group)
    channel = parts.take("weight_s_channel", *_FLOATS).float()
    channel = parts.shaped("weight_s_channel", channel, rows, 1)
    table = parts.perhaps("weight_codebook", *_FLOATS)
    table = torch.arange(-8, 8, device="cpu") if table is None else table
    table = parts.shaped("weight_codebook", table.float(), 16, 1)
    scales = Scales(_positive(relative), channel, codebook=table)
    return QTensor(weight.view(torch.uint8), scales, Spec(LUT16, group, TABLE), columns)


def _nvfp4(parts: Parts, marker: Marker) -> QTensor:
    """The even column of a byte lies in its upper half, and scales lie in tiles."""
    weight = parts.take("weight", torch.uint8, dimensions=2)
    rows, columns = len(weight), 2 * weight.shape[1]
    groups = columns // parts.group(16, columns)
    tiles = parts.take("weight_scale", E4M3, torch.uint8).view(torch.uint8)
    tiles = parts.shaped("weight_scale", tiles, *blocked_shape(rows, groups))
    outer = parts.shaped("weight_scale_2", parts.take("weight_scale_2", torch.float32), 1, 1)
    parts.perhaps("input_scale", *_FLOATS)
    stored = unblocked(tiles, rows, groups).view(E4M3)
    codes = (weight << 4 | weight >> 4).view(rows, groups, -1)
    codes = codes.masked_fill((stored.float() == 0)[..., None], 0).view(rows, -1)
    return QTensor(codes, Scales(_positive(stored), outer), NVFP4, columns)


def _mxfp8(parts: Parts, marker: Marker) -> QTensor:
    weight = parts.take("weight", E4M3, dimensions=2)
    rows, columns = weight.shape
    groups = columns // parts.group(32, columns)
    tiles = parts.take("weight_scale", torch.uint8)
    tiles = parts.shaped("weight_scale", tiles, *blocked_shape(rows, groups))
    parts.perhaps("input_scale", *_FLOATS)
    scales = Scales(unblocked(tiles, rows, groups))
    return QTensor(weight.view(torch.uint8), scales, _MXFP8, columns)


def _fp8(dtype: torch.dtype, fmt: str, parts: Parts, marker: Marker) -> QTensor:
    weight = parts.take("weight", dtype, dimensions=2)
    spec, scales = _scaled(fmt, parts, len(weight), torch.ones((), device="cpu"))
    parts.perhaps("input_scale", *_FLOATS)
    return QTensor(weight.view(torch.uint8), scales, spec, weight.shape[1])


def _bytes(packed: QTensor) -> Mapping[str, Tensor]:
    scale = packed.scales.stored
    one = packed.spec.span == "tensor"
    return {
        "weight": packed.packed.view(torch.int8),
        "weight_scale": scale.reshape(()) if one else scale,
    }


def _nibbles(packed: QTensor) -> Mapping[str, Tensor]:
    return {
        "weight": packed.packed.view(torch.int8),
        "weight_scale": packed.scales.stored[:, 0],
    }


def _table(packed: QTensor) -> Mapping[str, Tensor]:
    scales = packed.scales
    assert scales.outer is not None
    assert scales.codebook is not None
    return {
        "weight": packed.packed.view(torch.int8),
        "weight_s_rel": scales.stored,
        "weight_s_channel": scales.outer[:, 0],
        "weight_codebook": scales.codebook[:, 0],
    }


def _tiles(packed: QTensor) -> Mapping[str, Tensor]:
    """Rows are padded to multiples of 16."""
    scales, rows = packed.scales, -packed.shape[0] % 16
    assert scales.outer is not None
    codes, stored = packed.packed, scales.stored.view(torch.uint8)
    return {
        "weight": pad(codes << 4 | codes >> 4, (0, 0, 0, rows)),
        "weight_scale": blocked(pad(stored, (0, 0, 0, rows))).view(E4M3),
        "weight_scale_2": scales.outer.reshape(()),
    }


def _positive(scales: Tensor) -> Tensor:
    """E4M3 with the smallest number there is in the place of 0."""
    stored = scales.view(torch.uint8)
    return stored.masked_fill(stored & 127 == 0, 1).view(E4M3)


# The float formats round their inputs on tensor cores that have them. ComfyUI leaves inputs as they
# are wherever it has no such units, and so do we.
KINDS = {
    "int8_tensorwise": Kind(
        _int8_tensorwise, _INT8, _INT8, rotates=None, write=_bytes, spans=("row", "tensor")
    ),
    "convrot_w4a4": Kind(
        _convrot_w4a4, _INT4, _INT4, rotates=True, write=_nibbles, spans=("row",), multiple=64
    ),
    "asym_w4a8_int8": Kind(
        _asym_w4a8_int8,
        Spec(LUT16, 16, TABLE),
        _INT8,
        rotates=True,
        write=_table,
        spans=(4, 8, *range(16, 1025, 16)),
        multiple=16,
    ),
    "nvfp4": Kind(_nvfp4, NVFP4, padding=16, write=_tiles, spans=(16,)),
    "mxfp8": Kind(_mxfp8, _MXFP8, padding=32),
    "float8_e4m3fn": Kind(partial(_fp8, E4M3, "e4m3"), Spec(FORMATS["e4m3"], "tensor")),
    "float8_e5m2": Kind(partial(_fp8, E5M2, "e5m2"), Spec(FORMATS["e5m2"], "tensor")),
}
_INPUTS = {"int4": _INT4, "int8": _INT8}


def _target(name: str, kind: str) -> Target:
    return Target(name, ".safetensors", partial(_holds, kind), partial(_write, kind))


def _holds(kind: str, layer: ForeignLayer) -> bool:
    return _kind_for(kind, layer) is not None


def _kind_for(name: str, layer: ForeignLayer) -> str | None:
    """That, or int8 for what does not round its input, as a modulation: in a file of any format."""
    if KINDS[name].holds(layer):
        return name
    return _WIDE if layer.input == Input() and KINDS[_WIDE].holds(layer) else None


def _write(
    kind: str,
    path: Path,
    cls: str,
    layers: Mapping[str, ForeignLayer],
    tensors: Mapping[str, Tensor],
) -> None:
    stored = dict(tensors)
    for layer, one in layers.items():
        used = _kind_for(kind, one)
        assert used is not None
        write = KINDS[used].write
        assert write is not None
        parts = {**write(one.weight), MARKER: _said(used, one)}
        stored |= {f"{layer}.{leaf}": tensor for leaf, tensor in parts.items()}
    write_tensors(path, stored, {"format": "pt"})


def _said(name: str, layer: ForeignLayer) -> Tensor:
    """Its marker. Readers that take the usual group of a rotation for granted are told it too."""
    kind, said = KINDS[name], dict[str, Any](format=name)
    if layer.weight.spec.scale is TABLE:
        said["group_size"] = layer.weight.spec.span
    if layer.input.block is not None:
        said |= {"convrot": True, "convrot_groupsize": layer.input.block}
    if kind.activation is not None and layer.input.activation is None:
        said["full_precision_matrix_mult"] = True
    return torch.tensor(list(json.dumps(said).encode()), dtype=torch.uint8)


WRITTEN = {
    "comfy-int8": "int8_tensorwise",
    "comfy-w4a8": "asym_w4a8_int8",
    "comfy-convrot-w4a4": "convrot_w4a4",
    "comfy-nvfp4": "nvfp4",
}
TARGETS = tuple(_target(name, kind) for name, kind in WRITTEN.items())
