"""SDNQ, with int8 products. It compiles its kernels with torch at the first call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from fewbit.bench.peers.here import compiling_for_our_threads
from fewbit.bench.peers.layers import Layers

SVD: dict[str, Any] = {"use_svd": True, "use_hadamard": True}


def sdnq(network: nn.Module, layers: Layers, weights: str, **settings: Any) -> nn.Module:
    from sdnq import sdnq_post_load_quant

    compiling_for_our_threads()
    linears = (name for name, one in network.named_modules() if isinstance(one, nn.Linear))
    ours = frozenset(layers.all)
    found: nn.Module = sdnq_post_load_quant(
        network,
        weights_dtype=weights,
        use_quantized_matmul=True,
        add_skip_keys=False,
        minimum_allowed_numel=0,
        modules_to_not_convert=[f"{name}.weight" for name in linears if name not in ours],
        **settings,
    )
    return found


@contextmanager
def with_torchs_product() -> Iterator[None]:
    """SDNQ takes OpenVINO's integer product wherever OpenVINO is installed."""
    from sdnq import kernel_wrappers

    before = kernel_wrappers.openvino_int_mm
    kernel_wrappers.openvino_int_mm = None
    try:
        yield
    finally:
        kernel_wrappers.openvino_int_mm = before


@contextmanager
def with_openvinos_product() -> Iterator[None]:
    import torch
    from sdnq.kernels.openvino_mm import get_ov_core

    core, device = get_ov_core()
    core.set_property(device, {"INFERENCE_NUM_THREADS": torch.get_num_threads()})
    yield
