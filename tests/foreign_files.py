"""Files of other runtimes, written as those write them: for tests of whoever reads them."""

import json

import torch
from torch import nn

from fewbit.storage.tensors import write_tensors

BLOCK = 64  # channels of a rotated group


def linears(model):
    """Those of the blocks, which files quantize; the rest of a model stays as it is."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and "blocks." in name
    }


def marker(**said):
    return torch.tensor(list(json.dumps(said).encode()), dtype=torch.uint8)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def int8(weight, name):
    """Plain rows of int8, without a rotation."""
    scale = weight.abs().amax(1, keepdim=True) / 127
    return {
        f"{name}.weight": (weight / scale).round().to(torch.int8),
        f"{name}.weight_scale": scale,
        f"{name}.comfy_quant": marker(format="int8_tensorwise"),
    }


def comfy_tensors(model, layer=int8):
    """All tensors of the model, its linears as `layer` stores them."""
    packed = linears(model)
    found = {
        name: tensor.clone()
        for name, tensor in model.state_dict().items()
        if name.removesuffix(".weight") not in packed
    }
    for name, linear in packed.items():
        found |= layer(linear.weight.detach(), name)
    return found


def write(path, tensors, **metadata):
    write_tensors(path, tensors, metadata)
    return path
