"""Guidance that comes in calls of its own, without the pipeline's call saying so."""

import pytest

import fewbit
from fewbit.calibration import CallSet, Sampling, manner_of

pytest.importorskip("diffusers")

import tiny_pipelines


def test_both_halves_are_kept(one_thread):
    """Its guider, and no argument, makes two calls a step of as many rows as there are images."""
    pipe = tiny_pipelines.make("hunyuan_video_1_5")
    call = tiny_pipelines.CALLS["hunyuan_video_1_5"]
    asked = fewbit.Calibration(samples=2, steps=2, prompts=["a cat"], call=call)
    manner = manner_of(pipe, asked)
    assert manner.halves == 1
    data = Sampling.of(manner, 2, asked=asked).draw(pipe)
    assert isinstance(data, CallSet)
    texts = {float(one["encoder_hidden_states"].sum()) for one in data.calls}
    assert len(texts) == 2
