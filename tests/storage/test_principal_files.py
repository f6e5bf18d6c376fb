"""Inputs with directions in files: they come back, a stranger reads them, and no harm comes in."""

import json
import shutil
from functools import partial

import numpy as np
import pytest
import tiny_transformers as tiny
import torch
from test_format_document import floats, layers, level, read, unpack, weight
from test_hostile_files import forge, join, refused, split

import fewbit
from fewbit.kernels.values import QuantizedRows
from fewbit.layers.linear import quantized_layers

pytestmark = pytest.mark.usefixtures("one_thread")
RANK = 8


def rows():
    random = torch.Generator().manual_seed(0)
    return [
        {
            "hidden_states": torch.randn(1, 4, 8, 8, generator=random),
            "timestep": torch.tensor([100 * row]),
            "class_labels": torch.tensor([row]),
        }
        for row in range(9)
    ]


@pytest.fixture(scope="module")
def model():
    model = tiny.make()
    fewbit.quantize(
        model, "hq-dit", calibration=rows(), directions=RANK, transform="all", progress=False
    )
    return model


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "x"
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def own(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "own")


def run(model):
    with torch.no_grad():
        return model(**rows()[3]).sample


def test_it_comes_back(model, saved):
    assert torch.equal(run(fewbit.load(saved)), run(model))
    assert torch.equal(run(type(model).from_pretrained(saved)), run(model))


def test_layers_of_one_input_store_its_directions_once(saved):
    manifest = read(tiny.weights(saved))[1]
    names = [name for name in manifest["aliases"] if name.endswith("principal.codes")]
    assert len(names) == 2 * 2  # of three readers of one tensor, in two blocks


def int8(x):
    """The codes and the step of each row, by the document's words."""
    largest, one = np.abs(x).max(1, keepdims=True), np.float32(1)
    step = np.where(largest == 0, one, largest / np.float32(127))
    return np.rint(x * (one / step)).astype(int), step


def test_a_stranger_splits_an_input_alike_and_reads_the_side(model, saved):
    tensors, manifest = read(tiny.weights(saved))
    found = dict(layers(manifest))
    for name, layer in quantized_layers(model).items():
        if layer.side is None:
            continue
        v = unpack(tensors[f"{name}.stage.principal.codes"][1], 6, layer.in_features)
        v = np.where(v < 32, v, v.astype(int) - 64)
        x = torch.randn(20, layer.in_features)
        q, s = int8(x.numpy())
        squares = (v**2).sum(1).astype(np.float32)
        k, t = int8((q @ v.T).astype(np.float32) * s / squares)
        layer.stage.transform = None
        with torch.no_grad():
            parts = layer.stage(x)
        assert np.array_equal(parts.side.integers.numpy(), k)
        assert np.array_equal(parts.side.scales.numpy(), t)
        rest = x.numpy() - (k @ v).astype(np.float32) * t
        assert isinstance(parts.main, QuantizedRows)
        scale = np.abs(rest).max(1, keepdims=True) / np.float32(6)
        assert np.array_equal(parts.main.scales.numpy(), scale * np.float32(0.5))
        exact = weight(name, found[name], tensors).astype(np.float64) @ v.T
        largest = torch.from_numpy(np.abs(exact.astype(np.float32)).max(1, keepdims=True))
        step = (largest / 127).bfloat16().float().numpy()
        codes = np.rint(exact.astype(np.float32) * (np.float32(1) / step)).clip(-127, 127)
        assert np.allclose(codes * step, layer.side.dequantize().numpy(), rtol=1e-6)


def blueprint(folder, change):
    """Alter the entries of inputs with directions, and the checksum with them."""
    import hashlib

    path = tiny.weights(folder)
    header, data = split(path)
    manifest = json.loads(header["__metadata__"]["fewbit"])
    for entry in manifest["layers"]:
        if "principal" in entry.get("input", {}):
            change(entry)
    text = json.dumps(manifest)
    header["__metadata__"]["fewbit"] = text
    header["__metadata__"]["fewbit_sha256"] = hashlib.sha256(text.encode()).hexdigest()
    join(path, header, data)


def put(key, value, entry):
    entry[key] = value


def input_of(value, entry):
    if "principal" in entry["input"]:
        entry["input"]["principal"] = value


def of_rank(rank, entry):
    if "principal" in entry["input"]:
        entry["input"]["principal"]["rank"] = rank


HOSTILE = {
    "a side": (partial(put, "side", "int8/row/bf16"), "understood was"),
    "rank above width": (partial(input_of, {"width": 64, "rank": 65}), "1 to 64 directions"),
    "huge": (partial(input_of, {"width": 1 << 40, "rank": 1}), "1 to 1048576 columns"),
    "huge rank": (partial(input_of, {"width": 64, "rank": 10**30}), "1 to 64 directions"),
    "other width": (partial(input_of, {"width": 32, "rank": 8}), "cannot take an input"),
    "other rank": (lambda entry: of_rank(9, entry), "codes"),
    "more fields": (partial(input_of, {"width": 64, "rank": 8, "kind": "x"}), "understood was"),
    "no table": (partial(input_of, "principal"), "cannot be read"),
    "nothing": (partial(input_of, None), "cannot be read|understood was|principal"),
    "no rank": (partial(input_of, {"width": 64}), "lacks .rank."),
    "half a rank": (partial(input_of, {"width": 64, "rank": 8.5}), "1 to 64 directions"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_forged_blueprints_are_refused(own, case):
    change, complaint = HOSTILE[case]
    blueprint(own, change)
    refused(own, complaint)


def test_a_principal_part_is_no_transform(own):
    def change(entry):
        if "principal" in entry["input"]:
            entry["input"]["transform"] = {"kind": "principal", "width": 64, "rank": 8}

    blueprint(own, change)
    refused(own, "unknown kind 'principal' in transforms")


@pytest.mark.parametrize(
    ("end", "value", "complaint"),
    [
        ("stage.principal.codes", 0, "holds a direction of zeros"),
    ],
)
def test_numbers_that_no_writer_writes_are_refused(own, end, value, complaint):
    def change(tensors):
        name = next(name for name in tensors if name.endswith(end))
        tensors[name][1] = value

    forge(tiny.weights(own), change)
    refused(own, complaint)


def test_the_level_of_a_byte_is_its_number():
    assert [level("int8", code) for code in (0, 127, 128, 255)] == [0, 127, -128, -1]
    assert floats("F32", np.array([0.5], np.float32), "fp32") == 0.5
    assert unpack(np.array([[255]], np.uint8), 8, 1).tolist() == [[255]]
