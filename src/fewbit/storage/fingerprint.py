"""SHA-256 of named tensors and of what is said of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def fingerprint(said: str, named: Mapping[str, Tensor]) -> str:
    """In whatever order the tensors come: each with its name, dtype, shape and bytes."""
    total = hashlib.sha256(said.encode())
    for name, tensor in sorted(named.items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        if not tensor.is_meta:  # else its numbers are elsewhere
            plain = tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8)
            total.update(memoryview(plain.numpy()))  # type: ignore[arg-type]
    return total.hexdigest()
