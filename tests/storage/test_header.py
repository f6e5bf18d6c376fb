"""The strict reader of a safetensors header: what is wrong is named, nothing is believed."""

import json
import time
import tracemalloc

import pytest
import torch
from safetensors.torch import save_file

from fewbit.errors import BrokenFile
from fewbit.storage.header import read_header
from fewbit.storage.strict_json import LARGEST

ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def written(tmp_path, header, data=bytes(8), length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = tmp_path / "x.safetensors"
    size = len(text) if length is None else length
    path.write_bytes(size.to_bytes(8, "little") + text + data)
    return path


def test_it_agrees_with_the_safetensors_library(tmp_path):
    tensors = {"a": torch.arange(6).view(2, 3), "b": torch.ones(0, 4), "c": torch.tensor(True)}
    save_file(tensors, tmp_path / "x", {"format": "pt"})
    header = read_header(tmp_path / "x")
    assert header.metadata == {"format": "pt"}
    assert header.tensors.keys() == tensors.keys()
    content = (tmp_path / "x").read_bytes()
    for name, tensor in tensors.items():
        stored = header.tensors[name]
        assert (stored.dtype, stored.shape) == (tensor.dtype, tuple(tensor.shape))
        raw = content[stored.start : stored.start + stored.nbytes]
        assert raw == tensor.numpy().tobytes()


@pytest.mark.parametrize(
    ("header", "complaint"),
    [
        (b"{", "not valid JSON"),
        (b"\xff\xfe{}", "not valid JSON"),
        (b"[]", "not a table"),
        (b'{"a": 1, "a": 2}', "'a' occurs twice"),
        (b'{"a": NaN}', "not a number"),
        (b'{"a": ' + b"[" * 100_000, "not valid JSON"),
        (b'{"a": ' + b"[" * 50 + b"]" * 50 + b"}", "nested deeper"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
        ({"__metadata__": {"a": 1}}, "table of strings"),
        ({"a": 3}, "tensor 'a'"),
        ({"a": {**ENTRY, "dtype": "F33"}}, "tensor 'a'.*F33"),
        ({"a": {**ENTRY, "dtype": ["F32"]}}, "tensor 'a'"),
        ({"a": {**ENTRY, "shape": [-2]}}, "sensible number"),
        ({"a": {**ENTRY, "shape": [2.0]}}, "sensible number"),
        ({"a": {**ENTRY, "shape": [True, 2]}}, "sensible number"),
        ({"a": {**ENTRY, "shape": [1 << 60]}}, "sensible number"),
        ({"a": {**ENTRY, "shape": [1 << 40] * 200_000}}, "200000 dimensions"),
        ({"a": {**ENTRY, "shape": [3]}}, "needs 12 bytes"),
        ({"a": {**ENTRY, "data_offsets": [0]}}, "tensor 'a'"),
        ({"a": {**ENTRY, "data_offsets": [8, 16]}}, "starts at byte"),
        ({"a": ENTRY, "b": ENTRY}, "tensor 'b' starts"),
        ({}, "truncated or altered"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_what_is_wrong_with_a_header_is_said(tmp_path, header, complaint):
    path = written(tmp_path, header)
    with pytest.raises(BrokenFile, match=complaint) as error:
        read_header(path)
    assert str(path) in str(error.value)
    assert len(str(error.value)) < len(str(path)) + 400


def test_truncation_anywhere(tmp_path):
    whole = written(tmp_path, {"a": ENTRY}).read_bytes()
    path = tmp_path / "cut"
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(BrokenFile, match="cut"):
            read_header(path)
    path.write_bytes(whole)
    assert read_header(path).tensors["a"].shape == (2,)


@pytest.mark.parametrize("length", [0, 1, 1 << 20, 1 << 62, (1 << 64) - 1])
def test_lies_about_the_header_length(tmp_path, length):
    with pytest.raises(BrokenFile):
        read_header(written(tmp_path, {"a": ENTRY}, length=length))


def test_missing_files_and_folders(tmp_path):
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(BrokenFile, match=r"cannot read|is a folder, expected a regular file"):
            read_header(path)


def test_a_header_of_100_mb_is_not_even_read(tmp_path):
    path = written(tmp_path, b" " * 100, length=100 << 20)
    with path.open("r+b") as file:
        file.truncate(101 << 20)
    tracemalloc.start()
    with pytest.raises(BrokenFile, match="allowed"):
        read_header(path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_many_names_of_which_one_occurs_twice_take_no_long_time(tmp_path):
    names = [f'"{number}":0' for number in range(LARGEST // 20)]
    started = time.perf_counter()
    with pytest.raises(BrokenFile, match="occurs twice"):
        read_header(written(tmp_path, ("{" + ",".join([*names, names[-1]]) + "}").encode()))
    assert time.perf_counter() - started < 10  # comparing every pair would take hours
