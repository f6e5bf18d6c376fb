"""The artefact: what a quantized model is on disk, checked by one `validate` on write and read.

Tensors are plain safetensors. Beside them travels a manifest, a JSON string in the metadata of
every file: the blueprint, where the weights came from, the architecture, which tensors are stored
once for several names, and the SHA-256 of every tensor. `docs/format.md` is the contract.
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

from fewbit.blueprint import Entry, apply_blueprint, blueprint_of, quantized_layers
from fewbit.errors import BrokenFile
from fewbit.header import Header, Stored
from fewbit.linear import STORED
from fewbit.provenance import Provenance

SCHEMA_VERSION = 1
KEY = "fewbit"


@dataclass(frozen=True)
class Manifest:
    schema_version: int
    provenance: Provenance
    layers: list[Entry]
    architecture: dict[str, Any]
    aliases: dict[str, str]  # a name that is not stored -> the name whose tensor it shares
    sha256: dict[str, str]  # stored tensor -> digest of its bytes

    @property
    def fingerprint(self) -> str:
        """One digest over everything the manifest says."""
        content = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def to_metadata(self) -> dict[str, str]:
        return {KEY: json.dumps({**asdict(self), "fingerprint": self.fingerprint})}

    @classmethod
    def from_headers(cls, headers: Iterable[Header]) -> Manifest:
        """The one manifest that all files of an artefact carry."""
        texts = {header.metadata.get(KEY): header.path for header in headers}
        if len(texts) > 1:
            names = " and ".join(path.name for path in texts.values())
            raise BrokenFile(f"{names} do not belong to one artefact: their manifests differ")
        ((text, path),) = texts.items()
        if text is None:
            raise BrokenFile(f"{path} carries no fewbit manifest")
        return cls._parse(text, str(path))

    @classmethod
    def _parse(cls, text: str, path: str) -> Manifest:
        try:
            content = json.loads(text)
            version = content["schema_version"]
            if version != SCHEMA_VERSION:
                raise BrokenFile(
                    f"{path} has schema version {version!r}, this fewbit reads {SCHEMA_VERSION}; "
                    "a newer fewbit may read it"
                )
            fingerprint = content.pop("fingerprint")
            provenance = Provenance(**content.pop("provenance"))
            manifest = cls(provenance=provenance, **content)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BrokenFile(f"{path}: the fewbit manifest is not valid: {error!r}") from None
        if manifest.fingerprint != fingerprint:
            raise BrokenFile(f"{path}: the fewbit manifest was altered; its fingerprint differs")
        return manifest


def manifest_of(
    model: nn.Module, architecture: dict[str, Any]
) -> tuple[Manifest, dict[str, Tensor]]:
    """The manifest of a quantized model and the tensors to be stored."""
    tensors, aliases = stored_once(model.state_dict())
    manifest = Manifest(
        SCHEMA_VERSION,
        model.fewbit,  # type: ignore[arg-type]
        blueprint_of(model),
        normal(architecture),
        aliases,
        {name: digest(tensor) for name, tensor in tensors.items()},
    )
    validate(model, manifest, [_header_of(tensors)])
    for name, layer in quantized_layers(model).items():
        check_values(name, layer)
    return manifest, tensors


def stored_once(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors of equal dtype, shape and bytes are kept under the first of their names."""
    alike: dict[tuple[Any, ...], list[str]] = {}
    for name, tensor in state.items():
        alike.setdefault((tensor.dtype, tensor.shape), []).append(name)
    aliases: dict[str, str] = {}
    for names in alike.values():
        first: dict[str, str] = {}
        for name in names if len(names) > 1 else ():
            kept = first.setdefault(digest(state[name]), name)
            if kept != name:
                aliases[name] = kept
    return {name: t for name, t in state.items() if name not in aliases}, aliases


def digest(tensor: Tensor) -> str:
    """SHA-256 of a tensor's bytes, row-major, little-endian."""
    flat = tensor.detach().cpu().contiguous().view(-1)
    return hashlib.sha256(flat.view(torch.uint8).numpy()).hexdigest()


def prepare(model: nn.Module, manifest: Manifest, headers: Iterable[Header]) -> None:
    """Make a full-precision skeleton ready to take the artefact's tensors."""
    apply_blueprint(model, manifest.layers)
    validate(model, manifest, headers)


def validate(model: nn.Module, manifest: Manifest, headers: Iterable[Header]) -> None:
    """Every tensor the model needs is there once, as it must be, and nothing else is."""
    stored: dict[str, tuple[Stored, Any]] = {}
    for header in headers:
        for name, tensor in header.tensors.items():
            if name in stored:
                raise BrokenFile(f"{name} is stored twice, in {stored[name][1]} and {header.path}")
            stored[name] = tensor, header.path
    packed = {f"{name}.{part}" for name in quantized_layers(model) for part in STORED}
    needed = model.state_dict()
    for name, tensor in needed.items():
        source = manifest.aliases.get(name, name)
        if source not in stored:
            raise BrokenFile(f"the artefact lacks the tensor {source}")
        found, path = stored[source]
        dtype_wrong = name in packed and found.dtype != tensor.dtype
        if found.shape != tuple(tensor.shape) or dtype_wrong:
            raise BrokenFile(
                f"{path}: {source} is {found.dtype} {list(found.shape)}, "
                f"expected {tensor.dtype} {list(tensor.shape)}"
            )
    for name, (_, path) in stored.items():
        if name not in needed or name in manifest.aliases:
            raise BrokenFile(f"{path} holds the tensor {name}, which the model does not have")
        if name not in manifest.sha256:
            raise BrokenFile(f"{path}: the manifest has no digest of {name}")


def check_digest(name: str, tensor: Tensor, manifest: Manifest) -> None:
    if digest(tensor) != manifest.sha256[name]:
        raise BrokenFile(f"the data of {name} was altered: its SHA-256 is not the manifest's")


def check_values(name: str, layer: Any) -> None:
    """Numbers no writer would write: scales that are not positive and finite."""
    packed = layer.packed_weight
    scale = packed.spec.load(packed.scales)
    if not bool((torch.isfinite(scale) & (scale > 0)).all()):
        raise BrokenFile(f"{name}.scales holds a scale that is not positive and finite")


def check_architecture(manifest: Manifest, config: Mapping[str, Any]) -> None:
    """What the configuration said when the artefact was written must still be said."""
    found = normal(config)
    for key, value in manifest.architecture.items():
        if found.get(key) != value:
            raise BrokenFile(
                f"the configuration says {key} = {found.get(key)!r}, the weights were saved with "
                f"{value!r}"
            )


def normal(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration as JSON gives it back, without private keys and our own part."""
    public = {
        k: v for k, v in config.items() if not k.startswith("_") and k != "quantization_config"
    }
    result: dict[str, Any] = json.loads(json.dumps(public, default=str))
    return result


def _header_of(tensors: Mapping[str, Tensor]) -> Header:
    stored = {name: Stored(t.dtype, tuple(t.shape)) for name, t in tensors.items()}
    return Header(Path("memory"), stored, {})
