"""How big, how fast, how good: the words, and what to try next."""

import math

import pytest

from fewbit.engine.measured import Measured
from fewbit.engine.recipe import method_named, recipes
from fewbit.engine.stored_size import Size
from fewbit.engine.verdict import CLOSER, closer, verdict, words_for


def said(method="hq-dit", bits="w4a4", **measured):
    recipe = {"method": method, "bits": bits}
    return verdict(recipe, Size(2_800_000, 700_000, 800_000), 8_600_000, measured)


def test_three_lines_and_what_to_try():
    assert said(transformer=Measured(0.02, 0.05, 25.04, 8)) == [
        "",
        "  size   4.3 MB saved and loaded: packed 2.8, kept layers 0.7, other 0.8",
        "         2.00x smaller than in bfloat16 (8.6 MB)",
        "  speed  2.50x that of bfloat16 here: 20.0 ms a call beside 50.0",
        "  match  25.0 dB beside full precision, on inputs that the calibration saw:",
        "         pictures are alike, some details differ (from 40 dB none can tell, from",
        "         30 only side by side, from 20 they are alike); on others it may be some",
        "         dB less, as `fewbit evaluate` says",
        "  closer best:w4a4 or best:w4a8",
    ]


@pytest.mark.parametrize(
    ("db", "words"),
    [
        (math.inf, "cannot be told apart"),
        (40.0, "cannot be told apart"),
        (39.9, "only side by side"),
        (20.0, "pictures are alike"),
        (19.9, "at first sight"),
        (9.9, "spoiled"),
        (-math.inf, "spoiled"),
    ],
)
def test_the_scale(db, words):
    assert words in words_for(db)


@pytest.mark.parametrize(
    ("method", "bits", "better"),
    [
        ("hq-dit", "w4a4", "best:w4a4 or best:w4a8"),
        ("rtn", "w4a8", "best:w4a8 or best:w8a8"),
        ("rtn", "w8a8", "best:w8a8"),
        ("fp4dit", "w4a6", "best:w4a8 or best:w8a8"),
        ("best", "w2a8", "best:w4a4 or best:w3a8"),
        ("best", "w4a8", "best:w8a8"),
        ("best", "w8a8", None),
        ("best", "nvfp4", "best:w4a8 or best:w8a8"),
    ],
)
def test_what_comes_closer(method, bits, better):
    assert closer({"method": method, "bits": bits}) == better


def test_whatever_is_proposed_is_there():
    assert set(CLOSER) <= method_named("best").variants.keys()
    for recipe in recipes():
        for bits in recipe.bits:
            better = closer({"method": recipe.name, "bits": bits})
            assert better is not None or (recipe.name, bits) == ("best", "w8a8")


def test_what_is_close_enough_needs_no_proposal():
    assert "closer" not in "\n".join(said(transformer=Measured(db=41.0)))
    assert "the keep of a spec" in "\n".join(said("best", "w8a8"))


def test_each_of_several_networks_has_its_lines():
    text = "\n".join(said(transformer=Measured(0.1, 0.2), transformer_2=Measured(db=30)))
    assert "speed  transformer: 2.00x" in text
    assert "match  transformer_2: 30.0 dB" in text


def test_no_line_is_wider_than_80():
    found = Measured(why_not="RuntimeError: " + "long words " * 15)
    assert all(len(line) <= 80 for line in said(transformer=found))
