"""A recipe: a method, its bits and its settings, checked as a whole; from a name or a file."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from fewbit import registry
from fewbit.errors import BadArgument
from fewbit.files import checked_path
from fewbit.methods.method import Method, Rule


@dataclass(frozen=True)
class Recipe:
    method: Method
    bits: str
    settings: Any  # the method's own

    @classmethod
    def make(cls, method: str | Method, bits: str | None, settings: Mapping[str, Any]) -> Recipe:
        found = method if isinstance(method, Method) else method_named(method)
        own = dict(settings)
        if bits is not None and are_presets(found, str(bits)):  # as in best:tiny
            own, bits = {"preset": bits, **own}, None
        preset = _of_presets(found, own.pop("preset", None))
        preset_bits = preset.pop("bits", None)
        settings = {**preset, **own}  # what is said beside a preset counts more
        known = [one.name for one in fields(found.settings)]
        for name in settings:
            if name not in known:
                raise BadArgument(
                    f"{found.name} has no setting {name!r}; its settings: {', '.join(known)}"
                )
        return cls(
            found, _bits(found, preset_bits if bits is None else bits), found.settings(**settings)
        )

    @classmethod
    def resolve(
        cls, recipe: str | Path | Method, bits: str | None, settings: Mapping[str, Any]
    ) -> Recipe:
        """A name or a JSON file as `to_dict` gives it, perhaps with bits or presets after a colon,
        or a method that is in no folder of fewbit's. Arguments override what the file says."""
        if isinstance(recipe, Method):
            return cls.make(recipe, bits, settings)
        recipe, bits = _one_of_both(recipe, bits)
        if not recipe.endswith(".json"):
            return cls.make(recipe, bits, settings)
        content = _read(checked_path("the recipe file", recipe))
        return cls.make(
            content["method"],
            content["bits"] if bits is None else bits,
            {**content["settings"], **settings},
        )

    def to_dict(self) -> dict[str, Any]:
        return {"method": self.method.name, "bits": self.bits, "settings": asdict(self.settings)}

    @property
    def variant(self) -> Rule:
        return self.method.variants[self.bits]

    def __str__(self) -> str:
        return f"{self.method.name}:{self.bits}"


def unknown_part(recipe: Mapping[str, Any]) -> str | None:
    """What this version of fewbit does not know of a recipe that a file tells; None if all."""
    try:
        Recipe.make(recipe["method"], recipe["bits"], recipe["settings"])
    except BadArgument as error:
        return str(error)
    return None


@dataclass(frozen=True)
class SettingInfo:
    """A setting of a recipe: its default, what else is allowed, one line of help."""

    name: str
    default: Any
    allowed: str
    help: str


@dataclass(frozen=True)
class RecipeInfo:
    """What a recipe is called, can do and can be told."""

    name: str
    bits: tuple[str, ...]
    calibrated: bool
    summary: str
    presets: Mapping[str, Mapping[str, Any]]
    settings: tuple[SettingInfo, ...]


def recipes() -> list[RecipeInfo]:
    """List all recipes by name, each with its bits (the default first), presets and settings."""
    return [
        RecipeInfo(name, tuple(m.variants), m.calibrated, m.summary, m.presets, _settings(m))
        for name, m in sorted(_methods().items())
    ]


def _settings(method: Method) -> tuple[SettingInfo, ...]:
    return tuple(
        SettingInfo(one.name, one.default, str(one.metadata["limits"]), one.metadata["help"])
        for one in fields(method.settings)
    )


def method_named(name: str) -> Method:
    found: Any = registry.find("methods", "METHOD.name", name)
    if found is None:
        raise BadArgument(f"unknown recipe {name!r}; recipes: {', '.join(sorted(_methods()))}")
    method: Method = found.METHOD
    return method


def _methods() -> dict[str, Method]:
    modules: dict[str, Any] = registry.modules("methods", "METHOD.name")
    return {name: module.METHOD for name, module in modules.items()}


def split_bits(recipe: str) -> tuple[str, str | None]:
    """`rtn:w8a8` as recipe and bits."""
    name, colon, bits = recipe.rpartition(":")
    return (recipe, None) if not colon or bits.endswith(".json") else (name, bits)


def _one_of_both(recipe: str | Path, bits: str | None) -> tuple[str, str | None]:
    name, own = split_bits(str(recipe))
    if own is not None and bits is not None:
        raise BadArgument(
            f"recipe {str(recipe)!r} names its bits, so bits={bits!r} is one too many"
        )
    return name, bits if own is None else own


def _bits(method: Method, bits: str | None) -> str:
    if bits is None:
        return next(iter(method.variants))
    full = str(bits).lower()
    short = full.startswith("w") and "a" not in full
    if short:
        full = f"{full}a16"
    if full not in method.variants:
        presets = f"; or a preset: {', '.join(method.presets)}" if method.presets else ""
        raise BadArgument(
            f"{method.name} has no bits {bits!r}; allowed: {', '.join(method.variants)}{presets}"
        )
    if short:
        _say_weights_only(method, bits, full)
    return full


def _say_weights_only(method: Method, bits: str | None, full: str) -> None:
    """Who writes `w4` may have meant the inputs too, where the recipe has bits for both."""
    start = full.removesuffix("16")
    others = [name for name in method.variants if name.startswith(start) and name != full]
    if others:
        warnings.warn(
            f"{method.name} takes bits {bits!r} as {full}: weights only; with inputs: "
            f"{', '.join(others)}",
            stacklevel=2,
        )


def are_presets(method: Method, names: str) -> bool:
    return all(name in method.presets for name in names.split("+"))


def _of_presets(method: Method, names: object) -> dict[str, Any]:
    """The settings that presets stand for, perhaps bits among them; of several that are joined, as
    in `small+fast`, the last has the last word."""
    given: dict[str, Any] = {}
    for name in [] if names is None else str(names).split("+"):
        if name not in method.presets:
            allowed = ", ".join(method.presets) or "none"
            raise BadArgument(f"{method.name} has no preset {name!r}; allowed: {allowed}")
        given |= method.presets[name]
    return given


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise BadArgument(f"cannot read the recipe file {path}: {error}") from None
    expected = {"method": str, "bits": str, "settings": dict}
    if not isinstance(content, dict) or content.keys() != expected.keys():
        raise BadArgument(f"{path} must hold exactly the keys {', '.join(expected)}")
    for key, kind in expected.items():
        if not isinstance(content[key], kind):
            raise BadArgument(f"{path}: {key} must be a {kind.__name__}, got {content[key]!r}")
    return content
