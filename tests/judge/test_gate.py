import pytest
import torch

from fewbit.judge.gate import Gate


def picture(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(60, 200, (3, 16, 16), dtype=torch.uint8, generator=generator)


def flat(level: int) -> torch.Tensor:
    return torch.full((3, 16, 16), level, dtype=torch.uint8)


def findings(*pairs: tuple[torch.Tensor, torch.Tensor]) -> list[str]:
    gate = Gate()
    for reference, drawn in pairs:
        gate.add(reference, drawn)
    return gate.findings()


def healthy(count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(picture(seed), (picture(seed).int() + 3).to(torch.uint8)) for seed in range(count)]


def test_a_little_worse_passes():
    assert findings(*healthy(3)) == []
    assert findings() == []


@pytest.mark.parametrize(
    ("drawn", "what"), [(flat(0), "black"), (flat(5), "black"), (flat(128), "of one colour")]
)
def test_one_flat_picture_among_many_is_found(drawn, what):
    assert findings(*healthy(9), (picture(9), drawn)) == [f"1 of 10 pictures are {what}"]


def test_what_is_flat_in_full_precision_may_be_flat():
    assert findings((flat(0), flat(0)), (flat(9), flat(10))) == []


def test_a_drift_of_one_colour_is_found_with_its_sign():
    shifted = picture(0).int()
    shifted[2] -= 30
    [finding] = findings((picture(0), shifted.to(torch.uint8)))
    assert finding == "the mean colour moved by R +0, G +0, B -30 of 255, allowed 20"


def test_drifts_of_single_pictures_that_cancel_are_no_drift():
    up, down = ((picture(0).int() + by).to(torch.uint8) for by in (30, -30))
    assert findings((picture(0), up), (picture(0), down)) == []


def test_saturation_is_found_where_full_precision_has_less():
    clipped = picture(0)
    clipped[:, :2], clipped[:, 2:4] = 0, 255
    assert findings((picture(0), clipped)) == ["25% more values are saturated, allowed 10%"]
    assert findings((clipped, clipped)) == []
