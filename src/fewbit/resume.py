"""A working folder: a finished block is written there and never computed again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fewbit.blueprint import (
    apply_blueprint,
    blueprint_of,
    by_name,
    quantized_layers,
    quantized_tensors,
)
from fewbit.errors import BadOutput
from fewbit.files import replacing, write_text
from fewbit.folder import put
from fewbit.header import read_header
from fewbit.report import LayerReport
from fewbit.tensors import stored_once

KEY, SURVEY = "run.json", "survey.safetensors"


@dataclass(frozen=True)
class BlockDone:
    layers: list[LayerReport]
    warnings: list[str]


class Workdir:
    """Belongs to one run, which `key` describes: same model, recipe, seed and data."""

    def __init__(self, path: Path, key: dict[str, Any]) -> None:
        self.path = path
        said = json.dumps(key, sort_keys=True, indent=1)
        place = path / KEY
        if not place.exists():
            write_text(place, said)
        elif place.read_text() != said:
            before = _read(place)
            differs = ", ".join(name for name in key if before.get(name) != key[name])
            raise BadOutput(
                f"{path} holds the work of another run, which differs in: {differs}; "
                "choose another folder or delete it"
            )

    def finished(self, block: int) -> bool:
        return self._file(block).exists()

    def save(self, model: nn.Module, name: str, block: int, done: BlockDone) -> None:
        """The quantized layers of the block called `name`, and what is said of them."""
        state = quantized_tensors(model, inside=name)
        kept, aliases = stored_once(state)
        said = {
            "entries": blueprint_of(model, inside=name),
            "aliases": aliases,
            **asdict(done),
        }
        with replacing(self._file(block)) as aside:
            contiguous = {key: state[key].contiguous() for key in kept}
            save_file(contiguous, aside, {KEY: json.dumps(said)})

    @property
    def tuned(self) -> bool:
        return self._tuned.exists()

    def save_tuned(self, model: nn.Module) -> None:
        """All quantized layers, after the whole model was changed once more."""
        state = {
            f"{name}.{key}": tensor
            for name, layer in quantized_layers(model).items()
            for key, tensor in layer.state_dict().items()
        }
        with replacing(self._tuned) as aside:
            save_file({name: tensor.clone() for name, tensor in state.items()}, aside)

    def restore_tuned(self, model: nn.Module) -> None:
        modules = by_name(model)
        for name, tensor in load_file(self._tuned).items():
            put(modules, name, tensor)

    def restore(self, model: nn.Module, block: int) -> BlockDone:
        """Put a finished block's layers into the model."""
        file = self._file(block)
        said = json.loads(read_header(file).metadata[KEY])
        apply_blueprint(model, said["entries"])
        tensors, modules = load_file(file), by_name(model)
        for name in [*tensors, *said["aliases"]]:
            put(modules, name, tensors[said["aliases"].get(name, name)])
        layers = [LayerReport(**layer) for layer in said["layers"]]
        return BlockDone(layers, said["warnings"])

    @property
    def _tuned(self) -> Path:
        return self.path / "tuned.safetensors"

    @property
    def surveyed(self) -> bool:
        return (self.path / SURVEY).exists()

    def save_survey(self, survey: Mapping[str, Tensor]) -> None:
        """What the method learnt of the whole model before it began."""
        with replacing(self.path / SURVEY) as aside:
            save_file(dict(survey), aside)

    def restore_survey(self) -> dict[str, Tensor]:
        return load_file(self.path / SURVEY)

    def _file(self, block: int) -> Path:
        return self.path / f"block-{block:04}.safetensors"


def _read(place: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(place.read_text()))
    except (ValueError, TypeError):
        raise BadOutput(f"{place} is not of a run; choose another folder or delete it") from None
