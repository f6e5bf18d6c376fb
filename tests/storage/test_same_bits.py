"""One model is one file: in every save, in every process, after being loaded again."""

import hashlib
import subprocess
import sys

import pytest
import tiny_transformers as tiny
import torch
from safetensors.torch import load_file, save_file

import fewbit
from fewbit.models.families.original_dit import DiTConfig, OriginalDiT
from fewbit.storage.tensors import write_tensors

TIMES = 8  # a file whose metadata came in random order would be the same once in 10^5
SMALL = DiTConfig(4, 2, 1, 16, 32, 2, 2, 3, False)


def module():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = OriginalDiT(SMALL).eval()
    fewbit.quantize(model, "rtn", bits="w4a4", progress=False)
    return model


def by_fewbit(model, folder):
    fewbit.save(model, folder)


def by_diffusers(model, folder):
    model.save_pretrained(folder)


def in_shards(model, folder):
    model.save_pretrained(folder, max_shard_size="80KB")


WAYS = {"by_fewbit": by_fewbit, "by_diffusers": by_diffusers, "in_shards": in_shards}


def digests(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("way", WAYS)
def test_a_transformer_saved_again_and_again(tmp_path, way):
    model = tiny.quantized()
    found = []
    for turn in range(TIMES):
        WAYS[way](model, tmp_path / str(turn))
        found.append(digests(tmp_path / str(turn)))
    assert all(one == found[0] for one in found)
    assert (len(found[0]) > 3) == (way != "by_diffusers")


def test_a_module_saved_again_and_again_and_once_loaded(tmp_path):
    model = module()
    for turn in range(TIMES):
        fewbit.save(model, tmp_path / str(turn))
    fewbit.save(fewbit.load(tmp_path / "0"), tmp_path / "loaded")
    assert len({str(digests(folder)) for folder in tmp_path.iterdir()}) == 1


@pytest.mark.parametrize("way", WAYS)
def test_a_loaded_transformer_is_the_same_weights_file(tmp_path, way):
    WAYS[way](tiny.quantized(), tmp_path / "first")
    WAYS[way](fewbit.load(tmp_path / "first"), tmp_path / "loaded")
    WAYS[way](type(tiny.make()).from_pretrained(tmp_path / "first"), tmp_path / "pretrained")
    first, *others = (
        {n: d for n, d in digests(tmp_path / name).items() if "safetensors" in n}
        for name in ("first", "loaded", "pretrained")
    )
    assert all(one == first for one in others)


def test_another_process_writes_the_same_files(tmp_path):
    code = (
        "import sys; sys.path[:0] = ['tests', 'tests/storage']; import tiny_transformers as tiny\n"
        "import fewbit, test_same_bits as here\n"
        "fewbit.save(here.module(), sys.argv[1] + '/own')\n"
        "here.in_shards(tiny.quantized(), __import__('pathlib').Path(sys.argv[1] + '/shards'))\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "other")], check=True)
    fewbit.save(module(), tmp_path / "here" / "own")
    in_shards(tiny.quantized(), tmp_path / "here" / "shards")
    assert digests(tmp_path / "other") == digests(tmp_path / "here")


def test_what_is_not_quantized_is_still_written_by_safetensors(tmp_path):
    tiny.make().save_pretrained(tmp_path / "plain")
    tensors = load_file(tiny.weights(tmp_path / "plain"))
    save_file(tensors, tmp_path / "x", {"format": "pt"})
    assert (tmp_path / "x").read_bytes() == tiny.weights(tmp_path / "plain").read_bytes()


def test_the_writer_writes_what_safetensors_reads(tmp_path):
    tensors = {
        "odd": torch.arange(3, dtype=torch.uint8),
        "wide": torch.ones(2, 3, dtype=torch.float64),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "turned": torch.arange(6.0).view(2, 3).T,
        "nothing": torch.empty(0, 4),
        "one": torch.tensor(True),
        "float8": torch.ones(3).to(torch.float8_e4m3fn),
    }
    write_tensors(tmp_path / "x", tensors, {"b": "ü\n", "a": "2"})
    found = load_file(tmp_path / "x")
    assert found.keys() == tensors.keys()
    assert all(
        torch.equal(found[n].float(), t.float()) and found[n].dtype == t.dtype
        for n, t in tensors.items()
    )
    assert fewbit.storage.header.read_header(tmp_path / "x").metadata == {"a": "2", "b": "ü\n"}
