"""Writing aside: the old or the new, whole, and nothing left lying about."""

import os
import signal

import pytest
from killed import python

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


DIES = """
import os, signal, sys
from pathlib import Path
import fewbit.files as files

with files.new_folder(Path({path!r}), overwrite=True) as folder:
    (folder / "part").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def dies(path):
    assert python(DIES.format(path=str(path))).returncode == -signal.SIGKILL


@pytest.mark.parametrize("name", ["out", "n" * 255])
def test_the_next_save_clears_what_a_killed_one_has_left(tmp_path, name):
    dies(tmp_path / name)
    dies(tmp_path / "other")
    (tmp_path / ".fewbit-mine").mkdir()
    assert len(names(tmp_path)) == 3
    fill(tmp_path / name, "new")
    assert len(names(tmp_path)) == 3
    fill(tmp_path / "other", "new")
    assert names(tmp_path) == sorted([".fewbit-mine", name, "other"])


def test_what_somebody_is_writing_is_left_alone(tmp_path):
    with new_folder(tmp_path / "out") as folder:
        fill(tmp_path / "out", "one")
        (folder / "inside.txt").write_text("two")
        (tmp_path / "out" / "inside.txt").rename(tmp_path / "one")
    assert (tmp_path / "out" / "inside.txt").read_text() == "two"


def test_the_only_copy_of_what_stood_there_is_left_alone(tmp_path, monkeypatch):
    fill(tmp_path / "out", "old")
    with monkeypatch.context() as patch:
        patch.setattr(files, "_exchange", lambda one, other: False)
        patch.setattr(files.os, "rename", die)
        child = os.fork()
        if child == 0:
            fill(tmp_path / "out", "new", overwrite=True)
        os.waitpid(child, 0)
    fill(tmp_path / "out", "third")
    (left,) = (path for path in tmp_path.iterdir() if path.name != "out")
    assert (left / "old" / "inside.txt").read_text() == "old"


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


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
