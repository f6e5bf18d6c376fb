"""Weights of judges, from local files only; nothing is unpickled but tensors."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor

from fewbit.errors import BrokenFile

NO_WEIGHTS = (
    *(OSError, EOFError, RuntimeError, ValueError, TypeError, LookupError, AttributeError),
    UnpicklingError,
)


def read_state(file: Path, advice: str) -> dict[str, Tensor]:
    """Of a training checkpoint, the weights in it."""
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
        content = content.get("state_dict", content)
        return {name: tensor for name, tensor in content.items() if isinstance(tensor, Tensor)}
    except NO_WEIGHTS as error:
        raise BrokenFile(f"{file} holds no readable weights; {advice}") from error
