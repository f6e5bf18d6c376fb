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


def shapes(tree: Any) -> str:
    """The same for trees that differ in nothing but the numbers in their tensors."""

    def outline(_: str, leaf: Any) -> Any:
        return (leaf.dtype, leaf.shape) if isinstance(leaf, Tensor) else leaf

    return repr(rebuild(tree, outline))


def by_rows(x: Tensor, rows: int) -> Tensor:
    """x [..., channels] as [rows, tokens, channels]; what cannot be told apart by rows is dealt out
    in equal parts."""
    tokens = x.reshape(-1, x.shape[-1])
    return tokens[: len(tokens) // rows * rows].view(rows, -1, x.shape[-1])
