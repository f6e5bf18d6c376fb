import numpy as np
import pytest
import torch
from PIL import Image

import fewbit
from fewbit.errors import BadArgument, BadModel
from fewbit.pipelines.generate import generate


def pixels(picture: Image.Image) -> bytes:
    return picture.tobytes()


def test_a_picture_is_the_same_bits_in_whatever_company(pipe):
    fewbit.quantize(pipe, "rtn", progress=False)
    many = generate(pipe, seeds=[7, 8, 9], labels=[0, 1, 2], steps=3)
    alone = generate(pipe, seeds=[8], labels=["square"], steps=3)
    assert pixels(many[1]) == pixels(alone[0])
    assert len({pixels(picture) for picture in many}) == 3


@pytest.mark.parametrize("noisy", [False, True])
def test_the_global_generator_neither_matters_nor_moves(pipe, noisy):
    if noisy:  # draws from the global generator at every step
        from diffusers import DDPMScheduler

        pipe.scheduler = DDPMScheduler()
    torch.manual_seed(1)
    first = generate(pipe, seeds=[3], steps=3)
    torch.manual_seed(2)
    before = torch.random.get_rng_state()
    second = generate(pipe, seeds=[5, 3], labels=[1, 0], steps=3)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert pixels(first[0]) == pixels(second[1])


def test_subjects_have_their_turns_and_pictures_say_what_they_are(pipe):
    pictures = generate(pipe, seeds=range(4, 8), steps=2, guidance=1.5)
    assert [picture.info["class_labels"] for picture in pictures] == ["0", "1", "2", "0"]
    assert pictures[1].info == {
        "seed": "5",
        "class_labels": "1",
        "num_inference_steps": "2",
        "guidance_scale": "1.5",
        "recipe": "full precision",
        "pipeline": "DiTPipeline",
        "fewbit": fewbit.__version__,
    }


def test_steps_and_guidance_reach_the_pipeline(pipe):
    plain, longer, stronger = (
        generate(pipe, seeds=[0], steps=steps, guidance=guidance)[0]
        for steps, guidance in [(2, 1.0), (3, 1.0), (2, 9.0)]
    )
    assert pixels(plain) != pixels(longer)
    assert pixels(plain) != pixels(stronger)


def test_the_pipeline_gets_its_own_progress_bar_back(pipe):
    pipe.set_progress_bar_config(desc="mine")
    generate(pipe, seeds=[0], steps=1)
    assert pipe._progress_bar_config == {"desc": "mine"}
    assert not pipe.transformer._forward_hooks


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"prompts": ["a cat"]}, "reads no prompts"),
        ({"labels": ["triangle"]}, "'triangle'; give a number, 0 to 2 or a name: circle, square"),
        ({"labels": [3]}, "0 to 2"),
        ({"labels": [-1]}, "0 to 2"),
        ({"steps": 0}, "steps must be a positive number, got 0"),
    ],
)
def test_what_the_pipeline_cannot_do_is_refused(pipe, arguments, sentence):
    with pytest.raises(BadArgument, match=sentence):
        generate(pipe, seeds=[0], **{"steps": 1, **arguments})


def test_a_transformer_alone_is_told_what_it_lacks(pipe):
    with pytest.raises(BadModel, match="VAE and a scheduler"):
        generate(pipe.transformer, seeds=[0])


class Reader:
    """A pipeline that reads prompts."""

    def __init__(self) -> None:
        self.transformer = torch.nn.Identity()

    def set_progress_bar_config(self, **_: object) -> None: ...

    def __call__(self, prompt, num_inference_steps=4, generator=None, output_type="pil"):
        value = generator.initial_seed() + len(prompt[0])
        picture = Image.fromarray(np.full((2, 2, 3), value, dtype=np.uint8))
        return type("Output", (), {"images": [picture]})


def test_prompts_go_to_pipelines_that_read():
    pictures = generate(Reader(), seeds=[10, 20], prompts=["abc"])
    assert [picture.getpixel((0, 0))[0] for picture in pictures] == [13, 23]
    assert pictures[0].info["prompt"] == "abc"
    for arguments, sentence in [
        ({"labels": [1]}, "knows no classes"),
        ({}, "at least one prompt"),
        ({"prompts": ["x"], "guidance": 2.0}, "no guidance_scale"),
    ]:
        with pytest.raises(BadArgument, match=sentence):
            generate(Reader(), seeds=[0], **arguments)


def test_pictures_drawn_together_have_their_own_seeds_and_subjects(pipe):
    alone = generate(pipe, seeds=range(4, 8), steps=2)
    together = generate(pipe, seeds=range(4, 8), steps=2, together=3)
    assert [picture.info for picture in together] == [picture.info for picture in alone]
    for one, other in zip(alone, together, strict=True):
        # Another order of float32 sums, and then bytes: at most one level.
        apart = np.abs(np.asarray(one).astype(int) - np.asarray(other).astype(int))
        assert apart.max() <= 1
