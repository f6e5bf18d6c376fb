"""Torch function modes kept out of code in which there is nothing for them.

Each call of a tensor's method would ask them all, in Python, which takes longer than what a small
layer computes.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def unasked() -> AbstractContextManager[object]:
    return nullcontext() if torch.compiler.is_compiling() else torch._C.DisableTorchFunction()
