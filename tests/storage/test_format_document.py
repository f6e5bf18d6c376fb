"""docs/format.md is enough: a reader written from it with numpy alone gives the same weights."""

import json
import math
import re
import zlib
from pathlib import Path

import any_transformers
import numpy as np
import pytest
import small_models
import tiny_transformers as tiny
import torch

import fewbit
from fewbit.formats import FORMATS, SCALES
from fewbit.layers.linear import QLinear

DTYPES = {"F32": "<f4", "F16": "<f2", "U8": "u1", "I8": "i1", "BF16": "<u2", "F8_E4M3": "u1"}


def read(path):
    """Tensor name -> (dtype name, array), and the manifest."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    manifest = json.loads(header.pop("__metadata__")["fewbit"])
    tensors = {}
    for name, entry in header.items():
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        array = np.frombuffer(raw[begin:end], DTYPES[entry["dtype"]]).reshape(entry["shape"])
        tensors[name] = entry["dtype"], array
        line = f"{entry['dtype']} [{', '.join(map(str, entry['shape']))}]\n".encode()
        assert manifest["crc32"][name] == f"{zlib.crc32(line + raw[begin:end]):08x}"
    for alias, name in manifest["aliases"].items():
        tensors[alias] = tensors[name]
    return tensors, manifest


def layers(manifest, kind="layers"):
    for entry in manifest["layers"]:
        if kind not in entry:
            continue
        if "blocks" not in entry:
            yield from ((name, entry) for name in entry[kind])
            continue
        stem, low, high = re.fullmatch(r"(.+)\.(\d+)(?:-(\d+))?", entry["blocks"]).groups()
        for block in range(int(low), int(high or low) + 1):
            for path in entry[kind]:
                yield f"{stem}.{block}.{path}", entry


def weight(name, entry, tensors):
    fmt, span, scale_format = entry["weight"].split("/")
    out, columns = entry["shape"]
    if scale_format == "table":
        return from_table(name, tensors, columns) * tensors[f"{name}.outer_scales"][1]
    levels = levels_of(fmt, name, tensors, columns)
    scale = floats(*tensors[f"{name}.scales"], scale_format)
    if scale_format.startswith("e4m3") or scale_format == "factor":
        scale = scale * tensors[f"{name}.outer_scales"][1]
    width = int(span[1:]) if span[0] == "g" else columns
    wide = np.broadcast_to(np.repeat(scale, width, 1), (out, columns))
    if fmt[0] == "u" and scale_format == "gguf":
        return levels * wide + np.repeat(tensors[f"{name}.zeros"][1].astype(np.float32), width, 1)
    if fmt[0] == "u":
        levels = levels - np.repeat(tensors[f"{name}.zeros"][1].astype(np.float32), width, 1)
    return levels * wide


def from_table(name, tensors, columns):
    scales = floats(*tensors[f"{name}.scales"], "table")
    codes = unpack(tensors[f"{name}.codes"][1], 4, columns)
    numbers = tensors[f"{name}.codebook"][1][:, 0][codes]
    wide = np.repeat(scales, columns // scales.shape[1], 1)
    return np.clip(np.rint(wide * numbers), -127, 127)


def levels_of(fmt, name, tensors, columns):
    codes = tensors[f"{name}.codes"][1]
    if codebook := re.fullmatch(r"vq(\d+)x(\d+)", fmt):
        entries, width = map(int, codebook.groups())
        codes = unpack(codes, entries.bit_length() - 1, columns // width)
        return floats(*tensors[f"{name}.codebook"], "fp16")[codes].reshape(len(codes), columns)
    table = [level(fmt, code) for code in range(1 << bits_of(fmt))]
    return np.array(table, np.float32)[unpack(codes, bits_of(fmt), columns)]


def bits_of(fmt):
    numbers = [int(n) for n in re.findall(r"\d+", fmt)]
    return numbers[0] if "int" in fmt or "book" in fmt else 1 + sum(numbers)


def unpack(rows, bits, columns):
    stream = np.unpackbits(rows, axis=1, bitorder="little")[:, : columns * bits]
    return stream.reshape(len(rows), columns, bits).astype(int) @ (1 << np.arange(bits))


BOOKS = {2: (1, 3), 3: (1, 3, 5, 8), 4: (1, 3, 5, 7, 9, 12, 15, 20)}


def level(fmt, code):
    bits = bits_of(fmt)
    if "book" in fmt:
        positive, last = BOOKS[bits], (1 << bits) - 1
        return positive[code] if code < len(positive) else -positive[last - code]
    if "int" in fmt:
        return code - (1 << bits) if fmt[0] == "i" and code >= 1 << (bits - 1) else code
    x, y = (int(n) for n in re.findall(r"\d+", fmt))
    sign, e, m = code >> (x + y), code >> y & ((1 << x) - 1), code & ((1 << y) - 1)
    bias = 2 ** (x - 1) - 1
    size = m / 2**y * 2.0 ** (1 - bias) if e == 0 else (1 + m / 2**y) * 2.0 ** (e - bias)
    return -size if sign else size


def floats(dtype, array, scale_format):
    if scale_format == "e8m0":
        return np.ldexp(np.float32(1), array.astype(int) - 127).astype(np.float32)
    if dtype == "BF16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    if dtype == "F8_E4M3":
        return np.array([level("e4m3", code) for code in range(256)], np.float32)[array]
    return array.astype(np.float32)


CASES = [
    *({"bits": bits} for bits in ("w8a8", "w6a6", "w4a4", "w2a16", "mxfp4", "nvfp4")),
    {"bits": "w2a16", "asymmetric": True},
    {"bits": "w6a6", "asymmetric": True, "group_size": 16},
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_strangers_reader_gets_the_same_weights(case, tmp_path):
    model = tiny.quantized(**case)
    model.save_pretrained(tmp_path)
    tensors, manifest = read(tiny.weights(tmp_path))
    packed = {n: m for n, m in model.named_modules() if isinstance(m, QLinear)}
    found = dict(layers(manifest))
    assert found.keys() == packed.keys()
    for name, entry in found.items():
        expected = packed[name].packed_weight.dequantize().numpy()
        assert np.array_equal(weight(name, entry, tensors), expected), name


@pytest.mark.parametrize(
    "spec",
    [
        *("int3/row/bf16", "e3m2/tensor/fp16", "e2m3/g16/e4m3row", "book3/row/fp32"),
        *("book4/g16/factor", "lut16/g16/table", "lut16/row/table", "int5/g32/gguf"),
        *("uint4/g32/gguf", "uint5/row/gguf"),
    ],
)
def test_specs_that_no_recipe_writes_yet(spec, tmp_path):
    from fewbit.formats import QTensor, Spec

    model = toy()
    linear = model.blocks[0].mlp.fc1
    packed = QTensor.quantize(linear.packed_weight.dequantize(), Spec.parse(spec))
    check_alone(model, linear, packed, tmp_path)


@pytest.mark.parametrize("name", ["Flux2Transformer2DModel", "SanaTransformer2DModel"])
def test_layers_outside_of_the_blocks_and_convolutions(name, tmp_path):
    model = any_transformers.make(name)
    fewbit.quantize(model, "rtn", bits="w8a8", progress=False)
    fewbit.save(model, tmp_path)
    tensors, manifest = read(tiny.weights(tmp_path))
    packed = {n: m for n, m in model.named_modules() if isinstance(m, QLinear)}
    found = dict(layers(manifest))
    assert found.keys() == packed.keys()
    assert any("blocks" not in entry for entry in found.values())
    for path, entry in found.items():
        assert np.array_equal(weight(path, entry, tensors), packed[path].effective_weight().numpy())


CODEBOOKS = ["vq256x4/tensor/fp32", "vq64x2/row/fp16", "vq8x1/g16/bf16", "vq2x8/row/e4m3row"]


@pytest.mark.parametrize("spec", CODEBOOKS)
def test_codebooks(spec, tmp_path):
    from fewbit.formats import QTensor, Scales, Spec

    model = toy()
    linear, spec = model.blocks[0].mlp.fc1, Spec.parse(spec)
    scales, weight = spec.empty_scales(*linear.packed_weight.shape), linear.effective_weight()
    fmt = spec.format
    codebook = weight.flatten()[: fmt.entries * fmt.columns].view(fmt.entries, -1).half() * 9
    rms = weight.view(len(weight), scales.stored.shape[1] if len(scales.stored) > 1 else 1, -1)
    found = spec.store(rms.square().mean(-1).sqrt()[: len(scales.stored)])
    stored = Scales(found.stored, found.outer, codebook=codebook)
    check_alone(model, linear, QTensor.quantize(weight, spec, stored), tmp_path)


def toy():
    from fewbit.models.families.original_dit import DiTConfig, OriginalDiT

    model = OriginalDiT(DiTConfig(8, 2, 4, 64, 128, 1, 2, 5, True))
    fewbit.quantize(model, "rtn", bits="w2a16", progress=False)
    return model


def check_alone(model, linear, packed, tmp_path):
    model.blocks[0].mlp.fc1 = QLinear(packed, linear.bias, None)
    fewbit.save(model, tmp_path / "x")
    tensors, manifest = read(tmp_path / "x" / "model.safetensors")
    name = "blocks.0.mlp.fc1"
    found = weight(name, dict(layers(manifest))[name], tensors)
    assert np.array_equal(found, packed.dequantize().numpy())


def static(name, config, tensors, x, time):
    """x [rows, second axis, ...] by the document's words, in float32."""
    centres = tensors[f"{name}.bins.centres"][1]
    middles = (centres[1:] + centres[:-1]) / np.float32(2)
    group = (middles < np.float32(time)).sum()
    steps = tensors[f"{name}.steps"][1][..., group, :]
    shape = (1, -1) + (1,) * (x.ndim - 2) if config["parts"] > 1 else (1,) * x.ndim
    bits = bits_of(config["spec"].split("/")[0])
    half, one = 1 << (bits - 1), np.float32(1)
    if config["kind"] == "static":
        low, top = (0, 2 * half - 1) if config["spec"][0] == "u" else (-half, half - 1)
        step = steps.reshape(shape)
        return np.clip(np.rint(x * (one / step)), low, top) * step
    low, high = (part.reshape(shape) for part in steps)
    if config["regions"] != "unit":
        small = x < 0
        small[..., : config.get("whole", 0)] = False
        step = np.where(small, low, high)
        return np.clip(np.rint(x * (one / step)), -half, half - 1) * step
    end = np.float32(half - 1) * low
    first = np.minimum(np.floor(end / high) + 1, half)
    fine = np.clip(np.rint(x * (one / low)), 0, half - 1) * low
    coarse = np.clip(np.rint(x * (one / high)), first, half) * high
    return np.where(x < (end + first * high) / 2, fine, coarse)


@pytest.mark.parametrize("bits", ["w8a8", "w6a6"])
def test_a_strangers_reader_rounds_inputs_by_static_steps(bits, tmp_path):
    model = tiny.make()
    random = torch.Generator().manual_seed(0)
    rows = [
        {
            "hidden_states": torch.randn(1, 4, 8, 8, generator=random),
            "timestep": torch.tensor([100 * row]),
            "class_labels": torch.tensor([row]),
        }
        for row in range(9)
    ]
    few = {"groups": 3, "rounds": 1, "candidates": 20}
    fewbit.quantize(model, "tq-dit", bits=bits, calibration=rows, progress=False, **few)
    model.save_pretrained(tmp_path)
    tensors, manifest = read(tiny.weights(tmp_path))
    inputs = {
        f"{name}.stage.activation": entry["input"]["activation"]
        for name, entry in layers(manifest)
        if "activation" in entry.get("input", {})
    }
    operands = {
        f"{name}.matmuls.{part}": entry[part]
        for name, entry in layers(manifest, "attentions")
        for part in ("query", "key", "shares", "value")
    }
    assert len(inputs) == 2 * 4
    assert len(operands) == 2 * 4
    clock = model.transformer_blocks[0].attn1.matmuls.query.bins.clock
    for time in (0, 266.5, 400, 1234):
        clock.read(model, (), {"timestep": time})
        for name, config in {**inputs, **operands}.items():
            x = torch.randn(2, max(config["parts"], 3), 50, generator=random)
            x = x.softmax(-1) if config.get("regions") == "unit" else x
            if config["parts"] > 1:
                x = x[:, : config["parts"]]
            expected = model.get_submodule(name)(x).numpy()
            assert np.array_equal(static(name, config, tensors, x.numpy(), time), expected), name


def test_a_strangers_reader_rounds_an_input_that_is_fused(tmp_path):
    model = small_models.make("FluxTransformer2DModel")
    data = [small_models.arguments("FluxTransformer2DModel", 9)]
    few = {"groups": 3, "rounds": 1, "candidates": 20}
    fewbit.quantize(model, "tq-dit", calibration=data, progress=False, **few)
    model.save_pretrained(tmp_path)
    tensors, manifest = read(tiny.weights(tmp_path))
    name = "single_transformer_blocks.0.proj_out"
    config = dict(layers(manifest))[name]["input"]["activation"]
    assert config["regions"] == "fused"
    quantizer = model.get_submodule(f"{name}.stage.activation")
    quantizer.bins.clock.read(model, (), {"timestep": 0.4})
    x = torch.randn(2, 3, model.get_submodule(name).in_features)
    found = static(f"{name}.stage.activation", config, tensors, x.numpy(), 0.4)
    assert np.array_equal(found, quantizer(x).numpy())


def test_the_document_names_every_format_and_scale():
    text = (Path(__file__).parents[2] / "docs" / "format.md").read_text()
    for name in SCALES:
        assert f"`{name}`" in text
    for name in FORMATS:
        assert name in text or re.fullmatch(r"u?int[2-8]", name)


def test_levels_of_the_document_are_those_of_the_library():
    for name, fmt in FORMATS.items():
        for code, value in enumerate(fmt.code_values()):
            if math.isfinite(value):
                assert level(name, code) == value
