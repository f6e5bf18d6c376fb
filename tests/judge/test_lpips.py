import pytest
import torch
import torch.nn.functional as F

from fewbit.errors import BadArgument, BrokenFile
from fewbit.judge import lpips
from fewbit.judge.lpips import LINEAR_FILE, VGG_FILE, Lpips

CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)  # torchvision's numbers
TAPPED = (2, 7, 14, 21, 28)  # the last of each stage


@pytest.fixture
def thin(monkeypatch):
    """VGG's depth at a fraction of its width."""
    monkeypatch.setattr(lpips, "STAGES", ((4, 4), (6, 6), (8, 8, 8), (8, 8, 8), (8, 8, 8)))


@pytest.fixture
def folder(thin, tmp_path):
    random = torch.Generator().manual_seed(0)
    state, channels = {}, 3
    widths = [width for stage in lpips.STAGES for width in stage]
    for number, width in zip(CONVOLUTIONS, widths, strict=True):
        shape = (width, channels, 3, 3)
        state[f"features.{number}.weight"] = torch.randn(shape, generator=random) / channels
        state[f"features.{number}.bias"] = torch.randn(width, generator=random)
        channels = width
    torch.save({**state, "classifier.0.weight": torch.zeros(2)}, tmp_path / VGG_FILE)
    linear = {
        f"lin{n}.model.1.weight": torch.rand(1, stage[-1], 1, 1, generator=random)
        for n, stage in enumerate(lpips.STAGES)
    }
    torch.save(linear, tmp_path / LINEAR_FILE)
    return tmp_path


def by_hand(folder, one, other):
    """Equation 1 of the paper, a picture at a time."""
    state = torch.load(folder / VGG_FILE)
    linear = torch.load(folder / LINEAR_FILE)
    shift = torch.tensor([-0.030, -0.088, -0.188])[:, None, None]
    scale = torch.tensor([0.458, 0.448, 0.450])[:, None, None]
    x, y = (((picture.float() / 255 * 2 - 1) - shift) / scale for picture in (one, other))
    total, stage = 0.0, 0
    for number in CONVOLUTIONS:
        if number in (5, 10, 17, 24):
            x, y = (F.max_pool2d(picture[None], 2, 2)[0] for picture in (x, y))
        weight, bias = (state[f"features.{number}.{kind}"] for kind in ("weight", "bias"))
        x, y = (F.conv2d(picture[None], weight, bias, padding=1)[0].relu() for picture in (x, y))
        if number in TAPPED:
            u, v = (picture / (picture.norm(dim=0) + 1e-10) for picture in (x, y))
            weights = linear[f"lin{stage}.model.1.weight"].flatten()
            total += float(torch.einsum("c,chw->hw", weights, (u - v) ** 2).mean())
            stage += 1
    return total


def test_it_is_the_papers_distance(folder, pictures):
    one, other = pictures(3, 32, 48), pictures(3, 32, 48, seed=1)
    metric = Lpips(folder)
    expected = [by_hand(folder, a, b) for a, b in zip(one, other, strict=True)]
    assert metric.measure(one, other) == pytest.approx(expected, rel=1e-4)
    assert metric.measure(other, one) == pytest.approx(expected, rel=1e-4)
    assert metric.measure(one, one) == [0.0, 0.0, 0.0]
    assert metric.better == "lower"
    assert len(metric.weights_sha256) == 64


@pytest.mark.parametrize("name", [VGG_FILE, LINEAR_FILE])
def test_a_missing_or_foreign_file_is_named_with_what_belongs_there(folder, name):
    (folder / name).write_bytes(b"nonsense")
    with pytest.raises(BrokenFile, match=rf"{name} holds no readable weights; give --lpips"):
        Lpips(folder)
    torch.save({"a": torch.zeros(1)}, folder / name)
    with pytest.raises(BrokenFile, match=r"must be \[.*\], got nothing; give --lpips a folder"):
        Lpips(folder)
    (folder / name).unlink()
    with pytest.raises(BrokenFile, match=rf"{name} is missing; give --lpips a folder with"):
        Lpips(folder)


def test_pictures_too_small_for_four_halvings_are_refused(folder, pictures):
    with pytest.raises(BadArgument, match="16x16 pixels or more, got 16x8"):
        Lpips(folder).measure(pictures(1, 8, 16), pictures(1, 8, 16))
