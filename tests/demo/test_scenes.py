"""The scenes data set: the same picture for the same (seed, number), and captions that say so."""

import hashlib
from collections import Counter

import pytest
import torch

from fewbit.demo import scenes
from fewbit.demo.scenes import INKS, OPPOSITE, SHAPES, SIDES, Scene, Thing, parse
from fewbit.errors import BadArgument

PICTURE_10 = "636b05f5e73ddf24b444220539c14e246b7bf85d19c56ca5f483cdae279a7441"

# The axis on which the first thing lies apart from the second, and in which direction; y is down.
TOWARDS = {"above": (1, -1), "below": (1, 1), "left of": (0, -1), "right of": (0, 1)}


def test_a_picture_depends_only_on_seed_and_number():
    together = scenes.pictures(3, range(120))
    assert torch.equal(scenes.pictures(3, [119, 5]), together[[119, 5]])
    assert not torch.equal(scenes.pictures(4, [5]), together[[5]])
    assert scenes.scenes(3, [119]) == scenes.scenes(3, range(120))[119:]
    assert len(together.flatten(1).unique(dim=0)) == 120


def test_the_bytes_and_the_caption_of_one_picture_are_known():
    picture = scenes.pictures(0, [10])[0]
    assert picture.shape == (3, scenes.SIZE, scenes.SIZE)
    assert picture.dtype == torch.uint8
    assert hashlib.sha256(picture.numpy().tobytes()).hexdigest() == PICTURE_10
    assert scenes.scenes(0, [10])[0].caption == "a small purple cross right of a small blue ring"


def test_no_picture_is_an_empty_tensor():
    assert scenes.pictures(0, []).shape == (0, 3, 64, 64)
    assert scenes.scenes(0, []) == []


def test_every_value_of_every_field_is_drawn_equally_often():
    drawn = scenes.scenes(1, range(6000))
    for position, kinds in enumerate((2, 6, 5, 4, 2, 6, 5)):
        counts = Counter(scene.fields[position] for scene in drawn)
        assert len(counts) == kinds
        # A count of 6000 p has the deviation sqrt(6000 p (1 - p)) < 39; five are allowed.
        assert all(abs(count - 6000 / kinds) < 200 for count in counts.values())


def test_a_caption_says_the_whole_scene():
    for scene in scenes.scenes(2, range(300)):
        assert parse(scene.caption) == scene
        assert parse(scene.caption.upper()) == scene


@pytest.mark.parametrize("name", SIDES)
def test_sides_have_opposites(name):
    assert OPPOSITE[OPPOSITE[name]] == name
    assert [a + b for a, b in zip(SIDES[name], SIDES[OPPOSITE[name]], strict=True)] == [0, 0]


def test_the_first_thing_is_where_the_relation_says():
    for number, scene in enumerate(scenes.scenes(6, range(60))):
        if scene.first.colour == scene.second.colour:
            continue
        picture = scenes.pictures(6, [number])[0].double()
        x, y = (_middle(picture, t.colour) for t in (scene.first, scene.second))
        along, sign = TOWARDS[scene.relation]
        assert sign * (x - y)[along] > 20


def _middle(picture: torch.Tensor, colour: str) -> torch.Tensor:
    ink = torch.tensor(INKS[colour], dtype=torch.float64)[:, None, None]
    rows, columns = torch.where((picture - ink).abs().amax(0) < 12)
    return torch.stack([columns.double().mean(), rows.double().mean()])


@pytest.mark.parametrize(
    ("caption", "sentence"),
    [
        ("", "'' is no scene; one is 'a small red circle above a large blue square'"),
        ("a small red circle", "is no scene"),
        ("a small red circle under a large blue square", "is no scene"),
        ("the small red circle above a large blue square", "is no scene"),
        ("a small pink circle above a large blue square", "'pink' in .*allowed: red, yellow"),
        ("a small red circle above a huge blue square", "'huge' in .*allowed: small, large"),
        ("a small red circle left a large blue square", "is no scene"),
    ],
)
def test_what_is_no_caption_is_refused(caption, sentence):
    with pytest.raises(BadArgument, match=sentence):
        parse(caption)


def test_shapes_and_colours_are_the_known_ones():
    assert len(SHAPES) == 5
    assert len(INKS) == 6
    assert str(Thing("small", "red", "ring")) == "a small red ring"
    assert Scene(
        Thing("small", "red", "ring"), "left of", Thing("large", "blue", "cross")
    ).fields == (("small", "red", "ring", "left of", "large", "blue", "cross"))
