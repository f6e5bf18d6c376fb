"""The lists of a model whose members may be its blocks: what the modules themselves show."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

DECLARED = ("_repeated_blocks", "_no_split_modules")  # class names of blocks, where diffusers says
FEWEST = 2  # linears of a block that attends; a block that does not has one more


def candidates(model: nn.Module) -> dict[str, nn.Module]:
    """Block name -> block, of the topmost lists whose members each hold linears enough.

    A list of stages is no list of blocks: where a member holds modules of a class that the model
    declares to be its block, the lists inside are looked at.
    """
    return dict(_inside("", model, _declared(model)))


def lists_of(model: nn.Module) -> dict[str, int]:
    """Every list of modules with its length."""
    return {name: len(m) for name, m in model.named_modules() if _is_list(m)}


def linears_in(module: nn.Module) -> dict[str, nn.Linear]:
    """By path; a linear that goes by two names under the first."""
    return {name: part for name, part in module.named_modules() if isinstance(part, nn.Linear)}


def _inside(name: str, module: nn.Module, declared: set[str]) -> Iterator[tuple[str, nn.Module]]:
    for own, child in module.named_children():
        path = f"{name}.{own}" if name else own
        if _is_list(child) and _holds_blocks(child, declared):
            yield from ((f"{path}.{index}", block) for index, block in child.named_children())
        else:
            yield from _inside(path, child, declared)


def _is_list(module: nn.Module) -> bool:
    return isinstance(module, nn.ModuleList | nn.Sequential)


def _holds_blocks(members: nn.Module, declared: set[str]) -> bool:
    blocks = list(members.children())
    if not blocks or any(isinstance(block, nn.ModuleList) for block in blocks):
        return False
    if any(_holds_declared(block, declared) for block in blocks):
        return False
    return all(len(linears_in(block)) >= FEWEST for block in blocks)


def _holds_declared(block: nn.Module, declared: set[str]) -> bool:
    """Whether lists of declared blocks lie further inside."""
    lists = [part for part in block.modules() if _is_list(part)]
    return any(type(member).__name__ in declared for each in lists for member in each.children())


def _declared(model: nn.Module) -> set[str]:
    return {name for field in DECLARED for name in getattr(model, field, None) or ()}
