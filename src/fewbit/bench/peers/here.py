"""What is installed here, and what is told of our threads."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence


def missing(packages: Sequence[str]) -> str | None:
    """Why what needs these packages cannot run."""
    absent = [name for name in packages if importlib.util.find_spec(name) is None]
    if not absent:
        return None
    return f"{' and '.join(absent)} {'is' if len(absent) == 1 else 'are'} not installed"


def compiling_for_our_threads() -> None:
    """What torch compiles has its number of threads inside and may come from a cache of another."""
    import torch._inductor.config

    torch._inductor.config.cpp.threads = torch.get_num_threads()
