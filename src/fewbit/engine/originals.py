"""A model as it was before it was quantized, ready to be put back."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, UntypedStorage, nn

from fewbit.engine.parking import parked

_CONTAINERS = (dict, OrderedDict, list, set)


class Originals:
    """Its modules with their attributes, and its tensors: references, hardly a copy.

    Weights that the model has lost can be parked in a file, so that they cost no memory while
    the other blocks are quantized.
    """

    def __init__(self, model: nn.Module, folder: Path | None = None) -> None:
        self.model, self.folder = model, folder
        self.modules = [_Module(module) for module in model.modules()]
        self.tensors = [_Tensor(tensor) for tensor in _tensors(model)]
        self.nbytes = sum(one.data.nbytes for one in self.tensors)

    @contextmanager
    def back_on_failure(self) -> Iterator[Originals]:
        """Whatever is raised inside, Ctrl-C included, leaves the model as it was."""
        try:
            yield self
        except BaseException:
            self.put_back()
            raise

    def put_back(self) -> None:
        for module in self.modules:
            module.put_back()
        homes: dict[int, UntypedStorage] = {}
        for tensor in self.tensors:
            tensor.put_back(homes)

    def park(self) -> None:
        """Move the storages that the model no longer uses into a file, where there is room.

        A tensor that somebody else holds keeps its values: it is mapped from that file.
        """
        in_use = {tensor.untyped_storage().data_ptr() for tensor in _tensors(self.model)}
        lost: dict[int, list[_Tensor]] = {}
        for tensor in self.tensors:
            if tensor.is_parkable and (place := tensor.storage.data_ptr()) not in in_use:
                lost.setdefault(place, []).append(tensor)
        storages = [users[0].storage for users in lost.values()]
        found = parked(storages, self.folder, spare=self.nbytes) if storages else None
        for users, storage in zip(lost.values(), found or (), strict=False):
            for tensor in users:
                tensor.park(storage)


class _Tensor:
    """One parameter or buffer, with the data it had."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.data, self.requires_grad = tensor, tensor.data, tensor.requires_grad
        self.is_parked = False

    @property
    def storage(self) -> UntypedStorage:
        return self.data.untyped_storage()

    @property
    def is_parkable(self) -> bool:
        """Memory of other devices, and tensors that are not plain, stay where they are."""
        plain = type(self.data) is Tensor and self.data.layout == torch.strided
        return plain and self.data.is_cpu and self.data.nbytes > 0 and not self.is_parked

    def park(self, storage: UntypedStorage) -> None:
        self.data, self.is_parked = _seen_in(storage, self.data), True
        self.tensor.data = self.data

    def put_back(self, homes: dict[int, UntypedStorage]) -> None:
        """From a file into memory; `homes` has the copies of those that others share."""
        if self.is_parked:
            place = self.storage.data_ptr()
            home = homes[place] = homes.get(place) or self.storage.clone()
            self.tensor.data = _seen_in(home, self.data)
        else:
            self.tensor.data = self.data
        self.tensor.requires_grad_(self.requires_grad)


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    return chain(model.parameters(), model.buffers())


def _seen_in(storage: UntypedStorage, like: Tensor) -> Tensor:
    """What `like` shows of its own storage, shown of this one."""
    view = torch.empty(0, dtype=like.dtype, device=storage.device)
    return view.set_(storage, like.storage_offset(), like.size(), like.stride())


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
