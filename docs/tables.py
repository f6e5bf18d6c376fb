"""Fill the generated parts of the documents: `python docs/tables.py`.

A part stands between `<!-- NAME ARGUMENT -->` and `<!-- end -->`, and a function of this file
writes it from the code: the bits, presets and settings of a recipe, and the floors of the house.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from fewbit.engine.recipe import RecipeInfo, method_named, recipes
from fewbit.formats import Spec
from fewbit.kernels.values import has_integers
from fewbit.storage.foreign import comfy, gguf

DOCS = Path(__file__).parent
HOUSE = DOCS.parent / "tests" / "test_house.py"
PART = re.compile(r"(<!-- (\w+)(?: ([\w-]+))? -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> None:
    for document in sorted(DOCS.glob("*.md")):
        text = document.read_text()
        if (new := filled(text)) != text:
            document.write_text(new)
            print(document.relative_to(DOCS.parent))


def filled(text: str) -> str:
    """The document with each of its generated parts written anew."""
    return PART.sub(lambda m: f"{m[1]}\n{PARTS[m[2]](m[3])}\n{m[4]}", text)


def bits(recipe: str) -> str:
    rows = [
        (
            f"`{name}`",
            f"`{rule.weight}`",
            f"`{rule.activation}`" if rule.activation else "as they are",
        )
        for name, rule in method_named(recipe).variants.items()
    ]
    return _table(("bits", "weights", "inputs"), rows)


def presets(recipe: str) -> str:
    rows = [
        (f"`{name}`", ", ".join(f"`{key}={value}`" for key, value in settings.items()))
        for name, settings in _info(recipe).presets.items()
    ]
    return _table(("preset", "stands for"), rows)


def settings(recipe: str) -> str:
    rows = [
        (f"`{one.name}`", f"`{one.default}`", one.allowed, one.help)
        for one in _info(recipe).settings
    ]
    return _table(("setting", "default", "allowed", "what it is"), rows)


def floors(_: str) -> str:
    """The highest floor first, each with its rooms."""
    lines = [
        f"  {number:>2} | {'  '.join(sorted(rooms))}"
        for number, rooms in reversed(list(enumerate(_floors())))
    ]
    return "\n".join(["```text", *lines, "```", ""])


def files(_: str) -> str:
    """The formats of other runtimes, those of ComfyUI first."""
    written = {kind: name for name, kind in comfy.WRITTEN.items()}
    rows = [
        _file(f"ComfyUI `{name}`", kind.spec, kind.activation, written.get(name), "comfy-kitchen")
        for name, kind in comfy.KINDS.items()
    ] + [
        _file(f"GGUF `{block.name}`", block.spec, None, f"gguf-{block.name}", "gguf")
        for block in gguf.BLOCKS
    ]
    return _table(("format", "read as", "write", "inputs", "runs on", "exact", "judge"), rows)


def _file(
    name: str, spec: Spec, activation: Spec | None, target: str | None, judge: str
) -> Sequence[str]:
    codes = activation is not None and has_integers(spec)
    panels = "native, torch, reference" if has_integers(spec) else "torch, reference; unpacked"
    return (
        name,
        f"`{spec}`",
        "no" if target is None else f"`{target}`",
        f"`{activation}`" if activation else "as they are",
        f"{panels}, products of {'integers' if codes else 'floats'}",
        "weights and integer sums" if codes else "weights",
        judge,
    )


def _floors() -> Sequence[set[str]]:
    """What tests/test_house.py holds every import to."""
    for node in ast.parse(HOUSE.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "FLOORS":
            found: Sequence[set[str]] = ast.literal_eval(node.value)
            return found
    raise LookupError(f"no FLOORS in {HOUSE}")


def _info(recipe: str) -> RecipeInfo:
    return next(one for one in recipes() if one.name == recipe)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(_lines([head, ["---"] * len(head), *rows])) + "\n"


def _lines(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    return (f"| {' | '.join(row)} |" for row in rows)


PARTS: dict[str, Callable[[str], str]] = {
    one.__name__: one for one in (bits, presets, settings, files, floors)
}


if __name__ == "__main__":
    main()
