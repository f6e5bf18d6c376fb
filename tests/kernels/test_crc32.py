"""The native CRC-32 is zlib's, of every length, place and beginning."""

import zlib

import pytest
import torch

from fewbit.kernels import crc32 as module
from fewbit.kernels.crc32 import crc32_of


@pytest.fixture(params=["native", "zlib"])
def memory(request, monkeypatch):
    """Random bytes, read by the one and by the other."""
    if request.param == "zlib":
        monkeypatch.setattr(module, "_library", lambda: None)
    elif module._library() is None:
        pytest.skip("no native CRC-32 here")
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (5_000_011,), dtype=torch.uint8, generator=generator)


def expected(piece, before=0):
    return zlib.crc32(bytes(piece.numpy()), before)


@pytest.mark.parametrize("place", [0, 1, 3, 8, 15, 63])
def test_every_length_at_every_place(memory, place):
    pieces = [memory[place : place + length] for length in range(1001)]
    before = [length * 0x9E3779B1 % 2**32 for length in range(1001)]
    assert crc32_of(pieces, before) == list(map(expected, pieces, before))


def test_megabytes_and_what_is_carried_on(memory):
    whole = expected(memory)
    assert crc32_of([memory], [0]) == [whole]
    for middle in (1, 64, 4_194_304, 5_000_000):
        first = crc32_of([memory[:middle]], [0])
        assert crc32_of([memory[middle:]], first) == [whole]


@pytest.mark.parametrize("value", [0, 255])
def test_bytes_that_are_all_alike(memory, value):
    alike = torch.full((777,), value, dtype=torch.uint8)
    assert crc32_of([alike], [0]) == [expected(alike)]


def test_the_zlib_of_a_machine_without_the_instruction(monkeypatch):
    monkeypatch.setattr(module, "load", lambda: "not built")
    assert module._library.__wrapped__() is None
