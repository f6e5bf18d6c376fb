"""Pipelines whose calls are not made of rows: the calls are recorded as they come."""

from types import SimpleNamespace

import pytest
import torch

import fewbit
from benchmarks.tiny_classes import CLASSES
from fewbit.calibration import Calibration, CallSet, RowSet, Sampling, manner_of
from fewbit.calibration.drawing import generator_of
from fewbit.calibration.recording import Recording
from fewbit.calibration.tree import tensors
from fewbit.errors import BadArgument
from fewbit.storage.entries import Entries

diffusers = pytest.importorskip("diffusers")

LATENTS = {"base_dim": 4, "z_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1,
           "temperal_downsample": [False, True, True]}  # fmt: skip


def without_text(pipeline, name, vae, **options):
    """The text comes as it would leave the encoders."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**options)
    model = CLASSES[name].build(name)
    return pipeline(
        scheduler=scheduler, vae=vae, text_encoder=None, tokenizer=None, transformer=model
    )


def picture_vae():
    return diffusers.AutoencoderKL(
        block_out_channels=(4, 4), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, norm_num_groups=2,
    )  # fmt: skip


def texts(count=6):
    random = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(1, count, 32, generator=random)
        for name in ("prompt_embeds", "negative_prompt_embeds")
    }


SMALL = {"height": 32, "width": 32}


def wan():
    pipe = without_text(
        diffusers.WanPipeline, "WanTransformer3DModel", diffusers.AutoencoderKLWan(**LATENTS)
    )
    return pipe, {"height": 16, "width": 16, "num_frames": 5, **texts()}


def qwen():
    vae = diffusers.AutoencoderKLQwenImage(**LATENTS)
    name, flow = "QwenImageTransformer2DModel", {"use_dynamic_shifting": True}
    pipe = without_text(diffusers.QwenImagePipeline, name, vae, **flow)
    masks = {f"{name}_mask": torch.ones(1, 6, dtype=torch.long) for name in texts()}
    return pipe, {**SMALL, **texts(), **masks, "true_cfg_scale": 4.0}


def z_image():
    pipe = without_text(diffusers.ZImagePipeline, "ZImageTransformer2DModel", picture_vae())
    return pipe, {**SMALL, **{name: [text[0]] for name, text in texts().items()}}


def lumina():
    pipe = without_text(diffusers.Lumina2Pipeline, "Lumina2Transformer2DModel", picture_vae())
    masks = {
        name.replace("embeds", "attention_mask"): torch.ones(1, 6, dtype=torch.bool)
        for name in texts()
    }
    return pipe, {**SMALL, **texts(), **masks}


PIPES = (wan, qwen, z_image, lumina)


def drawn(pipe, call, samples=8, steps=4, entries=None, **asked):
    wishes = Calibration(call=call, samples=samples, steps=steps, **asked)
    return Sampling.of(manner_of(pipe, wishes), samples, asked=wishes).draw(pipe, entries)


@pytest.mark.parametrize("make", PIPES)
def test_calls_are_those_of_the_ordinary_pipeline(make):
    pipe, call = make()
    data = drawn(pipe, call, samples=4, steps=2)
    assert isinstance(data, CallSet)
    seen = []
    hook = pipe.transformer.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append((args, kwargs)), with_kwargs=True
    )
    pipe.set_progress_bar_config(disable=True)
    generator = [generator_of(0, 0)]
    pipe(**call, num_inference_steps=2, generator=generator, output_type="latent")
    hook.remove()
    found = [numbers(inputs) for inputs in data.batches(1)]
    for one in seen:
        assert sum(same(numbers(one), other) for other in found) == 1


def numbers(tree):
    return list(tensors(tree).values())


def same(one, other):
    return all(torch.equal(mine, theirs) for mine, theirs in zip(one, other, strict=True))


def test_both_halves_of_a_guidance_by_separate_calls_are_kept():
    pipe, call = wan()
    data = drawn(pipe, call)
    times, counts = data.timesteps().unique(return_counts=True)
    assert len(times) == 4
    assert counts.tolist() == [2] * 4


def test_images_that_were_drawn_are_kept(tmp_path, monkeypatch):
    pipe, call = wan()
    whole, images = drawn(pipe, call, samples=16), []
    record = Recording._recorded

    def two(self, pipe, image, subject):
        images.append(image)
        if len(images) == 2:
            raise KeyboardInterrupt
        return record(self, pipe, image, subject)

    monkeypatch.setattr(Recording, "_recorded", two)
    with pytest.raises(KeyboardInterrupt):
        drawn(pipe, call, samples=16, entries=Entries(tmp_path))
    resumed = drawn(pipe, call, samples=16, entries=Entries(tmp_path))
    assert images == [0, 1, 1]
    assert resumed.fingerprint() == whole.fingerprint()


def test_rows_stay_rows_where_there_are_some(pipe):
    data = drawn(pipe, {}, samples=8)
    assert isinstance(data, RowSet)


def test_a_video_pipeline_calibrates_itself():
    pipe, call = wan()
    roles = {"attn1.to_*": "skip", "attn2.to_*": "skip", "ffn.*": "skip"}
    spec = fewbit.ModelSpec("blocks", roles, keep=("condition_embedder*", "proj_out"))
    calibration = fewbit.Calibration(samples=4, steps=2, call=call)
    report = fewbit.quantize(pipe, "hq-dit", calibration=calibration, spec=spec, progress=False)
    assert len(report.layers) == 20
    assert all(layer.output_db > 5 for layer in report.layers)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"hight": 16}, "WanPipeline takes no hight; it takes prompt, negative_prompt, height"),
        ({"num_inference_steps": 3}, "call cannot set num_inference_steps; allowed: steps="),
        ({"generator": None}, "call cannot set generator; allowed: seed="),
        ({7: 1}, "call must be a dict of keyword arguments"),
        ({"prompt": "a"}, "prompts and prompt_embeds exclude each other"),
    ],
)
def test_what_a_pipeline_cannot_be_told_is_named(call, message):
    pipe, embedded = wan()
    with pytest.raises(BadArgument, match=message):
        manner_of(pipe, Calibration(call={**embedded, **call}))


def test_what_a_pipeline_needs_is_named():
    class Editing:
        def __call__(self, image, prompt, num_inference_steps=9):
            """Takes a picture and changes it."""

    with pytest.raises(BadArgument, match=r'needs image; give .*call={"image": \.\.\.}'):
        manner_of(Editing(), Calibration())
    manner = manner_of(Editing(), Calibration(call={"image": SimpleNamespace(), "prompt": ["a"]}))
    assert manner.subjects == ("a",)
    assert manner.guidance is None
    assert manner.steps == 9
