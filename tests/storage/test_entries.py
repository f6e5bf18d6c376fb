"""An entry comes back as it was written, or not at all."""

import os

import pytest
import torch

from fewbit.errors import DiskFull
from fewbit.storage.entries import Entries, Entry

TENSORS = {
    "view": torch.arange(12.0).reshape(3, 4).T,
    "same": torch.arange(12.0).reshape(3, 4)[1:],
    "half": torch.ones(2, dtype=torch.bfloat16),
    "flags": torch.tensor([True, False]),
    "number": torch.tensor(7),
    "nothing": torch.empty(0, 3),
}
TABLE = {"text": "line\nline", "list": [1, 2.5, None], "infinite": float("inf")}


def test_what_was_written_is_read(tmp_path):
    Entries(tmp_path).inside("deeper").write("one", Entry(TENSORS, TABLE))
    entry = Entries(tmp_path / "deeper").read("one")
    assert entry.table == TABLE
    assert entry.tensors.keys() == TENSORS.keys()
    for name, tensor in entry.tensors.items():
        assert tensor.dtype == TENSORS[name].dtype
        assert torch.equal(tensor, TENSORS[name])


def test_the_same_entry_is_the_same_bytes_in_whatever_order(tmp_path):
    entries = Entries(tmp_path)
    entries.write("one", Entry(TENSORS, TABLE))
    entries.write("two", Entry(dict(reversed(TENSORS.items())), TABLE))
    assert entries.path("one").read_bytes() == entries.path("two").read_bytes()


def test_every_single_byte_counts(tmp_path):
    entries = Entries(tmp_path)
    entries.write("one", Entry({"x": torch.arange(3)}, {"a": 1}))
    whole = entries.path("one").read_bytes()
    for at in range(len(whole)):
        entries.path("one").write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert entries.read("one") is None, at
        entries.path("one").write_bytes(whole[:at])
        assert entries.read("one") is None, at
    assert len(entries.notes) == 1
    assert "one.entry was damaged and is made again: its checksum is not" in entries.notes[0]
    entries.path("one").write_bytes(whole)
    assert entries.read("one") is not None


def test_an_entry_of_another_seal_is_none(tmp_path):
    Entries(tmp_path, seal="mine").write("one", Entry({}))
    assert Entries(tmp_path, seal="yours").read("one") is None
    assert Entries(tmp_path, seal="mine").read("one") is not None


def test_what_is_no_file_is_damaged(tmp_path):
    entries = Entries(tmp_path)
    os.mkfifo(entries.path("pipe"))
    entries.path("folder").mkdir()
    entries.path("loop").symlink_to(entries.path("loop"))
    for name in ("pipe", "folder", "loop"):
        assert entries.read(name) is None
        entries.write(name, Entry({}))
        assert entries.read(name) is not None
    assert len(entries.notes) == 3
    assert entries.read("missing") is None
    assert len(entries.notes) == 3


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(DiskFull, match=r"no room to write .*one\.entry \(No space left on device"):
        Entries(tmp_path).write("one", Entry({}))
