"""Broken and hostile artefacts: a clean load that equals the original, or an error with a name."""

import ast
import hashlib
import json
import random
import shutil
import struct
import tracemalloc
from pathlib import Path

import pytest
import tiny_transformers as tiny
import torch
from safetensors.torch import load_file, save_file

import fewbit
from fewbit.errors import BrokenFile, FewbitError
from fewbit.models.original_dit import DiTConfig, OriginalDiT
from fewbit.strict_json import LARGEST

MUTATIONS = 2000
SMALL = DiTConfig(4, 2, 1, 16, 32, 2, 2, 3, False)


def small():
    """The smallest model there is, so that thousands of loads take seconds."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = OriginalDiT(SMALL).eval()
    fewbit.quantize(model, "rtn", bits="w4a4", progress=False)
    return model


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """One folder of a module, one of a sharded diffusers transformer."""
    folder = tmp_path_factory.mktemp("made")
    fewbit.save(small(), folder / "own")
    tiny.quantized().save_pretrained(folder / "shards", max_shard_size="80KB")
    tiny.quantized().save_pretrained(folder / "single")
    return folder


@pytest.fixture
def own(made, tmp_path):
    return shutil.copytree(made / "own", tmp_path / "own")


@pytest.fixture
def shards(made, tmp_path):
    return shutil.copytree(made / "shards", tmp_path / "shards")


def refused(folder, complaint):
    with pytest.raises(BrokenFile, match=complaint) as error:
        fewbit.load(folder)
    assert len(str(error.value)) < 800
    return str(error.value)


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def split(path):
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def join(path, header, data):
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def forge(path, change):
    """Alter tensors and write checksums that fit them, as one who means harm would."""
    header, _ = split(path)
    manifest = json.loads(header["__metadata__"]["fewbit"])
    tensors = load_file(path)
    change(tensors)
    for name in manifest["crc32"]:
        manifest["crc32"][name] = fewbit.tensors.checksum(tensors[name])
    text = json.dumps(manifest)
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    save_file(tensors, path, {"format": "pt", "fewbit": text, "fewbit_sha256": sha256})


@pytest.mark.parametrize("quarter", [0, 1, 2, 3])
def test_truncated(own, quarter):
    path = own / "model.safetensors"
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) * quarter // 4])
    refused(own, str(path))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.5, 0.0])
@pytest.mark.parametrize("kind", ["own", "shards"])
def test_scales_that_are_no_scales_with_fitting_checksums(made, tmp_path, value, kind):
    name = "blocks.1.mlp.fc1.scales" if kind == "own" else "blocks.1.attn1.to_k.scales"
    folder = shutil.copytree(made / ("own" if kind == "own" else "single"), tmp_path / "x")
    (path,) = folder.glob("*.safetensors")

    def change(tensors):
        (full,) = (key for key in tensors if key.endswith(name))
        tensors[full][1] = value

    forge(path, change)
    refused(folder, name)
    if kind == "shards":
        with pytest.raises(BrokenFile, match=name):
            type(tiny.make()).from_pretrained(folder)


def test_wrong_shape_and_dtype_in_a_consistent_header(own):
    path = own / "model.safetensors"
    header, data = split(path)
    name = "blocks.0.attn.qkv.scales"
    header[name]["shape"] = header[name]["shape"][::-1]
    join(path, header, data)
    refused(own, name)
    header[name]["shape"] = header[name]["shape"][::-1]
    header[name]["dtype"] = "I32"
    join(path, header, data)
    refused(own, name)


def test_a_kept_tensor_that_changes_its_dtype_is_caught_by_its_checksum(own):
    path = own / "model.safetensors"
    header, data = split(path)
    name = "final_layer.linear.bias"
    header[name].update(dtype="BF16", shape=[8])
    join(path, header, data)
    refused(own, name)


def test_a_missing_shard_and_a_foreign_one(shards, made):
    first, second, *_ = sorted(shards.glob("*.safetensors"))
    content = second.read_bytes()
    second.unlink()
    refused(shards, f"{second.name}.*missing")
    with pytest.raises((FewbitError, OSError)):
        type(tiny.make()).from_pretrained(shards)
    second.write_bytes(first.read_bytes())
    refused(shards, "disagree")
    shutil.copy(made / "single" / "diffusion_pytorch_model.safetensors", second)
    refused(shards, "disagree|belong")
    second.write_bytes(content)
    fewbit.load(shards)


def test_a_tensor_in_two_shards(shards):
    index = shards / "diffusion_pytorch_model.safetensors.index.json"
    first, second, *_ = sorted(shards.glob("*.safetensors"))
    header, data = split(second)
    name = next(name for name in split(first)[0] if name != "__metadata__")
    header[name] = {"dtype": "U8", "shape": [0], "data_offsets": [len(data), len(data)]}
    join(second, header, data)
    refused(shards, f"{index}.*disagree")
    with pytest.raises(BrokenFile, match=f"{name} is stored twice"):
        type(tiny.make()).from_pretrained(shards)


@pytest.mark.parametrize(
    "name",
    ["../own/model.safetensors", "/etc/passwd", "..", ".", "", "a/b.safetensors", "\0", "\ud800"],
)
def test_path_tricks_in_an_index(shards, name):
    index = shards / "diffusion_pytorch_model.safetensors.index.json"

    def change(content):
        content["weight_map"]["proj_out_2.bias"] = name

    edit(index, change)
    refused(shards, str(index))
    with pytest.raises((FewbitError, OSError, ValueError)):
        type(tiny.make()).from_pretrained(shards)


@pytest.mark.parametrize("content", ["{}", "[]", '{"weight_map": []}', '{"weight_map": {"a": 1}}'])
def test_an_index_without_a_table(shards, content):
    index = shards / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(content)
    refused(shards, str(index))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_100_mb_of_json_are_not_read(own, name):
    with (own / name).open("r+b") as file:
        if name == "model.safetensors":
            file.write(struct.pack("<Q", 100 << 20))
        file.truncate((100 << 20) + 8)
    tracemalloc.start()
    refused(own, name)
    assert tracemalloc.get_traced_memory()[1] < LARGEST
    tracemalloc.stop()


@pytest.mark.parametrize(
    "text",
    ["", "{", "[" * 10**6, '{"a":' * 10**5, '{"depth": %s}' % ("9" * 10**5), "\xff\0", "NaN"],
)
def test_config_that_is_no_json(own, text):
    (own / "config.json").write_bytes(text.encode("latin-1"))
    refused(own, str(own / "config.json"))


@pytest.mark.parametrize("key", ["norm_eps", "num_attention_heads", "activation_fn", "_class_name"])
def test_a_configuration_that_would_silently_change_the_model(made, tmp_path, key):
    folder = shutil.copytree(made / "single", tmp_path / "single")
    other = {"norm_eps": 0.1, "num_attention_heads": 4, "activation_fn": "gelu"}

    def change(content):
        content[key] = other.get(key, "PixArtTransformer2DModel")

    edit(folder / "config.json", change)
    refused(folder, f"config.json says {key}")
    if key in other:
        with pytest.raises((FewbitError, ValueError)):
            type(tiny.make()).from_pretrained(folder)


def test_a_recipe_that_differs_from_the_weights(made, tmp_path):
    folder = shutil.copytree(made / "single", tmp_path / "single")
    edit(folder / "config.json", lambda c: c["quantization_config"].update(bits="w8a8"))
    refused(folder, "config.json says bits = 'w8a8'")
    with pytest.raises(BrokenFile, match=r"config\.json says bits"):
        type(tiny.make()).from_pretrained(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "diffusion_pytorch_model.bin", "model.pt"])
def test_a_folder_with_only_a_pickle_is_refused_unread(made, tmp_path, name):
    folder = shutil.copytree(made / "single", tmp_path / "single")
    torch.save({"a": torch.ones(1)}, folder / name)
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    refused(folder, "holds no weights")


def test_no_code_path_unpickles():
    for file in Path(fewbit.__file__).parent.rglob("*.py"):
        assert not unsafe(ast.parse(file.read_text())), file


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from cloudpickle import loads",
        "torch.load(p)",
        "torch.load(p, weights_only=False)",
        "numpy.load(p, allow_pickle=True)",
        "eval(x)",
    ],
)
def test_that_check_can_fail(code):
    assert unsafe(ast.parse(code))


def test_only_the_error_class_of_pickle_is_allowed():
    assert not unsafe(
        ast.parse("from pickle import UnpicklingError\ntorch.load(p, weights_only=True)")
    )


def unsafe(tree):
    """Imports that unpickle, loads that may, and code made of data."""
    modules = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and modules & {alias.name for alias in node.names}:
            return True
        if isinstance(node, ast.ImportFrom) and node.module in modules:
            return [alias.name for alias in node.names] != ["UnpicklingError"]
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            words = {word.arg: ast.unparse(word.value) for word in node.keywords}
            if called == "torch.load" and words.get("weights_only") != "True":
                return True
            if called in ("eval", "exec") or words.get("allow_pickle") == "True":
                return True
    return False


def mutate(raw, rng):
    """One of the ways in which files break, or are broken."""
    raw, at = bytearray(raw), rng.randrange(len(raw))
    kind = rng.randrange(6)
    if kind == 0:
        raw[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        raw[at] = rng.randrange(256)
    elif kind == 2:
        del raw[at : at + rng.randrange(1, 9)]
    elif kind == 3:
        raw[at:at] = rng.randbytes(rng.randrange(1, 9))
    elif kind == 4:
        raw = raw[:at]
    else:
        other = rng.randrange(len(raw))
        raw[at : at + 4], raw[other : other + 4] = raw[other : other + 4], raw[at : at + 4]
    return bytes(raw)


def place_of_mutation(path, rng):
    """Headers and manifests are where a change can do most, data are where most bytes are."""
    raw = path.read_bytes()
    if path.suffix != ".safetensors" or rng.random() < 0.2:
        return 0, len(raw)
    return 0, 8 + struct.unpack("<Q", raw[:8])[0]


def test_mutated_artefacts_load_as_they_were_or_not_at_all(made, tmp_path):
    own, shards = (shutil.copytree(made / name, tmp_path / name) for name in ("own", "shards"))
    originals = {folder: fewbit.load(folder).state_dict() for folder in (own, shards)}
    rng, clean = random.Random(0), 0
    files = {
        folder: [
            p
            for p in sorted(folder.iterdir())
            if p.suffix in (".json", ".safetensors") and not p.name.startswith("fewbit_")
        ]
        for folder in originals
    }
    for turn in range(MUTATIONS):
        folder = shards if turn % 8 == 0 else own
        path = rng.choice(files[folder])
        whole = path.read_bytes()
        begin, end = place_of_mutation(path, rng)
        path.write_bytes(whole[:begin] + mutate(whole[begin:end], rng) + whole[end:])
        try:
            state = fewbit.load(folder).state_dict()
        except FewbitError:
            pass
        else:
            clean += 1
            expected = originals[folder]
            assert state.keys() == expected.keys()
            assert all(torch.equal(state[name], expected[name]) for name in state)
        path.write_bytes(whole)
    assert clean < MUTATIONS / 10  # whitespace in config.json, say, and little else
    assert fewbit.load(own).state_dict().keys() == originals[own].keys()


def test_diffusers_itself_never_gets_a_broken_artefact_for_good(made, tmp_path):
    """Stock from_pretrained reads config.json and the index before we see them; whatever it says
    of them, no altered model may come out of it."""
    folder = shutil.copytree(made / "shards", tmp_path / "shards")
    cls, rng = type(tiny.make()), random.Random(1)
    original = cls.from_pretrained(folder).state_dict()
    files = sorted(folder.glob("*.safetensors"))
    for _ in range(60):
        path = rng.choice(files)
        whole = path.read_bytes()
        path.write_bytes(mutate(whole, rng))
        try:
            state = cls.from_pretrained(folder).state_dict()
        except (FewbitError, OSError, ValueError):
            pass
        else:
            assert all(torch.equal(state[name], original[name]) for name in original)
        path.write_bytes(whole)
