"""A folder of a quantized model, opened and checked as far as that goes without its tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fewbit.errors import BrokenFile
from fewbit.storage.blueprint import apply_blueprint
from fewbit.storage.header import Header, read_header
from fewbit.storage.manifest import Manifest, validate
from fewbit.storage.spec_file import remember_spec
from fewbit.storage.strict_json import read_table
from fewbit.storage.tensors import checked_tensors

CONFIG, PIPELINE_INDEX, WEIGHTS = "config.json", "model_index.json", "model.safetensors"
DIFFUSERS_WEIGHTS = "diffusion_pytorch_model.safetensors"
LONGEST_NAME = 256  # no file system takes a longer one
INDICES = tuple(f"{name}.index.json" for name in (WEIGHTS, DIFFUSERS_WEIGHTS))


@dataclass(frozen=True)
class Artefact:
    folder: Path
    config: dict[str, Any]  # what config.json says, which is what the manifest says
    manifest: Manifest
    headers: list[Header]

    @classmethod
    def open(cls, folder: Path) -> Artefact:
        index = next((folder / name for name in INDICES if (folder / name).exists()), None)
        headers = _one_header(folder) if index is None else _headers_by_index(index)
        return cls._checked(folder, headers)

    @classmethod
    def of_files(cls, files: Sequence[Path]) -> Artefact:
        """For whoever has chosen the weight files already; all lie in one folder."""
        folder = files[0].parent
        for file in files:
            if file.parent != folder:
                raise BrokenFile(f"{file} lies outside of {folder}, where its artefact is")
        return cls._checked(folder, [read_header(file) for file in files])

    @classmethod
    def _checked(cls, folder: Path, headers: list[Header]) -> Artefact:
        manifest = Manifest.from_headers(headers)
        config = read_table(folder / CONFIG)
        _refuse_other_config(folder / CONFIG, config, manifest)
        return cls(folder, config, manifest, headers)

    def tensors(self) -> AbstractContextManager[dict[str, Tensor]]:
        """All of them, as `checked_tensors` gives them."""
        return checked_tensors(self.headers, self.manifest.crc32)

    def extent(self) -> tuple[int, int]:
        """How many tensors the model has at most, and the longest side of one."""
        stored = [tensor for header in self.headers for tensor in header.tensors.values()]
        widest = max((side for tensor in stored for side in tensor.shape), default=0)
        return len(stored) + len(self.manifest.aliases), widest

    def prepare(self, model: nn.Module) -> None:
        """Make a full-precision skeleton ready to take the tensors."""
        remember_spec(model, self.config["quantization_config"], self.folder / CONFIG)
        apply_blueprint(model, self.manifest.layers)
        validate(model, self.manifest, self.headers)


def class_named_in(config: Mapping[str, Any]) -> str:
    """As diffusers says it, or as transformers does."""
    architectures = config.get("architectures")
    first = architectures[0] if isinstance(architectures, list) and architectures else None
    return str(config.get("_class_name", first))


def _one_header(folder: Path) -> list[Header]:
    for name in (WEIGHTS, DIFFUSERS_WEIGHTS):
        if (folder / name).exists():
            return [read_header(folder / name)]
    raise BrokenFile(
        f"{folder} holds no weights: neither {WEIGHTS} nor {DIFFUSERS_WEIGHTS} nor an "
        "index of several"
    )


def _headers_by_index(index: Path) -> list[Header]:
    """The files an index names, each holding just the tensors the index says."""
    table = read_table(index).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise BrokenFile(f"{index} has no valid weight_map")
    files: dict[str, set[str]] = {}
    for tensor, name in table.items():
        if not isinstance(name, str):
            raise BrokenFile(f"{index}: the file of {tensor[:200]!r} is not a name")
        files.setdefault(name, set()).add(tensor)
    headers = {name: read_header(_shard(index, name)) for name in sorted(files)}
    for name, header in headers.items():
        if files[name] != header.tensors.keys():
            raise BrokenFile(f"{index} and {name} disagree about the tensors in it")
    return list(headers.values())


def _shard(index: Path, name: str) -> Path:
    """A shard lies in the folder itself, whatever an index says."""
    plain = Path(name).name == name and name.isprintable() and len(name) < LONGEST_NAME
    if not plain or not name.endswith(".safetensors"):
        raise BrokenFile(f"{index} names {name[:200]!r}, which is no safetensors file beside it")
    if not (index.parent / name).exists():
        raise BrokenFile(f"{index} names the file {name[:200]!r}, which is missing")
    return index.parent / name


def _refuse_other_config(path: Path, config: dict[str, Any], manifest: Manifest) -> None:
    """What the configuration said when the artefact was written must still be said."""
    said = config.get("quantization_config")
    if not isinstance(said, dict):
        raise BrokenFile(f"{path} has no quantization_config, but the weights are quantized")
    named = {"_class_name": class_named_in(config)}
    _refuse_difference(path, named, {"_class_name": manifest.class_name})
    _refuse_difference(path, config, manifest.architecture)
    _refuse_difference(path, said, manifest.quantization_config())


def _refuse_difference(path: Path, found: dict[str, Any], expected: dict[str, Any]) -> None:
    for key, value in expected.items():
        if key not in found or found[key] != value:
            raise BrokenFile(
                f"{path} says {key} = {str(found.get(key))[:80]!r}, the weights were saved with "
                f"{str(value)[:80]!r}"
            )
