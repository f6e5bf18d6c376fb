import hashlib

import numpy as np
import pytest
import torch

from fewbit.demo import shapes
from fewbit.errors import BadArgument, BrokenFile
from fewbit.judge.reference import Shapes, open_real, real_for, refuse_other_size


def statistics(width: int = 3, spatial: int = 6) -> dict[str, np.ndarray]:
    return {
        "mu": np.arange(width, dtype=np.float64),
        "sigma": np.eye(width),
        "mu_s": np.ones(spatial, dtype=np.float32),
        "sigma_s": 2 * np.eye(spatial),
    }


def test_adm_statistics_are_read_as_they_are(tmp_path):
    np.savez(tmp_path / "adm.npz", **statistics())
    real = open_real(tmp_path / "adm.npz")
    pooled, spatial = real.statistics
    assert pooled.mean.tolist() == [0, 1, 2]
    assert torch.equal(pooled.covariance, torch.eye(3).double())
    assert spatial.mean.dtype == spatial.covariance.dtype == torch.float64
    assert torch.equal(spatial.covariance, 2 * torch.eye(6).double())
    assert (real.size, list(real.chunks())) == (None, [])
    assert real.sha256() == hashlib.sha256((tmp_path / "adm.npz").read_bytes()).hexdigest()


def test_adm_batches_may_hold_pictures_too(tmp_path, pictures):
    rows = pictures(4, 8, 10)
    images = rows.permute(0, 2, 3, 1).contiguous().numpy()
    np.savez(tmp_path / "both.npz", arr_0=images, **statistics())
    real = open_real(tmp_path / "both.npz")
    assert real.statistics is not None
    assert real.size == (10, 8)
    assert torch.equal(torch.cat(list(real.chunks())), rows)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"sigma": np.eye(4)}, r"needed, got \[3\] and \[4, 4\]"),
        ({"mu": np.zeros((3, 1))}, r"got \[3, 1\] and \[3, 3\]"),
        ({"sigma": np.full((3, 3), np.nan)}, "not all finite"),
        ({"mu": np.array([{}], dtype=object)}, "is not a readable npz: Object arrays cannot"),
    ],
)
def test_odd_statistics_are_refused(tmp_path, changes, sentence):
    np.savez(tmp_path / "odd.npz", **{**statistics(), **changes})
    with pytest.raises(BrokenFile, match=sentence):
        open_real(tmp_path / "odd.npz")


def test_an_npz_of_other_things_says_what_is_allowed(tmp_path):
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(BrokenFile, match=r"holds x; allowed: arr_0, mu, sigma, mu_s, sigma_s"):
        open_real(tmp_path / "other.npz")


def test_a_folder_is_read_in_order_and_the_unreadable_is_named(tmp_path, pictures, save):
    rows = pictures(3)
    for number, name in enumerate(["a.png", "b.png", "d.png"]):
        save(rows[number], tmp_path / name)
    (tmp_path / "c.png").write_bytes(b"nonsense")
    real = open_real(tmp_path)
    assert real.size == (16, 16)
    for _ in range(2):
        assert torch.equal(torch.cat(list(real.chunks())), rows)
        [message] = real.unreadable
        assert "c.png" in message


def test_a_folder_has_one_resolution(tmp_path, pictures, save):
    save(pictures(1, 16, 16)[0], tmp_path / "a.png")
    save(pictures(1, 16, 18)[0], tmp_path / "b.png")
    with pytest.raises(BadArgument, match=r"b\.png has 18x16 pixels.* 16x16"):
        list(open_real(tmp_path).chunks())


@pytest.mark.parametrize("content", [None, b"nonsense"])
def test_a_folder_without_pictures_is_refused(tmp_path, content):
    if content:
        (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(BrokenFile, match="holds no readable picture"):
        open_real(tmp_path)


def test_what_is_not_there_says_what_it_should_be(tmp_path):
    with pytest.raises(BrokenFile, match=r"does not exist; real pictures are a folder or ADM's"):
        open_real(tmp_path / "nowhere")


def test_other_resolutions_are_refused(tmp_path, pictures, save):
    save(pictures(1, 8, 12)[0], tmp_path / "a.png")
    real = open_real(tmp_path)
    refuse_other_size(real, (12, 8))
    with pytest.raises(BadArgument, match="have 12x8 pixels, those drawn 64x64"):
        refuse_other_size(real, (64, 64))


def test_the_shapes_are_pictures_of_the_data_set():
    real = Shapes(count=70)
    parts = list(real.chunks())
    assert sum(map(len, parts)) == 70
    assert real.size == (parts[0].shape[-1], parts[0].shape[-2])
    from fewbit.judge.reference import UNSEEN_SEED

    assert torch.equal(parts[1][-1:], shapes.pictures(UNSEEN_SEED, [69]))


def test_a_path_without_a_net_to_look_at_it_says_what_to_put_where(tmp_path, colours):
    with pytest.raises(BadArgument, match=r"--inception .*pt_inception-2015-12-05-6726825d\.pth"):
        real_for(tmp_path, None)
    assert real_for(None, colours) is None
    assert real_for(None, None) is None
