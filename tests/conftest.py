"""A tiny pipeline with random weights, made once: enough for whatever draws, opens or writes."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Layers this small take many times longer when two threads wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def made_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    diffusers = pytest.importorskip("diffusers")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformer = diffusers.DiTTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=24,
            num_layers=2,
            sample_size=8,
            in_channels=4,
            out_channels=4,
            num_embeds_ada_norm=1000,
        ).eval()
        vae = diffusers.AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 8),
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=16,
            mid_block_add_attention=False,
        )
    pipe = diffusers.DiTPipeline(transformer, vae, diffusers.DDIMScheduler())
    pipe.register_to_config(id2label={"0": "circle", "1": "square", "2": "star"})
    folder = tmp_path_factory.mktemp("made") / "tiny"
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture
def pipeline_folder(made_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy called `tiny` in an otherwise empty working folder."""
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(made_pipeline, tmp_path / "tiny")


@pytest.fixture
def pipe(made_pipeline: Path, one_thread: None) -> Any:
    from diffusers import DiTPipeline

    return DiTPipeline.from_pretrained(made_pipeline)


SMALL: dict[str, dict[str, Any]] = {
    "DiTTransformer2DModel": {"num_embeds_ada_norm": 10},
    "PixArtTransformer2DModel": {
        "cross_attention_dim": 64,
        "caption_channels": 32,
        "use_additional_conditions": False,
    },
    "HunyuanDiT2DModel": {
        "in_channels": 4,
        "patch_size": 2,
        "hidden_size": 64,
        "cross_attention_dim": 32,
        "cross_attention_dim_t5": 16,
        "pooled_projection_dim": 8,
    },
}


def make_small(name: str = "DiTTransformer2DModel", seed: int = 0) -> Any:
    """A new random transformer of width 64."""
    diffusers = pytest.importorskip("diffusers")
    common = {"num_attention_heads": 2, "attention_head_dim": 32, "sample_size": 8}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return getattr(diffusers, name)(num_layers=2, **common, **SMALL[name]).eval()


@pytest.fixture(scope="session")
def small() -> Callable[..., Any]:
    pytest.importorskip("diffusers")
    return make_small
