"""What other libraries are told of our threads."""

from __future__ import annotations


def compiling_for_our_threads() -> None:
    """What torch compiles has its number of threads inside and may come from a cache of another."""
    import torch._inductor.config

    torch._inductor.config.cpp.threads = torch.get_num_threads()
