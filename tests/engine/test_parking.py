"""Full-precision weights of finished blocks leave memory, and yet come back."""

import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from torch import nn

import fewbit
from fewbit import ModelSpec
from fewbit.engine.run import _Run

SPEC = ModelSpec("blocks", {"up": "fc1"})
BLOCKS, WIDTH = 6, 2048
BYTES = 4 * WIDTH * WIDTH  # of the weight of one block


class Tower(nn.Module):
    def __init__(self, width=WIDTH):
        super().__init__()
        self.blocks = nn.ModuleList(Block(width) for _ in range(BLOCKS))


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.up = nn.Linear(width, width)


class Stop(BaseException):
    """As a Ctrl-C."""


def quantize(model, **arguments):
    fewbit.quantize(model, "rtn", spec=SPEC, progress=False, **arguments)


def anonymous_bytes():
    """Memory of this process that no file stands behind."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def stop_at_the_end(monkeypatch):
    def stop(*_):
        raise Stop

    monkeypatch.setattr(_Run, "finish", stop)


@pytest.mark.parametrize("workdir", [False, True])
def test_finished_blocks_leave_memory(monkeypatch, tmp_path, workdir):
    seen, solve = [], _Run._solve

    def noted(run, *arguments):
        seen.append(anonymous_bytes())
        solve(run, *arguments)

    monkeypatch.setattr(_Run, "_solve", noted)
    quantize(Tower(), workdir=tmp_path / "work" if workdir else None)
    assert len(seen) == BLOCKS
    assert seen[-1] < seen[1] - 0.5 * (BLOCKS - 2) * BYTES


def test_weights_that_somebody_else_holds_keep_their_values():
    model = Tower(width=64)
    held = [block.up.weight for block in model.blocks]
    before = [weight.detach().clone() for weight in held]
    quantize(model)
    assert all(torch.equal(one, other) for one, other in zip(held, before, strict=True))


def test_weights_that_share_memory_share_it_again(monkeypatch):
    model = Tower(width=64)
    first, second = model.blocks[0].up, model.blocks[1].up
    second.weight = nn.Parameter(first.weight.data.T)
    before = first.weight.detach().clone()
    stop_at_the_end(monkeypatch)
    with pytest.raises(Stop):
        quantize(model)
    assert torch.equal(first.weight, before)
    with torch.no_grad():
        first.weight.mul_(2)
    assert torch.equal(second.weight, 2 * before.T)


Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize("room", ["none", "files cannot be made"])
def test_without_room_for_them_they_stay_in_memory(monkeypatch, room):
    def no_file(*_, **__):
        raise OSError("no")

    if room == "none":
        monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 10**9 - 1000, 1000))
    else:
        monkeypatch.setattr("fewbit.engine.parking.TemporaryFile", no_file)
    model = Tower(width=64)
    places = [block.up.weight.data_ptr() for block in model.blocks]
    before = [block.up.weight.detach().clone() for block in model.blocks]
    with monkeypatch.context() as patch:
        stop_at_the_end(patch)
        with pytest.raises(Stop):
            quantize(model)
    assert [block.up.weight.data_ptr() for block in model.blocks] == places
    after = [block.up.weight for block in model.blocks]
    assert all(torch.equal(one, other) for one, other in zip(after, before, strict=True))
