"""Tiny random diffusers transformers, the inputs they want, and a pipeline around one."""

from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor

import fewbit

WIDTH = {"num_attention_heads": 2, "attention_head_dim": 32}
CONFIGS: dict[str, dict[str, Any]] = {
    "DiTTransformer2DModel": {
        **WIDTH,
        "num_layers": 2,
        "sample_size": 8,
        "out_channels": 8,
        "num_embeds_ada_norm": 1000,  # the pipeline takes class 1000 for none
    },
    "PixArtTransformer2DModel": {
        **WIDTH,
        "num_layers": 2,
        "sample_size": 8,
        "cross_attention_dim": 64,
        "caption_channels": 32,
    },
    "HunyuanDiT2DModel": {
        **WIDTH,
        "num_layers": 4,
        "hidden_size": 64,
        "sample_size": 8,
        "patch_size": 2,
        "in_channels": 4,
        "cross_attention_dim": 32,
        "cross_attention_dim_t5": 32,
        "pooled_projection_dim": 8,
        "text_len": 4,
        "text_len_t5": 4,
    },
}
NAMES = tuple(CONFIGS)
DIT = NAMES[0]


def make(name: str = DIT, **changes: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return getattr(diffusers, name)(**{**CONFIGS[name], **changes}).eval()


def quantized(name: str = DIT, bits: str = "w4a4", **settings: Any) -> Any:
    model = make(name)
    fewbit.quantize(model, "rtn", bits=bits, progress=False, **settings)
    return model


def in_dtype(dtype: torch.dtype, folder: Path, name: str = DIT) -> Any:
    """Loaded in that dtype: `.to(dtype)` would cast a table that diffusers keeps in float32."""
    make(name).save_pretrained(folder)
    return getattr(diffusers, name).from_pretrained(folder, torch_dtype=dtype)


def run(model: Any, dtype: torch.dtype = torch.float32, seed: int = 1) -> Tensor:
    """The output for one batch of two."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    inputs = {"hidden_states": noise(2, 4, 8, 8), "timestep": torch.tensor([3, 500])}
    if "DiTTransformer" in type(model).__name__:
        inputs |= {"class_labels": torch.tensor([1, 7])}
    elif "PixArt" in type(model).__name__:
        inputs |= {
            "encoder_hidden_states": noise(2, 5, 32),
            "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        }
    else:
        inputs |= {
            "timestep": torch.tensor([3, 500]).to(dtype),
            "encoder_hidden_states": noise(2, 4, 32),
            "text_embedding_mask": torch.ones(2, 4),
            "encoder_hidden_states_t5": noise(2, 4, 32),
            "text_embedding_mask_t5": torch.ones(2, 4),
            "image_meta_size": torch.tensor([[64, 64, 0, 0, 64, 64]] * 2).to(dtype),
            "style": torch.zeros(2, dtype=torch.long),
            "image_rotary_emb": (torch.ones(16, 32), torch.zeros(16, 32)),
        }
    with torch.no_grad():
        return model(**inputs).sample


def pipeline(transformer: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = diffusers.AutoencoderKL(
            block_out_channels=(4,), latent_channels=4, norm_num_groups=2, sample_size=8
        ).eval()
    return diffusers.DiTPipeline(transformer, vae, diffusers.DDIMScheduler())


def picture(pipe: Any) -> Tensor:
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    images = pipe([1], generator=generator, num_inference_steps=2, output_type="np").images
    return torch.from_numpy(images)


def weights(folder: Path) -> Path:
    return folder / "diffusion_pytorch_model.safetensors"
