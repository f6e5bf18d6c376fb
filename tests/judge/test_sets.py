import pytest
import torch

from fewbit.judge.manifold import precision_recall
from fewbit.judge.reference import open_real
from fewbit.judge.sets import SetScores, Standard


def coloured(count: int, seed: int) -> torch.Tensor:
    """Pictures of one colour each, no two the same."""
    generator = torch.Generator().manual_seed(seed)
    colours = torch.randint(0, 256, (count, 3, 1, 1), generator=generator, dtype=torch.uint8)
    return colours.expand(-1, -1, 8, 8).contiguous()


@pytest.fixture
def real(tmp_path, save):
    for number, picture in enumerate(coloured(30, seed=0)):
        save(picture, tmp_path / f"{number:02}.png")
    return open_real(tmp_path)


def test_manifolds_are_of_equally_many_pictures(real, colours):
    drawn, exact = coloured(12, seed=1), coloured(12, seed=2)
    sets = SetScores(Standard(colours, real))
    sets.add(exact[:5], drawn[:5], range(5))
    sets.add(exact[5:], drawn[5:], range(5, 12))
    scores = {score.name: score for score in sets.scores(seed=0)}
    whole = colours.see(coloured(30, seed=0)).pooled
    ours, theirs = (precision_recall(whole[:12], colours.see(x).pooled) for x in (drawn, exact))
    assert (scores["precision"].value, scores["recall"].value) == (ours.precision, ours.recall)
    assert scores["precision"].full_precision == theirs.precision
    assert scores["recall"].full_precision == theirs.recall
    assert scores["precision"].basis.samples == 12
    unequal = precision_recall(whole, colours.see(drawn).pooled)
    assert unequal != ours  # or this could not fail


def test_the_subjects_count_only_where_the_net_knows_the_classes(colours):
    pictures = coloured(12, seed=1)
    brightest = colours.see(pictures).probabilities.argmax(1).tolist()
    for judges in (False, True):
        colours.judges = judges
        sets = SetScores(Standard(colours, None))
        sets.add(pictures.flip(0), pictures, brightest)
        scores = {score.name: score for score in sets.scores(seed=0)}
        assert ("accuracy" in scores) == judges
    assert scores["accuracy"].value == 1
    assert scores["accuracy"].full_precision < 1
