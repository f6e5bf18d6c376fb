"""How long it takes to find the structure of a model as deep as one of 12 billion parameters.

Width is tiny, depth is real: what counts is the number of layers. Prints JSON.
"""

from __future__ import annotations

import json
import time

import torch
from diffusers import FluxTransformer2DModel

from fewbit.models.discover import discover
from fewbit.models.guess import guess

DEPTH = {"num_layers": 19, "num_single_layers": 38}
WIDTH = {"num_attention_heads": 2, "attention_head_dim": 16, "axes_dims_rope": (4, 4, 8)}
TEXT, IMAGE = 8, 16  # tokens


def main() -> None:
    sizes = {"in_channels": 4, "joint_attention_dim": 24, "pooled_projection_dim": 8}
    model = FluxTransformer2DModel(**DEPTH, **WIDTH, **sizes).eval()
    call = {
        "hidden_states": torch.randn(1, IMAGE, 4),
        "encoder_hidden_states": torch.randn(1, TEXT, 24),
        "pooled_projections": torch.randn(1, 8),
        "timestep": torch.tensor([0.5]),
        "img_ids": torch.zeros(IMAGE, 3),
        "txt_ids": torch.zeros(TEXT, 3),
    }
    seconds = {"one forward": _timed(discover, model, call), "names": _timed(guess, model)}
    linears = sum(isinstance(module, torch.nn.Linear) for module in model.modules())
    print(json.dumps({"linears": linears, **DEPTH, "seconds": seconds}, indent=1))


def _timed(find, *given) -> float:
    began = time.perf_counter()
    find(*given)
    return round(time.perf_counter() - began, 2)


if __name__ == "__main__":
    main()
