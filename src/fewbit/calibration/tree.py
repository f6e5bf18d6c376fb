"""Nested arguments: the leaves inside dicts, lists and tuples, visited and replaced in order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor


def rebuild(tree: Any, visit: Callable[[str, Any], Any], path: str = "") -> Any:
    """The same nesting with visit(path, leaf) where each leaf was."""

    def inside(key: object, value: Any) -> Any:
        return rebuild(value, visit, f"{path}.{key}" if path else str(key))

    if isinstance(tree, Mapping):
        return {key: inside(key, value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        values = [inside(index, value) for index, value in enumerate(tree)]
        return tree._make(values) if hasattr(tree, "_make") else type(tree)(values)
    return visit(path, tree)


def map_tensors(tree: Any, change: Callable[[Tensor], Any]) -> Any:
    return rebuild(tree, lambda _, leaf: change(leaf) if isinstance(leaf, Tensor) else leaf)


def tensors(tree: Any) -> dict[str, Tensor]:
    """Every tensor by its path, in order."""
    found: dict[str, Tensor] = {}

    def note(path: str, leaf: Any) -> None:
        if isinstance(leaf, Tensor):
            found[path] = leaf

    rebuild(tree, note)
    return found
