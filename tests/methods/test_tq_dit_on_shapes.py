"""What TQ-DiT gains on the shipped demo, on trajectories that calibration never saw.

Every claim is asserted with less than was measured: over the static baseline 5.7 dB at 8 bits and
6 dB at 6, with half of the default data and one round; studies/tq_dit_ablation measures it again.
"""

import numpy as np
import pytest
import torch
from row_by_row import RowByRow
from shapes_demo import MANNER, mean_psnr, pipeline

import fewbit
from fewbit.calibration import operands, sample
from fewbit.judge.pixels import ssim
from fewbit.judge.trajectory import trajectory_fidelity
from fewbit.layers.bind import bind, unbind
from fewbit.pipelines.generate import generate

FAST = {"preset": "fast", "rounds": 1}
BASELINE = {"granularity": "tensor", "ho": False, "mrq": False, "tgq": False, "smooth": None}


def pixels(picture):
    """[channels, height, width]"""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


@pytest.fixture(scope="module")
def reference():
    return pipeline()


@pytest.fixture(scope="module")
def quantized(reference):
    """A function: a quantized pipeline; each computed once."""
    rows = sample(reference, samples=80, seed=0, **MANNER)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(operands, "TOKENS", 1024)
        yield _quantizer(rows)


def _quantizer(rows):
    known = {}

    def make(bits, **settings):
        key = bits, tuple(settings.items())
        if key not in known:
            known[key] = pipeline()
            fewbit.quantize(
                known[key],
                "tq-dit",
                bits=bits,
                calibration=rows,
                progress=False,
                **FAST,
                **settings,
            )
        return known[key]

    return make


@pytest.fixture(scope="module")
def fidelity(reference):
    rows = sample(reference, samples=64, seed=1000, **MANNER)
    return lambda pipe: trajectory_fidelity(reference.transformer, pipe.transformer, rows).sqnr


@pytest.mark.parametrize("bits", ["w8a8", "w6a6"])
def test_it_is_2_db_above_the_static_baseline(one_thread, quantized, fidelity, bits):
    assert fidelity(quantized(bits)) > fidelity(quantized(bits, **BASELINE)) + 2


def test_two_regions_gain(one_thread, quantized, fidelity):
    assert fidelity(quantized("w8a8")) > fidelity(quantized("w8a8", mrq=False)) + 0.5


def test_another_scheduler_with_another_number_of_steps_draws_the_same_pictures(
    one_thread, quantized, reference
):
    from diffusers import DDIMScheduler

    def draw(pipe):
        before, pipe.scheduler = pipe.scheduler, DDIMScheduler.from_config(pipe.scheduler.config)
        try:
            return generate(pipe, seeds=range(2), steps=13, guidance=2.5)
        finally:
            pipe.scheduler = before

    exact, drawn = draw(reference), draw(quantized("w8a8"))
    assert mean_psnr(exact, drawn) > 25
    for one, other in zip(exact, drawn, strict=True):
        assert ssim(pixels(one), pixels(other)) > 0.95


def test_an_image_alone_is_the_same_image_in_a_batch_of_8(one_thread, quantized, monkeypatch):
    monkeypatch.setenv("FEWBIT_BACKEND", "reference")
    pipe = quantized("w8a8")
    unbind(pipe.transformer)  # so that it binds itself to that backend
    bind(pipe.transformer)

    def draw(seeds):
        own = [torch.Generator().manual_seed(seed) for seed in seeds]
        manner = {"num_inference_steps": 3, "guidance_scale": 2.5, "output_type": "pt"}
        with RowByRow(pipe.transformer, pipe.vae.decoder):
            return torch.as_tensor(pipe(list(seeds), generator=own, **manner).images)

    together = draw(range(8))
    for seed in range(8):
        assert torch.equal(draw([seed])[0], together[seed])
    unbind(pipe.transformer)
    bind(pipe.transformer)
