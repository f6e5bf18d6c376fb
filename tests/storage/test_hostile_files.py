"""Broken and hostile artefacts: a clean load that equals the original, or an error with a name."""

import ast
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import socket
import struct
import tracemalloc
from pathlib import Path

import pytest
import tiny_transformers as tiny
import torch
from safetensors.torch import load_file, save_file

import fewbit
from fewbit.errors import BrokenFile, FewbitError
from fewbit.models.families.original_dit import DiTConfig, OriginalDiT
from fewbit.pipelines.opening import open_model
from fewbit.storage.strict_json import LARGEST

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
        manifest["crc32"][name] = fewbit.storage.tensors.checksum(tensors[name])
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


def make_special(kind, path):
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(os.path.relpath(path))  # a socket's name is short
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to({"device": "/dev/zero", "circle": path.name}[kind])


@pytest.fixture
def at_once():
    """A reader that waits for the other end of a pipe is woken, and fails."""

    def wake(*_):
        raise AssertionError("it waits for ever")

    before = signal.signal(signal.SIGALRM, wake)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


SPECIAL = ["pipe", "socket", "device", "folder", "circle"]


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_what_is_no_regular_file_is_not_read(own, at_once, monkeypatch, kind, name):
    monkeypatch.chdir(own)
    make_special(kind, own / name)
    refused(own, name if kind != "circle" else "config.json|holds no weights")


@pytest.mark.parametrize("kind", SPECIAL)
def test_nor_in_the_place_of_a_shard_or_of_the_index(shards, at_once, monkeypatch, kind):
    monkeypatch.chdir(shards)
    shard = min(shards.glob("*.safetensors"))
    content = shard.read_bytes()
    make_special(kind, shard)
    refused(shards, shard.name)
    shard.rmdir() if kind == "folder" else shard.unlink()
    shard.write_bytes(content)
    make_special(kind, shards / "diffusion_pytorch_model.safetensors.index.json")
    refused(shards, "index.json|holds no weights")


@pytest.mark.parametrize("place", ["vae/config.json", "scheduler/x", "model_index.json"])
def test_nor_in_a_part_of_a_pipeline_that_diffusers_reads(tmp_path, at_once, place):
    pipe = tiny.pipeline(tiny.make())
    fewbit.quantize(pipe, "rtn", bits="w4a4", progress=False)
    fewbit.save(pipe, tmp_path / "pipe")
    make_special("pipe", tmp_path / "pipe" / place)
    refused(tmp_path / "pipe", place)
    with pytest.raises(BrokenFile, match=place):
        open_model(str(tmp_path / "pipe"))


def forge_manifest(path, change):
    header, data = split(path)
    manifest = json.loads(header["__metadata__"]["fewbit"])
    change(manifest)
    text = json.dumps(manifest)
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    header["__metadata__"].update(fewbit=text, fewbit_sha256=sha256)
    join(path, header, data)


def forge_architecture(folder, key, value):
    """In the configuration and in the manifest alike."""
    edit(folder / "config.json", lambda content: content.update({key: value}))
    (path,) = folder.glob("*.safetensors")
    forge_manifest(path, lambda manifest: manifest["architecture"].update({key: value}))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_layers", 1 << 31),
        ("num_layers", 1 << 19),
        ("sample_size", 1 << 31),
        ("sample_size", 1 << 14),
        ("sample_size", -1),
        ("sample_size", 0),
        ("num_attention_heads", 1 << 31),
        ("num_attention_heads", 1 << 14),
        ("attention_head_dim", 1 << 16),
        ("num_embeds_ada_norm", 1 << 31),
        ("num_embeds_ada_norm", 1 << 20),
        ("patch_size", 1 << 12),
        ("norm_eps", "x"),
        ("activation_fn", 7),
    ],
)
def test_a_configuration_that_asks_for_the_machine(made, tmp_path, at_once, key, value):
    folder = shutil.copytree(made / "single", tmp_path / "single")
    forge_architecture(folder, key, value)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(folder, r"config\.json (says|describes)|safetensors: ")
    with pytest.raises(BrokenFile):
        fewbit.inspect(folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000


@pytest.mark.parametrize(("key", "value"), [("depth", 1 << 31), ("input_size", 1 << 20)])
def test_so_of_our_own_class(own, at_once, key, value):
    forge_architecture(own, key, value)
    refused(own, key)


def test_an_unquantized_configuration_is_bounded_too(tmp_path, at_once):
    tiny.make().save_pretrained(tmp_path)
    edit(tmp_path / "config.json", lambda content: content.update(num_layers=1 << 19))
    with pytest.raises(BrokenFile, match=r"config\.json describes more parameters"):
        fewbit.inspect(tmp_path)


def entry_of(manifest):
    return next(entry for entry in manifest["layers"] if "activation" in entry.get("input", {}))


def put_transform(config):
    return lambda manifest: entry_of(manifest)["input"].update(transform=config)


def put_activation(config):
    return lambda manifest: entry_of(manifest)["input"].update(activation=config)


HADAMARD = {"kind": "hadamard", "width": 16, "block": None, "seed": 0}
STATIC = {"kind": "static", "spec": "int8/tensor/fp32", "groups": 1, "parts": 1}


@pytest.mark.parametrize(
    "change",
    {
        "settings are a text": lambda m: m["provenance"]["recipe"].update(settings="x"),
        "settings are a list": lambda m: m["provenance"]["recipe"].update(settings=[1]),
        "a setting is a table": lambda m: m["provenance"]["recipe"]["settings"].update(adaln={}),
        "a method is a list": lambda m: m["provenance"]["recipe"].update(method=[]),
        "a recipe with more": lambda m: m["provenance"]["recipe"].update(x=1),
        "a seed is a table": put_transform({**HADAMARD, "seed": {}}),
        "a seed is huge": put_transform({**HADAMARD, "seed": 1 << 70}),
        "a width is huge": put_transform({**HADAMARD, "width": 1 << 40}),
        "a width is prime and large": put_transform({**HADAMARD, "width": 1048573}),
        "a block is a text": put_transform({**HADAMARD, "block": "auto"}),
        "another width": put_transform({**HADAMARD, "width": 32}),
        "an empty chain": put_transform({"kind": "chain", "parts": []}),
        "a chain of texts": put_transform({"kind": "chain", "parts": "x"}),
        "smooth and huge": put_transform({"kind": "smooth", "width": 1 << 45}),
        "a kind is a list": put_transform({"kind": []}),
        "a kind is missing": put_transform({}),
        "a width is missing": put_transform({"kind": "smooth"}),
        "a codebook for inputs": put_activation({"kind": "dynamic", "spec": "vq16x4/row/fp16"}),
        "a choice for inputs": put_activation({"kind": "dynamic", "spec": "e2m1|e1m2/row/fp32"}),
        "groups that do not divide": put_activation({"kind": "dynamic", "spec": "int4/g7/fp32"}),
        "steps for heads": put_activation({**STATIC, "parts": 3}),
        "static by a choice": put_activation({**STATIC, "spec": "e2m1|e1m2/row/fp32"}),
        "more than is read": put_activation({"kind": "dynamic", "spec": "e2m1/row/fp32", "x": 1}),
        "no spec": put_activation({"kind": "dynamic", "spec": "e2m1/row/fp32" * 10**5}),
        "options without end": lambda m: entry_of(m).update(
            weight="int8|" * 10**5 + "int8/row/fp32"
        ),
        "a bias that is a number": lambda m: entry_of(m).update(bias=1),
        "a shape that is a text": lambda m: entry_of(m).update(shape="x" * 10**5),
        "an escape": lambda m: entry_of(m)["layers"].append("\x1b[31m"),
        "an unknown part": lambda m: entry_of(m)["input"].update(x={"kind": "dynamic"}),
        "shared with more": lambda m: entry_of(m)["input"].update(same_as="attn.qkv"),
    }.items(),
    ids=lambda item: item[0].replace(" ", "_"),
)
def test_a_signed_manifest_that_says_what_no_writer_would(own, at_once, change):
    forge_manifest(own / "model.safetensors", change[1])
    said = refused(own, "manifest|blueprint")
    assert said.isprintable()
    assert "Error" not in said


def test_an_empty_tensor_at_an_odd_place(tmp_path):
    path = tmp_path / "x.safetensors"
    odd = {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]}
    empty = {"dtype": "F32", "shape": [0, 4], "data_offsets": [3, 3]}
    join(path, {"odd": odd, "empty": empty}, b"abc")
    written = {"odd": torch.tensor(list(b"abc"), dtype=torch.uint8), "empty": torch.empty(0, 4)}
    crc32 = {name: fewbit.storage.tensors.checksum(tensor) for name, tensor in written.items()}
    with fewbit.storage.tensors.checked_tensors(
        [fewbit.storage.header.read_header(path)], crc32
    ) as found:
        assert all(torch.equal(found[name], written[name]) for name in written)


def test_names_that_cannot_be_shown_are_refused_in_words_that_can(own):
    path = own / "model.safetensors"
    header, data = split(path)
    header["a\x1b]0;title\x07"] = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
    join(path, header, data)
    assert refused(own, "cannot be shown").isprintable()
    edit(own / "config.json", lambda content: content.update({"\x1b[2J": 1}))
    assert refused(own, "cannot be shown").isprintable()


def test_a_few_hundred_artefacts_of_the_benchmark(tmp_path, monkeypatch):
    pytest.importorskip("diffusers")
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    import hostile

    few = ("rtn:w4a4", "hq-dit:w4a4 per channel", "tq-dit:w8a8")
    monkeypatch.setattr(hostile, "RECIPES", {name: hostile.RECIPES[name] for name in few})
    wholes = hostile.made(tmp_path / "whole")
    done = [hostile.tried(number, wholes, tmp_path) for number in range(300)]
    assert [one for one in done if one["outcome"].startswith("FAULT")] == []
    assert {one["outcome"] for one in done} >= {"equal", "refused", "another model"}
