import math

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate

from fewbit.errors import BadArgument
from fewbit.judge.pixels import psnr, sqnr, ssim


def noise(seed: int, height: int = 24, width: int = 20) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


def blurred(picture: torch.Tensor) -> torch.Tensor:
    moved = torch.stack([picture.roll((dy, dx), (1, 2)) for dy in (0, 1) for dx in (0, 1)])
    return moved.float().mean(0).to(torch.uint8)


def ssim_by_scipy(x: np.ndarray, y: np.ndarray) -> float:
    """The definition, one channel at a time, with the window in two dimensions."""
    places = np.arange(-5, 6)
    window = np.exp(-(places[:, None] ** 2 + places**2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for a, b in zip(x.astype(float), y.astype(float), strict=True):
        mean_a, mean_b = correlate(a, window), correlate(b, window)
        var_a = correlate(a * a, window) - mean_a**2
        var_b = correlate(b * b, window) - mean_b**2
        both = correlate(a * b, window) - mean_a * mean_b
        c1, c2 = 0.01**2 * 255**2, 0.03**2 * 255**2
        top = (2 * mean_a * mean_b + c1) * (2 * both + c2)
        whole = (top / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)))[5:-5, 5:-5]
        values.append(whole.mean())
    return float(np.mean(values))


def test_equal_pictures_are_perfect():
    picture = noise(0)
    assert psnr(picture, picture) == sqnr(picture, picture) == math.inf
    assert ssim(picture, picture) == 1.0


def test_psnr_of_one_level_everywhere_is_known():
    picture = torch.full((3, 12, 12), 100, dtype=torch.uint8)
    assert psnr(picture, picture + 1) == pytest.approx(20 * math.log10(255), rel=1e-12)
    assert psnr(picture, picture - 1) == psnr(picture, picture + 1)  # no bytes wrap around
    assert sqnr(picture, picture + 1) == pytest.approx(40, rel=1e-12)
    black, white = torch.zeros_like(picture), torch.full_like(picture, 255)
    assert psnr(black, white) == pytest.approx(0, abs=1e-12)


def test_psnr_is_that_of_the_definition_in_numpy():
    x, y = noise(1), noise(2)
    error = np.mean((x.numpy().astype(float) - y.numpy().astype(float)) ** 2)
    assert psnr(x, y) == pytest.approx(10 * np.log10(255**2 / error), rel=1e-9)


@pytest.mark.parametrize("size", [(11, 11), (24, 20), (33, 12)])
def test_ssim_is_that_of_scipy(size):
    for x, y in [(noise(1, *size), noise(2, *size)), (noise(3, *size), blurred(noise(3, *size)))]:
        # Both are sums of a few thousand doubles in another order.
        assert ssim(x, y) == pytest.approx(ssim_by_scipy(x.numpy(), y.numpy()), rel=1e-9, abs=1e-12)


def test_ssim_of_two_flat_pictures_is_known():
    dark = torch.full((3, 11, 11), 50, dtype=torch.uint8)
    c1 = (0.01 * 255) ** 2
    expected = (2 * 50 * 100 + c1) / (50**2 + 100**2 + c1)
    assert ssim(dark, dark * 2) == pytest.approx(expected, rel=1e-12)


def test_ssim_orders_what_eyes_order():
    picture = noise(4)
    assert 1 > ssim(picture, blurred(picture)) > ssim(picture, noise(5)) > -1


def test_ssim_needs_a_whole_window():
    with pytest.raises(BadArgument, match="windows of 11x11 pixels; a picture has only 12x10"):
        ssim(noise(0, 10, 12), noise(1, 10, 12))
