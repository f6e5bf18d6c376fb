"""The shipped scenes pipeline: stock diffusers loads it, and its pictures are as asked for."""

import pytest
import torch

from demos.language import WIDTH
from demos.sampling import SCENES, sample
from fewbit import demo
from fewbit.demo import scenes
from fewbit.demo.check_scenes import captions, faithfulness
from fewbit.demo.shapes import as_float
from fewbit.pipelines.opening import open_model

pytestmark = pytest.mark.skipif("scenes" not in demo.names(), reason="its weights do not ship yet")
WANTED = captions(24)


@pytest.fixture(scope="module")
def pipeline():
    pipeline = demo.load("scenes")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_the_stock_class_loads_the_folder(pipeline, monkeypatch):
    from diffusers import PixArtAlphaPipeline

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    stock = PixArtAlphaPipeline.from_pretrained(demo.path("scenes"))
    assert type(pipeline) is PixArtAlphaPipeline
    assert type(open_model("scenes")) is PixArtAlphaPipeline
    assert pipeline.text_encoder.config.d_model == WIDTH
    assert stock.transformer.config.out_channels == 2 * stock.transformer.config.in_channels
    for mine, theirs in zip(
        pipeline.transformer.parameters(), stock.transformer.parameters(), strict=True
    ):
        assert torch.equal(mine, theirs)


def test_the_demo_is_small():
    files = [file for file in demo.path("scenes").rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 20e6


def test_the_autoencoder_returns_the_picture(pipeline):
    image = as_float(scenes.pictures(992, range(24)))
    with torch.no_grad():
        latent = pipeline.vae.encode(image).latent_dist.mean
        decoded = pipeline.vae.decode(latent).sample
    error = (decoded - image).square().mean() / 4
    assert -10 * error.log10() > 28  # dB
    assert (latent.mean((0, 2, 3)).abs() < 0.3).all()
    assert (latent.std((0, 2, 3)) - 1).abs().max() < 0.2
    described = [scene.caption for scene in scenes.scenes(992, range(24))]
    assert faithfulness(decoded, described).double().mean() > 0.97


@pytest.fixture(scope="module")
def guided(pipeline):
    return sample(pipeline, WANTED, range(len(WANTED)), SCENES)


def test_guided_samples_are_faithful(guided):
    assert faithfulness(guided, WANTED).double().mean() > 0.85
    assert faithfulness(guided, WANTED[1:] + WANTED[:1]).double().mean() < 0.5


def test_guidance_makes_pictures_more_faithful(pipeline, guided):
    plain = sample(pipeline, WANTED[:12], range(12), {**SCENES, "guidance_scale": 1.0})
    without, with_it = (
        faithfulness(images, WANTED[:12]).double().mean() for images in (plain, guided[:12])
    )
    assert with_it > without
