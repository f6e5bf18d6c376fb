"""Which tensors a module holds, and whether anybody has moved, written or exchanged one since."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

Slot = tuple[dict[str, Any], str, int | None, int | None]  # where a tensor is held, and what it was


class Snapshot:
    """The parameters and buffers of a module and of all inside it, at the time this was made.

    Their memory is kept, so that no other tensor can come to lie at the same address. Writes
    through `.data`, and writes to inference tensors, are counted by nobody and not noticed.
    """

    def __init__(self, module: nn.Module) -> None:
        held: list[tuple[dict[str, Any], str, Tensor | None]] = [
            (tensors, name, tensor)
            for part in module.modules()
            for tensors in (part._parameters, part._buffers)
            for name, tensor in tensors.items()
        ]
        self.slots: list[Slot] = [(at, name, *_state(tensor)) for at, name, tensor in held]
        self.kept = [tensor.detach() for _, _, tensor in held if tensor is not None]
        self.state = tuple(slot[2:] for slot in self.slots)

    def holds(self) -> bool:
        for tensors, name, pointer, version in self.slots:  # without a Python call
            tensor, same = tensors.get(name), False
            if tensor is None or pointer is None:
                same = tensor is None and pointer is None
            elif tensor.data_ptr() == pointer and tensor.is_inference() == (version is None):
                same = version is None or tensor._version == version
            if not same:
                return False
        return True


def _state(tensor: Tensor | None) -> tuple[int | None, int | None]:
    if tensor is None:
        return None, None
    return tensor.data_ptr(), None if tensor.is_inference() else tensor._version
