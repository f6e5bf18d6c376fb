"""What an artefact says of itself, and the one `validate` it passes on write and on read.

Tensors are plain safetensors. Beside them travels a manifest, a JSON string in the metadata of
every file: the blueprint, where the weights came from, the architecture, which tensors are stored
once for several names, and the CRC-32 of every tensor. `docs/format.md` is the contract.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewbit.activations.activation import Activation
from fewbit.errors import BadModel, BrokenFile
from fewbit.formats import QTensor, Spec
from fewbit.layers.adapters import refuse_adapted
from fewbit.layers.offload import refuse_empty
from fewbit.layers.packed_matrix import PackedMatrix
from fewbit.storage.blueprint import Entry, blueprint_of, stored_as_is
from fewbit.storage.header import Header, Stored
from fewbit.storage.provenance import Provenance
from fewbit.storage.strict_json import parse_table
from fewbit.storage.tensors import stored_once
from fewbit.transforms.principal import Principal

SCHEMA_VERSION = 1
KEY, DIGEST_KEY = "fewbit", "fewbit_sha256"
_MANIFEST: dict[str, type] = {
    "schema_version": int,
    "class_name": str,
    "architecture": dict,
    "provenance": dict,
    "layers": list,
    "aliases": dict,
    "crc32": dict,
}
_PROVENANCE: dict[str, type] = {
    "recipe": dict,
    "seed": int,
    "source_sha256": str,
    "fewbit_version": str,
}
_RECIPE: dict[str, type] = {"method": str, "bits": str, "settings": dict}


@dataclass(frozen=True)
class Manifest:
    schema_version: int
    class_name: str
    architecture: dict[str, Any]
    provenance: Provenance
    layers: list[Entry]
    aliases: dict[str, str]  # a name that is not stored -> the name whose tensor it shares
    crc32: dict[str, str]  # stored tensor -> its checksum

    def names(self) -> dict[str, list[str]]:
        """Stored tensor -> all names it goes by in the model."""
        names = {stored: [stored] for stored in self.crc32}
        for alias, stored in self.aliases.items():
            names[stored].append(alias)
        return names

    def quantization_config(self) -> dict[str, Any]:
        """What `config.json` must say."""
        return quantization_config(self.provenance)

    def to_metadata(self) -> dict[str, str]:
        text = json.dumps(asdict(self))
        return {KEY: text, DIGEST_KEY: _sha256(text)}

    @classmethod
    def from_headers(cls, headers: Iterable[Header]) -> Manifest:
        """The one manifest that all files of an artefact carry."""
        texts = {header.metadata.get(KEY): header for header in headers}
        if len(texts) > 1:
            names = " and ".join(header.path.name for header in texts.values())
            raise BrokenFile(f"{names} do not belong to one artefact: their manifests differ")
        ((text, header),) = texts.items()
        if text is None:
            raise BrokenFile(f"{header.path} carries no fewbit manifest")
        if header.metadata.get(DIGEST_KEY) != _sha256(text):
            raise BrokenFile(f"{header.path}: the manifest was altered; its SHA-256 differs")
        return cls._parse(text, f"{header.path}: the manifest")

    @classmethod
    def _parse(cls, text: str, where: str) -> Manifest:
        content = parse_table(text, where)
        version = content.get("schema_version")
        if version != SCHEMA_VERSION:
            raise BrokenFile(
                f"{where} has schema version {str(version)[:20]!r}, this fewbit reads "
                f"{SCHEMA_VERSION}; a newer fewbit may read it"
            )
        _refuse_other_fields(content, _MANIFEST, where)
        origin = content.pop("provenance")
        _refuse_other_fields(origin, _PROVENANCE, where)
        provenance = Provenance(**origin)
        _refuse_other_fields(provenance.recipe, _RECIPE, f"{where}: the recipe")
        manifest = cls(provenance=provenance, **content)
        for table in (manifest.aliases, manifest.crc32):
            if not all(isinstance(value, str) for value in table.values()):
                raise BrokenFile(f"{where}: aliases and crc32 must be tables of strings")
        if not set(manifest.aliases.values()) <= manifest.crc32.keys():
            raise BrokenFile(f"{where}: an alias stands for a tensor that is not stored")
        return manifest


def quantization_config(provenance: Provenance) -> dict[str, Any]:
    return {
        "quant_method": "fewbit",
        "recipe": provenance.recipe,
        "bits": provenance.recipe["bits"],
        "schema_version": SCHEMA_VERSION,
        "fewbit_version": provenance.fewbit_version,
    }


def manifest_of(
    model: nn.Module, architecture: Mapping[str, Any]
) -> tuple[Manifest, dict[str, Tensor]]:
    """The manifest of a quantized model and the tensors to be stored."""
    refuse_adapted(model, "saved")
    refuse_empty(model, "saving")
    state = model.state_dict()
    crc32, aliases = stored_once(state)
    tensors = {name: state[name].contiguous() for name in crc32}
    manifest = Manifest(
        SCHEMA_VERSION,
        type(model).__name__,
        as_json(architecture),
        model.fewbit,  # type: ignore[arg-type]
        blueprint_of(model),
        aliases,
        crc32,
    )
    written = {name: Stored(t.dtype, tuple(t.shape), 0) for name, t in tensors.items()}
    validate(model, manifest, [Header(Path("memory"), written, {})])
    check_values(model)
    return manifest, tensors


def validate(model: nn.Module, manifest: Manifest, headers: Iterable[Header]) -> None:
    """Every tensor the model needs is there once, as it must be, and nothing else is."""
    stored = _by_name(headers)
    needed, packed = model.state_dict(), stored_as_is(model)
    for name, tensor in needed.items():
        source = manifest.aliases.get(name, name)
        if source not in stored:
            raise BrokenFile(f"the artefact lacks the tensor {source[:200]!r}")
        found, path = stored[source]
        dtype_fits = (
            found.dtype == tensor.dtype
            if name in packed
            else found.dtype.is_floating_point == tensor.dtype.is_floating_point
        )
        if found.shape != tuple(tensor.shape) or not dtype_fits:
            raise BrokenFile(
                f"{path}: {source} is {found.dtype} {list(found.shape)}, "
                f"expected {tensor.dtype} {list(tensor.shape)}"
            )
    for name, (_, path) in stored.items():
        if name not in needed or name in manifest.aliases:
            raise BrokenFile(f"{path} holds the tensor {name[:200]!r}, which the model has not")
    if manifest.crc32.keys() != stored.keys() or not manifest.aliases.keys() <= needed.keys():
        raise BrokenFile("the manifest lists other tensors than the files hold")


def check_values(model: nn.Module) -> None:
    """Numbers no writer would write would spread through every image."""
    for name, module in model.named_modules():
        if isinstance(module, PackedMatrix):
            check_numbers(name, module.packed_weight)
        elif isinstance(module, Activation | Principal):
            module.check(name)


def as_json(architecture: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration as JSON gives it back, sorted, without private keys and our own part."""
    public = {
        key: value
        for key, value in architecture.items()
        if not key.startswith("_") and key != "quantization_config"
    }
    try:
        result: dict[str, Any] = json.loads(json.dumps(public, sort_keys=True, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise BadModel(f"the model's configuration cannot be written as JSON: {error}") from None
    return result


def _refuse_other_fields(content: dict[str, Any], kinds: dict[str, type], where: str) -> None:
    if content.keys() != kinds.keys():
        raise BrokenFile(f"{where} must hold exactly the fields {', '.join(kinds)}")
    for name, kind in kinds.items():
        if type(content[name]) is not kind:
            raise BrokenFile(
                f"{where}: {name} must be a {kind.__name__}, got {str(content[name])[:80]!r}"
            )


def _by_name(headers: Iterable[Header]) -> dict[str, tuple[Stored, Path]]:
    stored: dict[str, tuple[Stored, Path]] = {}
    for header in headers:
        for name, tensor in header.tensors.items():
            if name in stored:
                raise BrokenFile(f"{name} is stored twice, in {stored[name][1]} and {header.path}")
            stored[name] = tensor, header.path
    return stored


def check_numbers(name: str, weight: QTensor) -> None:
    fmt, scales = weight.spec.format, weight.scales
    if not weight.spec.scale.sound(scales.stored, scales.outer):
        raise BrokenFile(f"{name}.scales holds a scale that is not positive and finite")
    _check_zeros(name, weight.spec, scales.zeros)
    complaint = fmt.complaint(scales)
    if complaint is not None:
        raise BrokenFile(f"{name}.{complaint}")
    if not fmt.all_finite and not bool(torch.isfinite(weight.dequantize()).all()):
        raise BrokenFile(f"{name}.codes holds a code that is no number in {fmt}")


def _check_zeros(name: str, spec: Spec, zeros: Tensor | None) -> None:
    if zeros is None:
        return
    if spec.has_minima and not bool(zeros.isfinite().all()):
        raise BrokenFile(f"{name}.zeros holds a minimum that is not finite")
    if not spec.has_minima and int(zeros.max()) > spec.format.max:
        raise BrokenFile(f"{name}.zeros holds a zero point above {spec.format.max:.0f}")


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
