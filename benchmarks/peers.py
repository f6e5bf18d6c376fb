"""Other systems as they come from the index, each made of the same float transformer.

`make peers` sets up the environment that has them; none is imported before it is asked for. Each
function may change the transformer that it is given, and returns what computes in its place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from fewbit.models.spec import Role
from fewbit.models.structure import describe

Rows = Sequence[Mapping[str, Any]]
READERS = ("MatMul", "Gather", "Convolution")  # of weights, in OpenVINO's graphs
ORDERS = (256, 64, 16, 4)  # of comfy-kitchen's Hadamard matrices


@dataclass(frozen=True)
class Layers:
    """The linears that every system rounds, by what reads one input; the modulation is apart."""

    groups: Sequence[Sequence[str]]
    modulation: Sequence[str]

    @classmethod
    def of(cls, transformer: nn.Module) -> Layers:
        structure = describe(transformer)
        blocks = range(len(structure.blocks))
        layers = [layer for block in blocks for layer in structure.quantizable(block)]
        modulation = [layer.name for layer in layers if layer.role is Role.ADALN]
        groups = [group for block in blocks for group in structure.shared_inputs(block)]
        return cls([group for group in groups if group[0] not in modulation], modulation)

    @property
    def plain(self) -> list[str]:
        return [name for group in self.groups for name in group]

    @property
    def all(self) -> list[str]:
        return [*self.plain, *self.modulation]


def weight_bytes(model: nn.Module, layers: Layers) -> int:
    """Of everything that these layers hold, but for their biases."""
    if isinstance(model, InOpenVINO):
        return model.weight_bytes(layers)
    held = [model.get_submodule(name) for name in layers.all]
    return sum(
        part.nbytes
        for layer in held
        for name, tensor in [*layer.named_parameters(), *layer.named_buffers()]
        if name.split(".")[-1] != "bias"
        for part in _parts(tensor)
    )


def _parts(tensor: Tensor) -> list[Tensor]:
    if not hasattr(tensor, "__tensor_flatten__"):
        return [tensor]
    return [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]


def comfy(model: nn.Module, layers: Layers, _: Rows, layout: str, **settings: Any) -> nn.Module:
    """comfy-kitchen's formats, as ComfyUI's files hold them; the modulation at rotated int8."""
    for name in layers.plain:
        _hold(linear := model.get_submodule(name), layout, settings)
        if layout == NVFP4:
            model.set_submodule(name, InputInNVFP4(linear))
    for name in layers.modulation:
        _hold(model.get_submodule(name), INT8, {"per_channel": True, "convrot": True})
    return model


INT8, NVFP4 = "TensorWiseINT8Layout", "TensorCoreNVFP4Layout"


def _hold(linear: nn.Linear, layout: str, settings: dict[str, Any]) -> None:
    from comfy_kitchen.tensor import QuantizedTensor

    order = next(order for order in ORDERS if linear.in_features % order == 0)
    packed = QuantizedTensor.from_float(
        linear.weight.data, layout, convrot_groupsize=order, **settings
    )
    linear.weight = nn.Parameter(packed, requires_grad=False)


class InputInNVFP4(nn.Module):
    """A linear whose layout leaves the rounding of its input to the caller."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        from comfy_kitchen.tensor import QuantizedTensor

        rows = x.reshape(-1, x.shape[-1])
        found = self.linear(QuantizedTensor.from_float(rows, NVFP4))[: len(rows)]
        return found.to(x.dtype).reshape(*x.shape[:-1], -1)


def orbitquant(
    model: nn.Module, layers: Layers, rows: Rows, weights: int, inputs: int, gptq: bool = False
) -> nn.Module:
    """OrbitQuant; the modulation at its int4 of groups."""
    from orbitquant import OrbitQuantConfig, quantize_model
    from orbitquant.gptq import load_rounded_codes

    config = OrbitQuantConfig(
        weight_bits=weights,
        activation_bits=inputs,
        target_policy="universal",
        runtime_mode="dequant_bf16",
        modules_to_convert=layers.plain,
        modules_to_use_adaln=[*layers.modulation],
        lowbit_boundary_protection=0,
        lowbit_interior_protection=False,
    )
    codes = _gptq_codes(model, layers, rows, config) if gptq else {}
    quantize_model(model, config)
    load_rounded_codes(model, codes)
    return model


def _gptq_codes(model: nn.Module, layers: Layers, rows: Rows, config: Any) -> dict[str, Any]:
    from orbitquant.gptq import HessianCollector, round_groups

    groups = [[*group] for group in layers.groups]
    with HessianCollector(model, groups, config) as hessians, torch.no_grad():
        for call in rows:
            model(**call)
    return round_groups(model, groups, hessians, config)


def sdnq(model: nn.Module, layers: Layers, _: Rows, weights: str, **settings: Any) -> nn.Module:
    """SDNQ with int8 products."""
    from sdnq import sdnq_post_load_quant

    linears = (name for name, one in model.named_modules() if isinstance(one, nn.Linear))
    return sdnq_post_load_quant(
        model,
        weights_dtype=weights,
        use_quantized_matmul=True,
        add_skip_keys=False,
        minimum_allowed_numel=0,
        modules_to_not_convert=[name for name in linears if name not in layers.all],
        **settings,
    )


def nncf(model: nn.Module, layers: Layers, rows: Rows, calibrated: bool = True) -> nn.Module:
    """NNCF's int4 in groups of 64, with all that it can do with data. OpenVINO, which runs it,
    rounds the inputs to int8 in groups of 64."""
    import nncf as compress
    import openvino

    first = {name: value for name, value in rows[0].items() if isinstance(value, Tensor)}
    found = openvino.convert_model(model, example_input=first)
    readers = [op.get_friendly_name() for op in found.get_ops() if op.get_type_name() in READERS]
    ours = tuple(f"__module.{name}/" for name in layers.all)
    data = compress.Dataset(rows, lambda call: {name: call[name].numpy() for name in first})
    found = compress.compress_weights(
        found,
        mode=compress.CompressWeightsMode.INT4_SYM,
        group_size=64,
        all_layers=True,
        ignored_scope=compress.IgnoredScope(
            names=[name for name in readers if not name.startswith(ours)]
        ),
        **({"dataset": data, "scale_estimation": True, "gptq": True} if calibrated else {}),
    )
    return InOpenVINO(found, [*first])


class InOpenVINO(nn.Module):
    """A transformer that OpenVINO runs."""

    def __init__(self, model: Any, names: Sequence[str]) -> None:
        import openvino

        super().__init__()
        settings = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 64}
        self.model, self.names = model, names
        self.run = openvino.compile_model(model, "CPU", settings)

    def forward(self, **call: Any) -> tuple[Tensor]:
        given = {name: call[name].numpy() for name in self.names}
        return (torch.from_numpy(self.run(given)[0]),)

    def weight_bytes(self, layers: Layers) -> int:
        ours = tuple(f"self.{name}.weight" for name in layers.all)
        stored = [op for op in self.model.get_ops() if op.get_type_name() == "Constant"]
        stored = [op for op in stored if op.get_friendly_name().startswith(ours)]
        sizes = (op.get_element_type().bitwidth * prod(op.get_output_shape(0)) for op in stored)
        return sum(sizes) // 8
