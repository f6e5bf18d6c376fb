"""A checkpoint tells its whole configuration, and each way to be broken has its sentence."""

import argparse
import os

import pytest
import torch
from safetensors.torch import save_file

from fewbit.errors import BadArgument, BadModel, BrokenFile
from fewbit.models import describe, load_original
from fewbit.models.families.original_dit import DiTConfig, OriginalDiT

CONFIGS = [
    DiTConfig(8, 2, 4, 16, 64, depth=2, heads=2, classes=11, learn_sigma=True),
    DiTConfig(12, 4, 3, 24, 40, depth=1, heads=3, classes=4, learn_sigma=False),
    DiTConfig(4, 1, 2, 384, 32, depth=3, heads=6, classes=2, learn_sigma=True),
]
X = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
ARGUMENTS = (X, torch.tensor([3, 900]), torch.tensor([0, 10]))


@pytest.fixture
def tensors():
    torch.manual_seed(0)
    return OriginalDiT(CONFIGS[0]).state_dict()


def write(path, tensors):
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path)
    return path


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("name", ["m.pt", "m.pth", "m.safetensors"])
def test_every_field_of_the_configuration_comes_back(tmp_path, config, name):
    path = write(tmp_path / name, OriginalDiT(config).state_dict())
    heads = None if config.width == 384 else config.heads
    assert load_original(path, heads=heads).config == config


@pytest.mark.parametrize("name", ["m.pt", "m.safetensors"])
@torch.no_grad()
def test_a_loaded_model_computes_the_same_bits(tmp_path, tensors, name):
    model = OriginalDiT(CONFIGS[0])
    model.load_state_dict(tensors)
    loaded = load_original(write(tmp_path / name, tensors), heads=2)
    assert not loaded.training
    assert loaded.blocks[0].attn.qkv.weight.requires_grad
    assert not loaded.pos_embed.requires_grad
    assert torch.equal(loaded(*ARGUMENTS), model(*ARGUMENTS))
    assert describe(loaded).unknown == ()


def test_the_files_own_precision_is_kept(tmp_path, tensors):
    halves = {name: tensor.half() for name, tensor in tensors.items()}
    loaded = load_original(write(tmp_path / "m.safetensors", halves), heads=2)
    assert {tensor.dtype for tensor in loaded.state_dict().values()} == {torch.float16}


def test_a_training_checkpoint_gives_its_averaged_weights(tmp_path, tensors):
    other = {name: tensor + 1 for name, tensor in tensors.items()}
    training = {"model": other, "ema": tensors, "opt": {}, "args": argparse.Namespace(lr=1e-4)}
    loaded = load_original(write(tmp_path / "m.pt", training), heads=2).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
    alone = load_original(write(tmp_path / "n.pt", {"model": other}), heads=2).state_dict()
    assert all(torch.equal(alone[name], tensor) for name, tensor in other.items())


def broken(path, content):
    path.write_bytes(content)
    return path


def truncated(path, tensors):
    whole = write(path, tensors).read_bytes()
    return broken(path, whole[: len(whole) // 2])


class Greedy:
    def __reduce__(self):
        return os.mkdir, (os.environ["FEWBIT_TEST_FOOTPRINT"],)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda d, t: d / "m.pt", "is not a file"),
        (lambda d, t: d, r"the ending '\(none\)'; .*\.pt, \.pth, \.safetensors"),
        (lambda d, t: write(d / "m.ckpt", t), r"the ending '\.ckpt'"),
        (lambda d, t: broken(d / "m.pt", b""), "truncated or not a torch checkpoint"),
        (lambda d, t: broken(d / "m.pt", b"hello world"), "truncated or not a torch checkpoint"),
        (lambda d, t: broken(d / "m.pt", bytes(100)), "truncated or not a torch checkpoint"),
        (lambda d, t: truncated(d / "m.pt", t), "truncated or not a torch checkpoint"),
        (
            lambda d, t: broken(d / "m.safetensors", b""),
            "unreadable, truncated or not a safetensors file",
        ),
        (
            lambda d, t: truncated(d / "m.safetensors", t),
            "unreadable, truncated or not a safetensors file",
        ),
        (lambda d, t: write(d / "m.pt", t["pos_embed"]), "no table of tensors, got Tensor"),
        (lambda d, t: write(d / "m.pt", {}), "no table of tensors, got dict"),
        (lambda d, t: write(d / "m.pt", {"a": 1}), "no table of tensors, got dict"),
        (lambda d, t: write(d / "m.pt", {"ema": {"a": 1}}), "no table of tensors, got dict"),
    ],
)
def test_each_broken_file_is_named(tmp_path, tensors, make, message):
    with pytest.raises(BrokenFile, match=message) as caught:
        load_original(make(tmp_path, tensors), heads=2)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("protocol", ["new", "old"])
def test_a_pickle_that_wants_to_run_code_is_refused_unrun(tmp_path, monkeypatch, protocol):
    footprint = tmp_path / "footprint"
    monkeypatch.setenv("FEWBIT_TEST_FOOTPRINT", str(footprint))
    path = tmp_path / "m.pt"
    torch.save({"ema": Greedy()}, path, _use_new_zipfile_serialization=protocol == "new")
    with pytest.raises(BrokenFile, match=r"wants to run code when read \(\w+\.mkdir\)"):
        load_original(path)
    assert not footprint.exists()
    torch.load(path, weights_only=False)
    assert footprint.exists(), "the bait is harmless, so the refusal above proves nothing"


def without(*names):
    return lambda t: {name: tensor for name, tensor in t.items() if name not in names}


def replaced(name, tensor):
    return lambda t: {**t, name: tensor}


FINAL = "final_layer.linear.weight"


@pytest.mark.parametrize(
    ("alter", "message"),
    [
        (without("pos_embed"), "lacks: pos_embed"),
        (without("blocks.1.attn.qkv.bias"), r"lacks: blocks\.1\.attn\.qkv\.bias"),
        (lambda t: {"a": t["pos_embed"]}, r"lacks: blocks\.0.* and 2 more"),
        (replaced("blocks.1.extra", torch.zeros(1)), r"no original DiT has: blocks\.1\.extra"),
        (replaced("blocks.9.extra", torch.zeros(1)), r"lacks: blocks\.2\."),
        (replaced("blocks.0.attn.proj.bias", torch.zeros(7)), r"\[7\]; allowed: \[16\]"),
        (replaced("blocks.0.mlp.fc1.weight", torch.zeros(7)), "allowed: 2 dimensions"),
        (replaced("x_embedder.proj.weight", torch.zeros(16, 4, 2, 3)), r"allowed: \[16, 4, 2, 2\]"),
        (replaced("x_embedder.proj.weight", torch.zeros(16, 0, 2, 2)), "4 dimensions, none empty"),
        (replaced("pos_embed", torch.zeros(1, 15, 16)), r"pos_embed has shape \[1, 15, 16\]"),
        (replaced(FINAL, torch.zeros(48, 16)), r"final_layer.* allowed: 16 or 32 rows"),
        (replaced(FINAL, torch.zeros(32, 16, dtype=torch.int8)), "is torch.int8; allowed: float"),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path, tensors, alter, message):
    path = write(tmp_path / "m.pt", alter(tensors))
    with pytest.raises(BadModel, match=message) as caught:
        load_original(path, heads=2)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        (None, r"width 16, whose number of heads is not known; give heads=.*384, 768, 1024, 1152"),
        (3, "must divide the width 16 of .*, got 3"),
        (0, "must divide the width 16 of .*, got 0"),
    ],
)
def test_heads_that_are_not_known_or_do_not_fit(tmp_path, tensors, heads, message):
    with pytest.raises(BadArgument, match=message):
        load_original(write(tmp_path / "m.pt", tensors), heads=heads)
