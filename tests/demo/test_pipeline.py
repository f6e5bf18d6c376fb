"""The shapes pipeline: stock diffusers loads it, and its pictures are what they should be."""

import pytest
import torch
from PIL import Image

from demos import denoiser
from demos.sampling import SHAPES, sample, save_grid
from fewbit import demo
from fewbit.demo import shapes
from fewbit.demo.check_shapes import recognised


@pytest.fixture(scope="module")
def pipeline():
    pipeline = demo.load("shapes")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_the_stock_class_loads_the_folder(pipeline):
    from diffusers import DiTPipeline

    stock = DiTPipeline.from_pretrained(demo.path("shapes"))
    assert type(pipeline) is DiTPipeline
    assert stock.get_label_ids(list(shapes.NAMES)) == list(range(12))
    for mine, theirs in zip(
        pipeline.transformer.parameters(), stock.transformer.parameters(), strict=True
    ):
        assert torch.equal(mine, theirs)


def test_the_dtype_is_the_one_asked_for():
    assert demo.load("shapes", torch.bfloat16).transformer.dtype == torch.bfloat16


def test_every_block_holds_an_identical_copy_of_the_embedding(pipeline):
    first, *others = [b.norm1.emb.state_dict() for b in pipeline.transformer.transformer_blocks]
    assert first["class_embedder.embedding_table.weight"][: len(shapes.NAMES)].any(1).all()
    assert first["class_embedder.embedding_table.weight"][denoiser.NO_CLASS].any()
    for other in others:
        assert all(torch.equal(first[key], other[key]) for key in first)


def test_the_autoencoder_returns_the_picture(pipeline):
    image = shapes.as_float(shapes.pictures(992, range(24)))
    with torch.no_grad():
        latent = pipeline.vae.encode(image).latent_dist.mean
        decoded = pipeline.vae.decode(latent).sample
    error = (decoded - image).square().mean() / 4
    assert -10 * error.log10() > 28  # dB
    assert (latent.mean((0, 2, 3)).abs() < 0.3).all()
    assert (latent.std((0, 2, 3)) - 1).abs().max() < 0.2


def test_guided_samples_are_recognised(pipeline):
    label = shapes.labels(range(36))
    images = sample(pipeline, label.tolist(), range(36), {**SHAPES, "num_inference_steps": 20})
    right = recognised(images, label)
    # The shipped rate is measured at 95 % or more; 36 pictures at 95 % miss 6 once in 300 times.
    assert right.sum() >= 31
    assert recognised(images, label.roll(1)).sum() <= 5


def test_a_batch_does_not_change_a_picture(pipeline):
    together = sample(pipeline, [1, 6, 10], [7, 8, 9], {**SHAPES, "num_inference_steps": 4})
    alone = sample(pipeline, [6], [8], {**SHAPES, "num_inference_steps": 4})
    # Matrix products of other sizes add in another order: some fp32 roundings of values up to 1,
    # amplified by guidance and 4 steps. Another seed differs by about 1.
    assert (together[1] - alone[0]).abs().max() < 1e-3
    other = sample(pipeline, [6], [9], {**SHAPES, "num_inference_steps": 4})
    assert (together[1] - other[0]).abs().max() > 0.1


def test_the_same_seed_gives_the_same_bits(pipeline):
    once, again = (
        sample(pipeline, [2, 3], [0, 1], {**SHAPES, "num_inference_steps": 3}) for _ in range(2)
    )
    assert torch.equal(once, again)


def test_the_grid_has_one_column_per_class(tmp_path):
    images = torch.linspace(-1, 1, 6)[:, None, None, None].expand(6, 3, 64, 64)
    save_grid(images, 3, tmp_path / "grid.png", ["a", "b", "c"])
    sheet = Image.open(tmp_path / "grid.png")
    shades = [level for _, level in sheet.convert("L").getcolors() if _ >= 64 * 64]
    assert set(shades) >= {0, 51, 102, 153, 204, 255}
