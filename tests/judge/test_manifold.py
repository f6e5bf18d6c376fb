import pytest
import torch
from torch import Tensor

from fewbit.errors import BadArgument
from fewbit.judge import manifold
from fewbit.judge.manifold import precision_recall


def points(seed: int, count: int, width: int = 3, far: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-6, 7, (count, width), generator=generator).float() + far


def share_inside(candidates: Tensor, centres: Tensor, neighbours: int) -> float:
    """By the definition, a pair at a time."""
    inside = 0
    radii = []
    for i, centre in enumerate(centres):
        others = sorted(
            (centre - other).square().sum().item() for j, other in enumerate(centres) if j != i
        )
        radii.append(others[neighbours - 1])
    for candidate in candidates:
        inside += any(
            (candidate - centre).square().sum().item() <= radius
            for centre, radius in zip(centres, radii, strict=True)
        )
    return inside / len(candidates)


@pytest.mark.parametrize("neighbours", [1, 3])
def test_whole_numbers_give_the_definition_exactly(neighbours):
    real, drawn = points(0, 40), points(1, 33, far=3)
    found = precision_recall(real, drawn, neighbours)
    assert found.precision == share_inside(drawn, real, neighbours)
    assert found.recall == share_inside(real, drawn, neighbours)
    assert 0 < found.precision < 1


def test_chunks_change_nothing(monkeypatch):
    real, drawn = points(2, 50), points(3, 41, far=2)
    whole = precision_recall(real, drawn)
    monkeypatch.setattr(manifold, "CHUNK", 7)
    assert precision_recall(real, drawn) == whole


def test_a_set_lies_on_its_own_manifold_and_not_on_a_distant_one():
    real = points(4, 20)
    itself = precision_recall(real, real)
    distant = precision_recall(real, real + 1000)
    assert (itself.precision, itself.recall) == (1, 1)
    assert (distant.precision, distant.recall) == (0, 0)


def test_drawing_one_thing_again_and_again_is_precise_and_recalls_little():
    real = points(5, 60, width=4)
    drawn = real[:1].repeat(60, 1)
    found = precision_recall(real, drawn)
    assert found.precision == 1
    assert found.recall < 0.1


def test_too_few_are_told_the_minimum_and_the_bias():
    with pytest.raises(BadArgument, match=r"at least 4 pictures of each kind, got 3.*the larger"):
        precision_recall(points(0, 3), points(1, 9))
