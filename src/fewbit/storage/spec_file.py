"""The spec of a model as JSON: a file that a person edits, or a part of a `config.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from fewbit.errors import BadArgument, BrokenFile, FewbitError
from fewbit.files import checked_path
from fewbit.models import SPEC, ModelSpec, denoises, describe
from fewbit.storage.strict_json import read_table

KEY = "spec"  # in the quantization_config
MOST_PATTERNS = 10_000
Given = ModelSpec | Mapping[str, Any] | str | Path | None


def spec_from(given: object) -> ModelSpec | None:
    """A spec in whatever way a person gives it: itself, a table, or a file that holds one."""
    if given is None or isinstance(given, ModelSpec):
        return given
    if isinstance(given, Mapping):
        return ModelSpec.from_dict(given)
    path = _path(given)
    try:
        return ModelSpec.from_dict(read_table(path))
    except BadArgument as error:
        raise BadArgument(f"{path}: {error}") from None


def specs_from(given: object, names: Sequence[str]) -> dict[str, ModelSpec | None]:
    """The spec of each component. A table or a file may give each its own, under its name; one spec
    alone is that of the networks that denoise."""
    table = read_table(_path(given)) if isinstance(given, str | Path) else given
    if isinstance(table, Mapping) and table and table.keys() <= set(names):
        return {name: spec_from(table.get(name)) for name in names}
    told = spec_from(given)
    return {name: told if denoises(name) else None for name in names}


def _path(given: object) -> Path:
    if not isinstance(given, str | Path):
        raise BadArgument(
            "spec must be a fewbit.ModelSpec, a table of its fields or the path of a JSON file, "
            f"got {type(given).__name__}"
        )
    return checked_path("spec", given)


def remember_spec(model: Any, config: Mapping[str, Any], where: Path) -> None:
    """Give the model the spec that its configuration holds; older ones hold none."""
    content = config.get(KEY)
    if content is None:
        return
    try:
        _refuse_many(content)
        spec = ModelSpec.from_dict(content)
        describe(model, spec)
    except Exception as error:  # a forged table makes what reads it fail in any way
        said = str(error) if isinstance(error, FewbitError) else repr(error)
        raise BrokenFile(f"{where}: the spec does not suit the model: {said:.300}") from None
    setattr(model, SPEC, spec)


def stored_spec(model: nn.Module) -> dict[str, Any]:
    """What a quantization_config says beside the manifest's part."""
    spec = getattr(model, SPEC, None)
    return {} if spec is None else {KEY: as_stored(spec)}


def as_stored(spec: ModelSpec) -> dict[str, Any]:
    """Tables as lists of pairs: their order counts, and diffusers sorts tables."""
    content = spec.to_dict()
    return {
        name: list(map(list, value.items())) if isinstance(value, Mapping) else value
        for name, value in content.items()
    }


def _refuse_many(content: object) -> None:
    """Each pattern is tried on each layer."""
    count, waiting = 0, [content]
    while waiting and count <= MOST_PATTERNS:
        part = waiting.pop()
        if isinstance(part, Mapping | list):
            waiting += part.values() if isinstance(part, Mapping) else part
            count += len(part)
    if count > MOST_PATTERNS:
        raise BadArgument(f"it holds more than {MOST_PATTERNS} patterns")
