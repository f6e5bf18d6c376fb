"""Train a LoRA adapter beside packed weights, save it, and load it into the packed model again.

python examples/lora_on_quantized.py --output DIR
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import SD3Transformer2DModel
from peft import LoraConfig
from torch import Tensor

import fewbit


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train LoRA on a tiny quantized SD3.")
    parser.add_argument("--output", type=Path, required=True, help="a folder for the adapter")
    parser.add_argument("--steps", type=int, default=10)
    given = parser.parse_args(arguments)

    model, arguments_of = tiny_model(), rows(4)
    fewbit.quantize(model, "rtn:w4a8", progress=False)
    torch.manual_seed(0)
    model.add_adapter(LoraConfig(r=4, target_modules=["to_q", "to_v"]), "mine")
    losses = train(model, arguments_of, target=torch.zeros(4, 16, 8, 8), steps=given.steps)
    print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f}; the packed weights did not change")
    trained = run(model, arguments_of)

    model.save_lora_adapter(given.output, adapter_name="mine")
    model.delete_adapters("mine")
    model.load_lora_adapter(given.output, prefix=None, adapter_name="mine", use_safetensors=True)
    assert torch.allclose(run(model, arguments_of), trained, atol=1e-5)
    print(f"the adapter is in {given.output}")


def train(model: Any, arguments: dict[str, Tensor], target: Tensor, steps: int) -> list[float]:
    """Only the adapter has gradients; they pass through the packed layers."""
    adapter = [one for one in model.parameters() if one.requires_grad]
    optimizer, losses = torch.optim.Adam(adapter, lr=1e-2), []
    for _ in range(steps):
        loss = (model(**arguments).sample - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def run(model: Any, arguments: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        out: Tensor = model(**arguments).sample
    return out


def tiny_model() -> Any:
    torch.manual_seed(0)
    return SD3Transformer2DModel(
        sample_size=8,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        caption_projection_dim=16,
        pooled_projection_dim=10,
    ).eval()


def rows(count: int) -> dict[str, Tensor]:
    return {
        "hidden_states": torch.randn(count, 16, 8, 8),
        "encoder_hidden_states": torch.randn(count, 5, 12),
        "pooled_projections": torch.randn(count, 10),
        "timestep": torch.arange(count).float(),
    }


if __name__ == "__main__":
    main()
