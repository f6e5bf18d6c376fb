"""A model as it was before it was quantized, ready to be put back."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import nn

_CONTAINERS = (dict, OrderedDict, list, set)


class Originals:
    """Its modules with their attributes, and its tensors: references, hardly a copy.

    So the full-precision weights stay in memory until the whole model is quantized.
    """

    def __init__(self, model: nn.Module) -> None:
        self.modules = [_Module(module) for module in model.modules()]
        tensors = chain(model.parameters(), model.buffers())
        self.tensors = [(tensor, tensor.data, tensor.requires_grad) for tensor in tensors]

    @contextmanager
    def back_on_failure(self) -> Iterator[None]:
        """Whatever is raised inside, Ctrl-C included, leaves the model as it was."""
        try:
            yield
        except BaseException:
            self.put_back()
            raise

    def put_back(self) -> None:
        for module in self.modules:
            module.put_back()
        for tensor, data, requires_grad in self.tensors:
            tensor.data = data
            tensor.requires_grad_(requires_grad)


class _Module:
    """One module: its class, its attributes, and what was in those that are containers."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.cls = module, type(module)
        self.attributes = dict(vars(module))
        self.contents = {
            name: value.copy()
            for name, value in self.attributes.items()
            if type(value) in _CONTAINERS
        }

    def put_back(self) -> None:
        self.module.__class__ = self.cls
        vars(self.module).clear()
        vars(self.module).update(self.attributes)
        for name, content in self.contents.items():
            _refill(self.attributes[name], content)


def _refill(container: Any, content: Any) -> None:
    """In its place: hooks and others hold on to the container itself."""
    container.clear()
    if isinstance(container, list):
        container.extend(content)
    else:
        container.update(content)


@contextmanager
def written_on_copies(block: nn.Module) -> Iterator[None]:
    """Whoever writes into a tensor of the block writes into a copy. Afterwards those that still
    belong to the block keep what was written; all others are what they were."""
    before = {tensor: tensor.data for tensor in chain(block.parameters(), block.buffers())}
    for tensor, data in before.items():
        tensor.data = data.clone()
    try:
        yield
    finally:
        still = set(chain(block.parameters(), block.buffers()))
        for tensor, data in before.items():
            if tensor not in still or torch.equal(tensor.data.to(data.device), data):
                tensor.data = data
