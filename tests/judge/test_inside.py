"""Of a pipeline with several networks each is measured, on the calls of its own."""

import pytest

import fewbit
from fewbit.judge.alike import Named
from fewbit.judge.evaluation import Judges, Setting, evaluate
from fewbit.layers.linear import quantized_layers

pytest.importorskip("diffusers")

import tiny_pipelines

CALL = tiny_pipelines.CALLS["wan_2_2"]


def test_each_network_has_its_score(one_thread, tmp_path):
    pipe = tiny_pipelines.make("wan_2_2")
    fewbit.quantize(pipe, "rtn:w8a8", components=["transformer", "text_encoder"], progress=False)
    setting = Setting(1, steps=3, prompts=["a cat"], call=CALL)
    reference = Named(tiny_pipelines.make("wan_2_2"), "reference")
    found = evaluate(Named(pipe, "small"), reference, setting, tmp_path, Judges(rows=4))
    scores = {score.name: score.value for score in found.scores}
    assert scores["transformer_2"] == float("inf")  # as it was
    assert 20 < scores["transformer"] < 80
    assert 20 < scores["text_encoder"] < 80
    assert found.recipe == "rtn:w8a8"
    times = sorted(found.trajectory.by_timestep)
    assert times[0] < 900 <= times[-1]
    heard = {layer.name for layer in found.trajectory.layers}
    assert heard == {f"transformer.{name}" for name in quantized_layers(pipe.transformer)}
    assert found.cost.size.bytes < found.cost.bf16_bytes * 2
