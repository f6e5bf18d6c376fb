"""A size that calibration can afford, told; a size that was asked for stays."""

from types import SimpleNamespace

import pytest
from torch import nn

from fewbit.calibration import Calibration, manner_of
from fewbit.pipelines.size import HOURS, affordable


class Pictures:
    default_sample_size, vae_scale_factor = 128, 8

    def __init__(self, weights):
        self.transformer = nn.Linear(weights, 1, bias=False, device="meta")
        self.transformer.config = SimpleNamespace(patch_size=1, in_channels=64)
        self.vae = SimpleNamespace(config=SimpleNamespace(latent_channels=16))

    def __call__(
        self, prompt, height=None, width=None, num_inference_steps=20, guidance_scale=4.0
    ): ...


class Videos(Pictures):
    vae_scale_factor_temporal = 4

    def __call__(self, prompt, height=480, width=832, num_frames=81, num_inference_steps=20): ...


def asked(pipe, forwards=1000, **call):
    manner, note = affordable(pipe, manner_of(pipe, Calibration(call=call)), forwards)
    return manner.call, note


def test_a_small_model_keeps_its_size():
    assert asked(Pictures(1_000_000)) == ({}, None)


def test_a_large_picture_model_is_calibrated_smaller_and_that_is_told():
    call, note = asked(Pictures(1_000_000_000))
    # 4096 tokens, 2e9 operations each, 1000 times at 1e11 a second: 22.8 hours
    assert call == {"height": 416, "width": 416}
    assert note.startswith("calibrated at 416x416, about 3.8 hours")
    assert "for 1024x1024 would take 23" in note


def test_no_smaller_than_what_a_picture_needs():
    assert asked(Pictures(100_000_000_000))[0] == {"height": 256, "width": 256}


def test_a_video_loses_frames_first():
    call, _ = asked(Videos(1_000_000_000), forwards=500)
    assert call["num_frames"] == 17
    assert call["height"] / call["width"] == pytest.approx(480 / 832, rel=0.1)


def test_a_size_that_was_asked_for_stays():
    assert asked(Pictures(10_000_000_000), height=1024) == ({"height": 1024}, None)


def test_a_pipeline_that_does_not_say_its_size_keeps_it():
    pipe = Pictures(10_000_000_000)
    pipe.default_sample_size = None
    assert asked(pipe) == ({}, None)
    assert HOURS == 4
