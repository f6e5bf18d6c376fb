"""A recipe: a method, its bits and its settings, checked as a whole; from a name or a file."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, cast

from fewbit import registry
from fewbit.errors import BadArgument
from fewbit.files import checked_path
from fewbit.methods.method import Method, Rule


@dataclass(frozen=True)
class Recipe:
    method: str
    bits: str
    settings: Any  # the method's own Settings

    @classmethod
    def make(cls, method: str, bits: str | None, settings: Mapping[str, Any]) -> Recipe:
        found = method_named(method)
        bits = _bits(found, bits)
        settings = _with_preset(found, settings)
        known = [f.name for f in fields(cast(Any, found.Settings))]
        for name in settings:
            if name not in known:
                raise BadArgument(
                    f"{method} has no setting {name!r}; its settings: {', '.join(known)}"
                )
        return cls(method, bits, found.Settings(**settings))

    @classmethod
    def resolve(cls, recipe: str | Path, bits: str | None, settings: Mapping[str, Any]) -> Recipe:
        """A name or a JSON file as `to_dict` gives it, perhaps with bits after a colon.

        Arguments override what the file says.
        """
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
        return {"method": self.method, "bits": self.bits, "settings": asdict(self.settings)}

    @property
    def implementation(self) -> Method:
        return method_named(self.method)

    @property
    def variant(self) -> Rule:
        return self.implementation.VARIANTS[self.bits]

    def __str__(self) -> str:
        return f"{self.method}:{self.bits}"


@dataclass(frozen=True)
class RecipeInfo:
    """One line of `fewbit recipes`."""

    name: str
    bits: tuple[str, ...]
    calibrated: bool
    summary: str


def recipes() -> list[RecipeInfo]:
    """All recipes by name, the default bits first."""
    return [
        RecipeInfo(name, tuple(m.VARIANTS), m.CALIBRATED, m.SUMMARY)
        for name, m in sorted(_methods().items())
    ]


def method_named(name: str) -> Method:
    found = registry.find("methods", "NAME", name)
    if found is None:
        raise BadArgument(f"unknown recipe {name!r}; recipes: {', '.join(sorted(_methods()))}")
    return cast(Method, found)


def _methods() -> dict[str, Method]:
    return cast(dict[str, Method], registry.modules("methods", "NAME"))


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
        return next(iter(method.VARIANTS))
    full = str(bits).lower()
    short = full.startswith("w") and "a" not in full
    if short:
        full = f"{full}a16"
    if full not in method.VARIANTS:
        raise BadArgument(
            f"{method.NAME} has no bits {bits!r}; allowed: {', '.join(method.VARIANTS)}"
        )
    if short:
        _say_weights_only(method, bits, full)
    return full


def _say_weights_only(method: Method, bits: str | None, full: str) -> None:
    """Who writes `w4` may have meant the inputs too, where the recipe has bits for both."""
    start = full.removesuffix("16")
    others = [name for name in method.VARIANTS if name.startswith(start) and name != full]
    if others:
        warnings.warn(
            f"{method.NAME} takes bits {bits!r} as {full}: weights only; with inputs: "
            f"{', '.join(others)}",
            stacklevel=2,
        )


def _with_preset(method: Method, settings: Mapping[str, Any]) -> dict[str, Any]:
    """`preset` stands for several settings; what is said beside it counts more."""
    own = dict(settings)
    preset = own.pop("preset", None)
    if preset is None:
        return own
    if preset not in method.PRESETS:
        allowed = ", ".join(method.PRESETS) or "none"
        raise BadArgument(f"{method.NAME} has no preset {preset!r}; allowed: {allowed}")
    return {**method.PRESETS[preset], **own}


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
