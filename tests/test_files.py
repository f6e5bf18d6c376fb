"""Writing aside: the old or the new, whole, and nothing left lying about."""

import pytest

from fewbit import files
from fewbit.errors import BadOutput
from fewbit.files import new_folder, replacing, write_text


class Unlucky(Exception):
    pass


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_and_replaced(tmp_path):
    path = tmp_path / "deep" / "er" / "file.txt"
    write_text(path, "one")
    write_text(path, "two")
    assert path.read_text() == "two"
    assert names(path.parent) == ["file.txt"]


def break_off(path):
    with replacing(path) as aside:
        aside.write_text("half")
        raise Unlucky


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    write_text(path, "old")
    with pytest.raises(Unlucky):
        break_off(path)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file.txt"]


def fill(path, text, overwrite=False, fail=False):
    with new_folder(path, overwrite) as folder:
        (folder / "inside.txt").write_text(text)
        if fail:
            raise Unlucky


@pytest.mark.parametrize("exchange", [True, False])
class TestFolder:
    @pytest.fixture(autouse=True)
    def _system(self, exchange, monkeypatch):
        """With and without the system call that exchanges two names."""
        if not exchange:
            monkeypatch.setattr(files, "_exchange", lambda one, other: False)

    def test_new_empty_and_overwritten(self, tmp_path):
        path = tmp_path / "out"
        fill(path, "one")
        fill(path, "two", overwrite=True)
        assert (path / "inside.txt").read_text() == "two"
        (tmp_path / "empty").mkdir()
        fill(tmp_path / "empty", "three")
        assert names(tmp_path) == ["empty", "out"]
        assert names(tmp_path / "empty") == ["inside.txt"]

    def test_what_is_there_is_not_overwritten_unasked(self, tmp_path):
        fill(tmp_path / "out", "old")
        (tmp_path / "file").write_text("old")
        for name in ("out", "file"):
            with pytest.raises(BadOutput, match="already exists and is not empty"):
                fill(tmp_path / name, "new")
        assert (tmp_path / "out" / "inside.txt").read_text() == "old"

    def test_a_failure_leaves_the_old_folder(self, tmp_path):
        fill(tmp_path / "out", "old")
        with pytest.raises(Unlucky):
            fill(tmp_path / "out", "new", overwrite=True, fail=True)
        with pytest.raises(Unlucky):
            fill(tmp_path / "never", "new", fail=True)
        assert names(tmp_path) == ["out"]
        assert (tmp_path / "out" / "inside.txt").read_text() == "old"

    def test_a_file_may_be_overwritten_by_a_folder(self, tmp_path):
        (tmp_path / "out").write_text("old")
        fill(tmp_path / "out", "new", overwrite=True)
        assert names(tmp_path) == ["out"]
        assert names(tmp_path / "out") == ["inside.txt"]


def test_when_the_new_name_cannot_be_taken_the_old_folder_comes_back(tmp_path, monkeypatch):
    fill(tmp_path / "out", "old")

    def unlucky(source, target):
        raise OSError("no")

    monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    monkeypatch.setattr(files.os, "rename", unlucky)
    with pytest.raises(OSError, match="no"):
        fill(tmp_path / "out", "new", overwrite=True)
    assert (tmp_path / "out" / "inside.txt").read_text() == "old"


def test_a_place_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadOutput, match=r"cannot write to .*out: "):
        write_text(tmp_path / "file" / "out", "x")
    with pytest.raises(BadOutput, match=r"cannot write to .*out: "):
        fill(tmp_path / "file" / "out", "x")


def test_files_have_ordinary_permissions(tmp_path):
    ordinary = tmp_path / "ordinary"
    ordinary.mkdir()
    fill(tmp_path / "out", "x")
    assert (tmp_path / "out").stat().st_mode == ordinary.stat().st_mode
