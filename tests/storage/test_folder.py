"""fewbit.save and fewbit.load for what is not diffusers', and saves that are killed half-way."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace

import pytest
import tiny_transformers as tiny
import torch
from torch import nn

import fewbit
from fewbit.errors import BadModel, BadOutput, BrokenFile
from fewbit.models.families.original_dit import DiTConfig, OriginalDiT
from fewbit.storage.reader import Artefact

CONFIG = DiTConfig(8, 2, 4, 64, 128, 2, 2, 5, True)
SPEC = fewbit.ModelSpec(blocks="layers", roles={"up": "fc1", "down": "fc2"}, keep=["head"])


def original():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return OriginalDiT(CONFIG).eval()


def run(model):
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(x, torch.tensor([5, 900]), torch.tensor([0, 4]))


class Feed(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x):
        return x + self.down(self.up(x).relu())


@dataclass
class FeedsConfig:
    width: int = 32


class Feeds(nn.Module):
    """A class that neither fewbit nor diffusers knows."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(Feed(config.width) for _ in range(3))
        self.head = nn.Linear(config.width, 2)
        self.register_buffer("steps", torch.arange(4))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


@pytest.mark.parametrize("bits", ["w8a8", "w4a4", "w2a16", "mxfp4", "nvfp4"])
def test_original_dit(bits, tmp_path):
    model = original()
    fewbit.quantize(model, "rtn", bits=bits, progress=False)
    fewbit.save(model, tmp_path / "dit")
    loaded = fewbit.load(tmp_path / "dit")
    assert torch.equal(run(loaded), run(model))
    assert loaded.fewbit == model.fewbit
    fewbit.save(loaded, tmp_path / "again")
    one, other = (Artefact.open(tmp_path / name) for name in ("dit", "again"))
    assert (one.manifest, one.config) == (other.manifest, other.config)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_load_gives_the_dtype_it_was_saved_in(dtype, tmp_path):
    model = original().to(dtype)
    fewbit.quantize(model, "rtn", progress=False)
    fewbit.save(model, tmp_path / "dit")
    loaded = fewbit.load(tmp_path / "dit")
    assert loaded.final_layer.linear.weight.dtype == dtype
    assert all(torch.equal(t, loaded.state_dict()[n]) for n, t in model.state_dict().items())


def test_a_module_with_a_spec(tmp_path):
    torch.manual_seed(0)
    model, x = Feeds(FeedsConfig()), torch.randn(5, 32)
    fewbit.quantize(model, "rtn", bits="w4a4", spec=SPEC, progress=False)
    fewbit.save(model, tmp_path / "feeds")
    loaded = fewbit.load(tmp_path / "feeds", like=Feeds(FeedsConfig()))
    assert torch.equal(loaded(x), model(x))
    assert torch.equal(loaded.steps, torch.arange(4))
    with pytest.raises(BadModel, match="'Feeds', a class that fewbit cannot build"):
        fewbit.load(tmp_path / "feeds")
    with pytest.raises(BadModel, match="another configuration"):
        fewbit.load(tmp_path / "feeds", like=Feeds(FeedsConfig(width=64)))
    with pytest.raises(BadModel, match="holds a Feeds, not a OriginalDiT"):
        fewbit.load(tmp_path / "feeds", like=OriginalDiT(replace(CONFIG, depth=1)))


def test_dequantize_gives_linears_of_the_packed_values(monkeypatch):
    monkeypatch.setenv("FEWBIT_BACKEND", "reference")  # of which dequantizing is the same product
    model = original()
    fewbit.quantize(model, "rtn", bits="w4a16", progress=False)
    before = run(model)
    fewbit.dequantize(model)
    assert type(model.blocks[0].attn.qkv) is nn.Linear
    assert torch.equal(run(model), before)
    with pytest.raises(BadModel, match="not quantized"):
        fewbit.dequantize(model)


def test_what_is_not_quantized_is_not_saved_and_folders_are_not_overwritten(tmp_path):
    model = original()
    with pytest.raises(BadModel, match="not quantized"):
        fewbit.save(model, tmp_path / "dit")
    assert not (tmp_path / "dit").exists()
    fewbit.quantize(model, "rtn", progress=False)
    fewbit.save(model, tmp_path / "dit")
    with pytest.raises(BadOutput, match="already exists"):
        fewbit.save(model, tmp_path / "dit")
    fewbit.save(model, tmp_path / "dit", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["dit"]


def test_folders_that_hold_no_model(tmp_path):
    there, nothing = "no folder of a quantized model", "nothing does not exist; a model is a folder"
    for path, match in ((tmp_path, there), (tmp_path / "nothing", nothing)):
        with pytest.raises(BrokenFile, match=match):
            fewbit.load(path)
    tiny.make().save_pretrained(tmp_path / "plain")
    with pytest.raises(BrokenFile, match="no fewbit manifest"):
        fewbit.load(tmp_path / "plain")


SAVE_FOR_EVER = """
import sys, torch, fewbit
from fewbit.models.families.original_dit import DiTConfig, OriginalDiT
models = []
for seed in (1, 2):
    torch.manual_seed(seed)
    models.append(OriginalDiT(DiTConfig(8, 2, 4, 64, 128, 2, 2, 5, True)).eval())
    fewbit.quantize(models[-1], "rtn", progress=False, seed=seed)
while True:
    for model in models:
        fewbit.save(model, sys.argv[1], overwrite=True)
        print("saved", flush=True)
"""


def test_a_killed_save_leaves_the_old_folder_or_the_new(tmp_path):
    """Killed at twelve moments spread over a save, of which one takes tens of milliseconds."""
    folder = tmp_path / "dit"
    process = subprocess.Popen(
        [sys.executable, "-c", SAVE_FOR_EVER, folder], stdout=subprocess.PIPE
    )
    try:
        process.stdout.readline()
        for moment in range(12):
            process.stdout.readline()
            time.sleep(0.003 * moment)
            os.kill(process.pid, signal.SIGSTOP)  # what lies there now is what a kill would leave
            assert fewbit.load(folder).fewbit.seed in (1, 2)
            os.kill(process.pid, signal.SIGCONT)
    finally:
        process.kill()
        process.wait()
    assert fewbit.load(folder).fewbit.seed in (1, 2)
