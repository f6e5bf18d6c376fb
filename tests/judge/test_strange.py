import pytest
import torch

import fewbit
from fewbit.judge.evaluation import Setting
from fewbit.judge.strange import first_strange_layer

TWO_STEPS = Setting(count=1, steps=2)
BLOCK = "transformer_blocks.1"


def blamed(pipe, other_pipe):
    return first_strange_layer(TWO_STEPS.series(pipe), TWO_STEPS.series(other_pipe), 0)


@pytest.mark.parametrize("layer", [f"{BLOCK}.attn1.to_k", f"{BLOCK}.ff.net.2", "proj_out_2"])
def test_the_layer_that_was_broken_is_named_and_none_after_it(pipe, other_pipe, layer):
    pipe.transformer.get_submodule(layer).weight.data.neg_()
    assert blamed(pipe, other_pipe) == f"transformer.{layer}"


def test_the_decoder_is_looked_at_with_what_full_precision_gives_it(pipe, other_pipe):
    pipe.transformer.proj_out_2.weight.data *= 1.5  # off, but far from broken
    pipe.vae.decoder.conv_in.weight.data.zero_()
    assert blamed(pipe, other_pipe) == "vae.decoder.conv_in"


def test_errors_that_add_up_over_the_steps_are_no_layers_fault(pipe, other_pipe):
    """Each prediction is off by 4.4 dB; after eight, the latents have little left in common."""
    for tensor in pipe.transformer.proj_out_2.parameters():
        tensor.data *= 0.4
    many = Setting(count=1, steps=8)
    assert first_strange_layer(many.series(pipe), many.series(other_pipe), 0) is None


@pytest.mark.parametrize(("recipe", "bits"), [("rtn", "w8a8"), ("hq-dit", "w4a8")])
def test_quantization_alone_is_not_to_blame(pipe, other_pipe, recipe, bits):
    data = {"calibration": 32} if recipe == "hq-dit" else {}
    fewbit.quantize(pipe, recipe, bits=bits, progress=False, **data)
    assert blamed(pipe, other_pipe) is None


def test_nothing_is_left_hooked_and_the_same_is_never_strange(pipe, other_pipe):
    assert blamed(pipe, other_pipe) is None
    modules = [m for p in (pipe, other_pipe) for m in (*p.transformer.modules(), *p.vae.modules())]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in modules)


def test_an_error_that_has_no_signal_to_be_held_against_is_no_finding(pipe, other_pipe):
    for one in (pipe, other_pipe):
        one.transformer.proj_out_2.weight.data.zero_()
        one.transformer.proj_out_2.bias.data.zero_()
    pipe.transformer.proj_out_2.bias.data += torch.tensor(1e-6)
    assert blamed(pipe, other_pipe) is None
