import sys
from types import ModuleType

import pytest
import torch

from fewbit.judge.alike import Named
from fewbit.judge.checkers import Faithfulness, checker_for
from fewbit.judge.evaluation import Judges, Setting, evaluate


@pytest.fixture
def checker(monkeypatch):
    """A demo whose captions say two things: is it bright above, and is it bright below?"""
    module = ModuleType("fewbit.demo.check_halves")
    module.captions = lambda count: [f"caption {n}" for n in range(count)]

    def faithfulness(images, captions):
        assert images.min() >= -1
        assert images.max() <= 1
        assert len(captions) == len(images)
        return torch.stack([half.mean((1, 2, 3)) > 0 for half in images.chunk(2, dim=2)], 1)

    module.faithfulness = faithfulness
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: sys.modules.get(name))
    monkeypatch.setattr("fewbit.demo.names", lambda: ["halves", "shapes"])
    return module


def test_it_is_found_by_the_demos_name(checker):
    found = checker_for("halves")
    assert found.captions(2) == ["caption 0", "caption 1"]
    assert checker_for("another") is None


def test_a_demo_that_a_classifier_judges_has_none():
    assert checker_for("shapes") is None


def test_the_share_of_things_that_are_right(checker):
    picture = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    above, both = picture.clone(), picture.clone()
    above[:, :, :2] = 255
    both[:] = 255
    drawn = torch.cat([picture, above, both])
    assert Faithfulness(checker).measure(drawn, ["a", "b", "c"]) == [0.0, 0.5, 1.0]


def test_it_stands_among_the_scores_with_full_precisions_own(checker, pipe, other_pipe, tmp_path):
    pipe.vae.decoder.conv_out.bias.data.fill_(-9)
    judges = Judges(pictures=(Faithfulness(checker),), networks=False)
    found = evaluate(
        Named(pipe, "m"), Named(other_pipe, "r"), Setting(4, steps=1), tmp_path, judges
    )
    score = found.score("faithfulness")
    assert score.value == 0.0
    assert score.full_precision > 0
    assert score.each == (0.0,) * 4
    assert score.better == "higher"
