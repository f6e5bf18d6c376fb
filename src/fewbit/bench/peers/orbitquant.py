"""OrbitQuant; the modulation at its int4 of groups."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from fewbit.bench.peers.graph import Call
from fewbit.bench.peers.layers import Layers

REFERENCE, NATIVE = "dequant_bf16", "native_packed_matmul"


def w4a4(network: nn.Module, layers: Layers) -> nn.Module:
    """By its native CPU kernels, which `orbitquant kernels-install --build` builds."""
    os.environ.setdefault("ORBITQUANT_KERNELS_AUTOFETCH", "0")  # what is measured fetches nothing
    from orbitquant.kernels.native_packed_matmul import load_native_packed_matmul_kernel

    load_native_packed_matmul_kernel()
    return orbitquant(network, layers, 4, 4, runtime=NATIVE)


def orbitquant(
    network: nn.Module,
    layers: Layers,
    weights: int,
    inputs: int,
    runtime: str = REFERENCE,
    gptq: Sequence[Call] = (),
) -> nn.Module:
    """Rounded by GPTQ on these calls, if there are any."""
    from orbitquant import OrbitQuantConfig, quantize_model
    from orbitquant.gptq import load_rounded_codes

    config = OrbitQuantConfig(
        weight_bits=weights,
        activation_bits=inputs,
        target_policy="universal",
        runtime_mode=runtime,
        modules_to_convert=layers.plain,
        modules_to_use_adaln=[*layers.modulation],
        lowbit_boundary_protection=0,
        lowbit_interior_protection=False,
    )
    codes = _gptq_codes(network, layers, gptq, config) if gptq else {}
    quantize_model(network, config)
    load_rounded_codes(network, codes)
    return network


def _gptq_codes(network: nn.Module, layers: Layers, calls: Sequence[Call], config: Any) -> Any:
    from orbitquant.gptq import HessianCollector, round_groups

    groups = [[*group] for group in layers.groups]
    with HessianCollector(network, groups, config) as hessians, torch.no_grad():
        for call in calls:
            network(**call)
    return round_groups(network, groups, hessians, config)
