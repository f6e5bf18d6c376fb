"""A work folder: what is finished is written there and never computed again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fewbit.engine.report import LayerReport
from fewbit.errors import BadOutput, BrokenFile
from fewbit.files import held
from fewbit.layers.linear import quantized_layers
from fewbit.storage.blueprint import apply_blueprint, blueprint_of, by_name, quantized_tensors
from fewbit.storage.entries import Entries, Entry
from fewbit.storage.folder import put
from fewbit.storage.tensors import stored_once

RUN, SURVEY, TUNED = "run", "survey", "tuned"
LOCK = "lock"


@dataclass(frozen=True)
class BlockDone:
    layers: list[LayerReport]
    warnings: list[str]


class Workdir:
    """Belongs to one run, which `key` describes: same model, recipe, seed and data."""

    def __init__(self, path: Path, key: Mapping[str, Any]) -> None:
        key = json.loads(json.dumps(key))  # as it will be read
        whose = Entries(path)
        before = whose.read(RUN)
        if before is None:
            whose.write(RUN, Entry({}, key))
        elif before.table != key:
            differs = ", ".join(name for name in key if before.table.get(name) != key[name])
            raise BadOutput(
                f"{path} holds the work of another run, which differs in: {differs}; "
                "choose another folder or delete it"
            )
        self.entries = Entries(path, seal=json.dumps(key, sort_keys=True), notes=whose.notes)
        self.entries.clear_leftovers()

    def finished(self, block: int) -> bool:
        return self.entries.read(_name(block)) is not None

    def save(self, model: nn.Module, name: str, block: int, done: BlockDone) -> None:
        """The quantized layers of the block called `name`, and what is said of them."""
        state = quantized_tensors(model, inside=name)
        kept, aliases = stored_once(state)
        said = {"entries": blueprint_of(model, inside=name), "aliases": aliases, **asdict(done)}
        self.entries.write(_name(block), Entry({key: state[key] for key in kept}, said))

    def restore(self, model: nn.Module, block: int) -> BlockDone:
        """Put a finished block's layers into the model."""
        entry = self.entries.read(_name(block))
        if entry is None:
            raise BrokenFile(f"{self.entries.path(_name(block))} was lost while it was needed")
        said = entry.table
        apply_blueprint(model, said["entries"])
        modules = by_name(model)
        for name in [*entry.tensors, *said["aliases"]]:
            put(modules, name, entry.tensors[said["aliases"].get(name, name)])
        layers = [LayerReport(**layer) for layer in said["layers"]]
        return BlockDone(layers, said["warnings"])

    def save_tuned(self, model: nn.Module) -> None:
        """All quantized layers, after the whole model was changed once more."""
        state = {
            f"{name}.{key}": tensor
            for name, layer in quantized_layers(model).items()
            for key, tensor in layer.state_dict().items()
        }
        self.entries.write(TUNED, Entry(state))

    def restore_tuned(self, model: nn.Module) -> bool:
        """Whether there was something to put into the model."""
        entry = self.entries.read(TUNED)
        if entry is not None:
            modules = by_name(model)
            for name, tensor in entry.tensors.items():
                put(modules, name, tensor)
        return entry is not None

    def save_survey(self, survey: Mapping[str, Tensor]) -> None:
        """What the method learnt of the whole model before it began."""
        self.entries.write(SURVEY, Entry(survey))

    def survey(self) -> Mapping[str, Tensor] | None:
        entry = self.entries.read(SURVEY)
        return None if entry is None else entry.tensors


def alone_in(folder: Path | None) -> ExitStack:
    """No other run works in the folder until the end of the block, where folders can be locked."""
    if folder is None:
        return ExitStack()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / LOCK).touch()
        return held(folder / LOCK)
    except BlockingIOError:
        raise BadOutput(
            f"another run is working in {folder}; wait for its end, or choose another folder"
        ) from None
    except OSError:
        return ExitStack()


def _name(block: int) -> str:
    return f"block-{block:04}"
