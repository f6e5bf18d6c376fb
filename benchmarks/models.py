"""Models of published shapes with random weights, without the cost of initialising them; rows
of what they take."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from accelerate import init_empty_weights
from diffusers import DiTTransformer2DModel


def dit_xl_2(blocks: int = 28) -> DiTTransformer2DModel:
    with init_empty_weights(include_buffers=False):
        model = DiTTransformer2DModel(
            num_attention_heads=16,
            attention_head_dim=72,
            in_channels=4,
            out_channels=8,
            num_layers=blocks,
            sample_size=32,
            patch_size=2,
            num_embeds_ada_norm=1000,
        )
    generator = torch.Generator().manual_seed(0)
    shared: dict[str, torch.nn.Parameter] = {}
    for name, parameter in list(model.named_parameters()):
        tail = name.partition(".norm1.emb.")[2]  # one copy serves all blocks, as once converted
        if tail not in shared or not tail:
            values = torch.empty(parameter.shape).normal_(std=0.02, generator=generator)
            shared[tail] = torch.nn.Parameter(values, requires_grad=False)
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, shared[tail])
    return model.eval()


def dit_rows(count: int) -> Iterator[dict[str, torch.Tensor]]:
    """Random latents, spread over the timesteps."""
    random = torch.Generator().manual_seed(0)
    for row in range(count):
        yield {
            "hidden_states": torch.randn(1, 4, 32, 32, generator=random),
            "timestep": torch.tensor([(2 * row + 1) * 500 // count]),
            "class_labels": torch.randint(1000, (1,), generator=random),
        }
