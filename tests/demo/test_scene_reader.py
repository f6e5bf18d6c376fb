"""The reader of scenes sees what was drawn, notices every field that is wrong, and nothing else."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from fewbit.demo import scenes
from fewbit.demo.check_scenes import faithfulness
from fewbit.demo.scene_reader import read, right_fields
from fewbit.demo.scenes import FIELDS, OPPOSITE, Scene, Thing
from fewbit.demo.shapes import as_float

COUNT = 48


@pytest.fixture(scope="module")
def drawn():
    return as_float(scenes.pictures(991, range(COUNT)))


@pytest.fixture(scope="module")
def described():
    return scenes.scenes(991, range(COUNT))


def test_what_was_drawn_is_read(drawn, described):
    right = faithfulness(drawn, [scene.caption for scene in described])
    assert right.shape == (COUNT, len(FIELDS))
    assert right.double().mean() > 0.99


def test_soft_and_noisy_pictures_are_read(drawn, described):
    random = torch.Generator().manual_seed(0)
    rough = F.avg_pool2d(drawn, 3, stride=1, padding=1, count_include_pad=False)
    rough = 0.9 * rough + 0.04 * torch.randn(rough.shape, generator=random)
    right = faithfulness(rough[:24], [scene.caption for scene in described[:24]])
    assert right.double().mean() > 0.97


def test_another_caption_is_right_by_chance_alone(drawn, described):
    captions = [scene.caption for scene in described[1:] + described[:1]]
    shares = faithfulness(drawn, captions).double().mean(0)
    # Of n values one is right by chance, and the better of two readings is taken.
    assert shares.mean() < 0.45


def _changed(scene: Scene) -> list[Scene]:
    """The scene with each field changed in turn."""
    other = {"small": "large", "large": "small", "red": "blue", "ring": "circle", "cross": "square"}

    def things(thing: Thing) -> list[Thing]:
        return [
            replace(thing, **{key: other.get(getattr(thing, key), value)})
            for key, value in (("size", ""), ("colour", "red"), ("shape", "ring"))
        ]

    return [
        *[replace(scene, first=thing) for thing in things(scene.first)],
        replace(scene, relation=OPPOSITE[scene.relation]),
        *[replace(scene, second=thing) for thing in things(scene.second)],
    ]


def test_each_wrong_field_is_noticed_and_no_other(drawn, described):
    for image, scene in list(zip(drawn, described, strict=True))[:6]:
        if scene.first == scene.second:
            continue
        assert right_fields(image, scene).all()
        for position, changed in enumerate(_changed(scene)):
            right = right_fields(image, changed)
            assert right.sum() == 6
            assert not right[position]


def test_a_picture_of_nothing_shows_nothing(described):
    empty = torch.full((3, 64, 64), -0.7)
    assert read(empty) == []
    assert not right_fields(empty, described[0]).any()


def test_half_a_picture_shows_one_thing(drawn, described):
    for image, scene in list(zip(drawn, described, strict=True))[:8]:
        half = image.clone()
        cut = {
            "above": (..., slice(32, 64), slice(None)),
            "below": (..., slice(32), slice(None)),
            "left of": (..., slice(32, 64)),
            "right of": (..., slice(32)),
        }[scene.relation]
        half[cut] = image[:, :1, :1].expand_as(half[cut])
        assert [seen.thing for seen in read(half)] == [scene.first]
        assert right_fields(half, scene)[:3].all()
        assert not right_fields(half, scene)[3:].any()


def test_a_smear_is_of_no_shape():
    image = torch.full((3, 64, 64), -0.7)
    image[0, 10:14, 5:60] = 0.9
    (seen,) = read(image)
    assert seen.thing.shape == seen.thing.size == ""
    assert seen.thing.colour == "red"
