"""A work folder gives back what was finished, but not what was damaged or is of another model."""

import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
import tiny_transformers as tiny
import torch
from killed import kill_each, running
from safetensors import safe_open
from small_dit import bits_of
from test_workdir import data
from torch import nn

import fewbit
from fewbit import ModelSpec
from fewbit.calibration.trajectories import _Recording
from fewbit.engine.run import _Run
from fewbit.engine.workdir import LOCK
from fewbit.errors import BadOutput

pytestmark = pytest.mark.usefixtures("one_thread")
SPEC = ModelSpec("blocks", {"up": "fc1"}, keep=("embed",))
BLOCKS = 3


class Tower(nn.Module):
    """It has some of everything that is not quantized."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.embed = nn.Linear(24, 24)
            self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
            self.config = {"sample_size": 8, "_name_or_path": "here"}

    def forward(self, hidden_states):
        hidden_states = self.embed(hidden_states)
        for block in self.blocks:
            hidden_states = block(hidden_states)
        return hidden_states


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(24)
        self.up = nn.Linear(24, 24)
        self.register_buffer("shift", torch.zeros(24))
        self.register_buffer("gain", torch.ones(24), persistent=False)

    def forward(self, x):
        return x + torch.tanh(self.up(self.norm(x) + self.shift) * self.gain)


def quantize(model, workdir=None, **arguments):
    given = {"calibration": data(), "spec": SPEC, "progress": False, **arguments}
    return fewbit.quantize(model, "hq-dit", workdir=workdir, **given)


class Stop(BaseException):
    """As a Ctrl-C, at a chosen place."""


@contextmanager
def stopped_before_block(number):
    solve = _Run._solve

    def stopping(run, block, *steps):
        if block == number:
            raise Stop
        return solve(run, block, *steps)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Run, "_solve", stopping)
        with pytest.raises(Stop):
            yield


def files_of(folder):
    """All but the lock, which holds nothing."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != LOCK)


@pytest.fixture(scope="module")
def whole():
    model = Tower()
    report = quantize(model)
    return bits_of(model), report


@pytest.fixture(scope="module")
def half_done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("half-done") / "work"
    with stopped_before_block(2):
        quantize(Tower(), folder)
    return folder


def flip(file):
    content = bytearray(file.read_bytes())
    content[-len(content) // 3] ^= 4
    file.write_bytes(content)


def flip_the_beginning(file):
    content = bytearray(file.read_bytes())
    content[2] ^= 1
    file.write_bytes(content)


def truncate(file):
    file.write_bytes(file.read_bytes()[:-5])


def replace_by_a_folder(file):
    file.unlink()
    file.mkdir()


DAMAGES = [
    flip,
    flip_the_beginning,
    truncate,
    lambda file: file.write_bytes(b""),
    lambda file: file.write_bytes(bytes(range(256)) * 9),
    replace_by_a_folder,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_whatever_is_damaged_is_named_and_computed_again(half_done, whole, tmp_path, damage):
    for number, file in enumerate(files_of(half_done)):
        folder = tmp_path / str(number)
        shutil.copytree(half_done, folder)
        place = folder / file.relative_to(half_done)
        damage(place)
        model = Tower()
        report = quantize(model, folder)
        assert bits_of(model) == whole[0], file
        assert report.layers == whole[1].layers
        assert any(str(place) in warning for warning in report.warnings), report.warnings


def test_a_folder_with_content_in_the_place_of_a_file_is_left_alone(half_done, tmp_path):
    folder = tmp_path / "work"
    shutil.copytree(half_done, folder)
    file = next(path for path in files_of(folder) if "block" in path.name)
    replace_by_a_folder(file)
    (file / "diary.txt").write_text("mine")
    with pytest.raises(BadOutput, match=f"{file.name} is a folder with something in it"):
        quantize(Tower(), folder)
    assert (file / "diary.txt").read_text() == "mine"


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "work").write_text("")
    with pytest.raises(BadOutput, match="cannot write to"):
        quantize(Tower(), tmp_path / "work")


def test_work_of_another_run_is_not_taken_even_without_the_file_that_says_whose_it_is(
    half_done, whole, tmp_path
):
    folder = tmp_path / "work"
    shutil.copytree(half_done, folder)
    for file in files_of(folder):
        if "run" in file.name:
            file.unlink()
    other = Tower()
    other.blocks[0].up.bias.data += 1
    expected = Tower()
    expected.blocks[0].up.bias.data += 1
    quantize(expected)
    quantize(other, folder)
    assert bits_of(other) == bits_of(expected) != whole[0]


def no_blocks(*_):
    pytest.fail("a finished block was computed again")


@pytest.mark.parametrize("lost", ["survey", "samples", "tuned"])
def test_the_other_kinds_of_files_too(tmp_path, monkeypatch, lost):
    """Each is written anew when it is damaged, and the finished blocks are kept all the same."""
    recipe = "vq4dit" if lost == "tuned" else "tq-dit"
    settings = {"groups": 2, "candidates": 2, "rounds": 1}
    if lost == "tuned":
        settings = {"bits": "w1.5", "steps": 1, "tuning": 1}

    def run(folder):
        pipe = tiny.pipeline(tiny.make())
        report = fewbit.quantize(
            pipe, recipe, calibration=4, workdir=folder, progress=False, **settings
        )
        return bits_of(pipe.transformer), report

    first, _ = run(tmp_path)
    [file] = [path for path in files_of(tmp_path) if lost in path.name]
    flip(file)
    monkeypatch.setattr(_Run, "_solve", no_blocks)
    again, report = run(tmp_path)
    assert again == first
    assert any(str(file) in warning for warning in report.warnings)
    assert not any("work" in w or str(file) in w for w in run(tmp_path)[1].warnings)


def make(folder):
    """A quantized pipeline, from nothing to a folder."""
    torch.set_num_threads(1)
    folder = Path(folder)
    pipe = tiny.pipeline(tiny.make())
    work = folder.with_suffix(".work")
    fewbit.quantize(pipe, "hq-dit", gptq=False, calibration=8, workdir=work, progress=False)
    fewbit.save(pipe, folder, overwrite=True)


def content_of(folder):
    with safe_open(tiny.weights(folder / "transformer"), framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return {name: (t.dtype, t.tolist()) for name, t in tensors.items()}, file.metadata()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "whole"
    make(folder)
    return content_of(folder)


KILLS = [("kept", 2), ("written", 2), ("saved", 1)]


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    pytest.importorskip("diffusers")
    prepare = "import test_work_folder as here; here.tiny.pipeline(here.tiny.make())"
    return kill_each(prepare, "here.make", KILLS, tmp_path_factory.mktemp("killed"))


@pytest.mark.parametrize("kill", KILLS)
def test_killed_anywhere_it_goes_on_to_the_same_file(made, killed, monkeypatch, kill):
    folder = killed[kill]
    assert not folder.exists()
    monkeypatch.setattr(_Recording, "of", lambda *_: pytest.fail("it was drawn already"))
    make(folder)
    assert content_of(folder) == made


def change_the_config(model):
    model.config["sample_size"] = 16


def change_the_epsilon(model):
    model.blocks[1].norm.eps = 1e-3


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.blocks[0].up.bias.data.add_(1),
        lambda model: model.blocks[2].norm.weight.data.mul_(2),
        lambda model: model.embed.weight.data.mul_(2),
        lambda model: model.blocks[1].shift.add_(1),
        lambda model: model.blocks[1].gain.mul_(2),
        change_the_config,
        change_the_epsilon,
        lambda model: model.embed.bfloat16().float(),
    ],
    ids=["bias", "norm", "embedding", "buffer", "unsaved buffer", "config", "epsilon", "rounded"],
)
def test_a_model_that_differs_in_what_is_not_quantized_is_another(half_done, tmp_path, change):
    shutil.copytree(half_done, tmp_path / "work")
    model = Tower()
    change(model)
    with pytest.raises(BadOutput, match="another run, which differs in: model;"):
        quantize(model, tmp_path / "work")


def test_where_a_model_lay_does_not_matter(half_done, tmp_path, whole):
    shutil.copytree(half_done, tmp_path / "work")
    model = Tower()
    model.config["_name_or_path"] = "there"
    quantize(model, tmp_path / "work")
    assert bits_of(model) == whole[0]


def test_another_map_of_the_model_is_another_run(half_done, tmp_path):
    shutil.copytree(half_done, tmp_path / "work")
    other = ModelSpec("blocks", {"up": "fc2"}, keep=("embed",))
    with pytest.raises(BadOutput, match="differs in: structure;"):
        quantize(Tower(), tmp_path / "work", spec=other)


@pytest.mark.parametrize("part", ["scheduler", "vae"])
def test_a_pipeline_that_draws_otherwise_is_another(tmp_path, part):
    import diffusers

    def run(pipe):
        fewbit.quantize(pipe, "hq-dit", calibration=8, workdir=tmp_path, progress=False)

    run(tiny.pipeline(tiny.make()))
    other = tiny.pipeline(tiny.make())
    if part == "scheduler":
        other.scheduler = diffusers.DDPMScheduler()
    else:
        next(other.vae.parameters()).data += 1
    with pytest.raises(BadOutput, match="differs in: pipeline;"):
        run(other)


def test_leftovers_of_a_killed_write_are_cleared(half_done, tmp_path):
    folder = tmp_path / "work"
    shutil.copytree(half_done, folder)
    (folder / ".fewbit-x8s2").mkdir()
    (folder / ".fewbit-x8s2" / "part").write_bytes(b"half")
    quantize(Tower(), folder)
    assert not list(folder.rglob(".*"))


HOLDS = """
import sys
import test_work_folder as here
from fewbit.engine.workdir import Workdir

def wait(*_):
    print("working", flush=True)
    sys.stdin.readline()

Workdir.save = wait
here.quantize(here.Tower(), {folder!r})
"""


def test_a_second_process_is_refused_until_the_first_has_died(tmp_path):
    with running(HOLDS.format(folder=str(tmp_path)), Path(__file__).parent) as other:
        assert other.stdout.readline() == b"working\n"
        model = Tower()
        before = bits_of(model)
        with pytest.raises(BadOutput, match=r"another run is working in .*; wait for its end, or"):
            quantize(model, tmp_path)
        assert bits_of(model) == before
        other.kill()
        other.wait()
        quantize(model, tmp_path)
    again = Tower()
    quantize(again, tmp_path)
    assert bits_of(again) == bits_of(model)


def test_after_a_failure_the_folder_is_free(monkeypatch, tmp_path):
    """Although whoever keeps the error keeps all that was open when it was raised."""
    monkeypatch.setattr(_Run, "_solve", refuse)
    with pytest.raises(BadOutput) as kept:
        quantize(Tower(), tmp_path)
    monkeypatch.undo()
    quantize(Tower(), tmp_path)
    assert kept.value


def refuse(*_):
    raise BadOutput("no")
