import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from fewbit.errors import BrokenFile
from fewbit.judge import reading
from fewbit.judge.reading import NpzPictures, picture_files, read_picture, write_npz


def test_a_picture_comes_back_with_its_bytes(tmp_path, pictures, save):
    [picture] = pictures(1, 5, 9)
    save(picture, tmp_path / "a.png")
    assert torch.equal(read_picture(tmp_path / "a.png"), picture)


def test_grey_and_transparent_pictures_have_three_channels_too(tmp_path):
    for mode in ("L", "RGBA", "P"):
        Image.new(mode, (4, 6)).save(tmp_path / f"{mode}.png")
        assert read_picture(tmp_path / f"{mode}.png").shape == (3, 6, 4)


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_picture_is_named(tmp_path, content):
    file = tmp_path / "broken.png"
    file.write_bytes(content)
    with pytest.raises(BrokenFile, match=r"cannot read the picture .*broken\.png"):
        read_picture(file)


def test_half_a_picture_is_named(tmp_path, pictures, save):
    file = tmp_path / "half.png"
    save(pictures(1)[0], file)
    file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(BrokenFile, match=r"half\.png"):
        read_picture(file)


def test_files_are_taken_in_order_and_others_left_alone(tmp_path, pictures, save):
    for name in ("b.png", "a.JPG", "c.jpeg"):
        save(pictures(1)[0], tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    assert [file.name for file in picture_files(tmp_path)] == ["a.JPG", "b.png", "c.jpeg"]


def test_npz_is_what_numpy_reads(tmp_path, pictures, save):
    files = [tmp_path / f"{number}.png" for number in range(5)]
    for picture, file in zip(pictures(5, 4, 6), files, strict=True):
        save(picture, file)
    write_npz(files, tmp_path / "all.npz")
    with np.load(tmp_path / "all.npz", allow_pickle=False) as archive:
        assert archive.files == ["arr_0"]
        assert archive["arr_0"].dtype == np.uint8
        np.testing.assert_array_equal(archive["arr_0"], pictures(5, 4, 6).permute(0, 2, 3, 1))


@pytest.mark.parametrize("save_npz", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("chunk", [2, 5, 64])
def test_what_numpy_wrote_is_read_in_chunks(tmp_path, pictures, monkeypatch, save_npz, chunk):
    monkeypatch.setattr(reading, "CHUNK", chunk)
    rows = pictures(5, 4, 6)
    save_npz(tmp_path / "all.npz", rows.permute(0, 2, 3, 1).contiguous().numpy())
    found = NpzPictures(tmp_path / "all.npz")
    assert (found.count, found.size) == (5, (6, 4))
    parts = list(found.chunks())
    assert max(map(len, parts)) <= chunk
    assert torch.equal(torch.cat(parts), rows)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (np.zeros((2, 4, 4, 3)), r"must be bytes in rows, \[N, height, width, 3\], got float64"),
        (np.zeros((2, 3, 4, 4), np.uint8), r"got uint8 \[2, 3, 4, 4\]"),
        (np.zeros((4, 4, 3), np.uint8), r"\[4, 4, 3\]"),
        (np.asfortranarray(np.zeros((2, 4, 4, 3), np.uint8)), "must be bytes in rows"),
        (np.array([{"a": 1}], dtype=object), r"got object \[1\]"),
    ],
)
def test_other_arrays_are_refused_and_nothing_is_unpickled(tmp_path, content, sentence):
    np.savez(tmp_path / "odd.npz", content)
    with pytest.raises(BrokenFile, match=sentence):
        NpzPictures(tmp_path / "odd.npz")


def test_an_npz_that_ends_early_is_named(tmp_path, pictures):
    np.savez(tmp_path / "all.npz", pictures(5).permute(0, 2, 3, 1).contiguous().numpy())
    with zipfile.ZipFile(tmp_path / "all.npz") as whole:
        content = whole.read("arr_0.npy")
    with zipfile.ZipFile(tmp_path / "short.npz", "w") as short:
        short.writestr("arr_0.npy", content[:-1])
    with pytest.raises(BrokenFile, match=r"short\.npz ends after 0 of 5 pictures"):
        list(NpzPictures(tmp_path / "short.npz").chunks())


def test_what_is_no_archive_is_named(tmp_path):
    (tmp_path / "no.npz").write_bytes(b"PK nonsense")
    with pytest.raises(BrokenFile, match=r"no\.npz holds no readable arr_0"):
        NpzPictures(tmp_path / "no.npz")
