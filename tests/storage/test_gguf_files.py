"""GGUF: literal blocks, the package gguf as the judge, and what is refused."""

import struct

import foreign_files as foreign
import numpy as np
import pytest
import tiny_transformers as tiny
import torch
from foreign_files import normal

import fewbit
from fewbit.errors import BrokenFile
from fewbit.formats import QTensor
from fewbit.storage.foreign.gguf_blocks import BLOCKS

NAMED = {block.name: block for block in BLOCKS}
LAYER = "transformer_blocks.0.attn1.to_q"
ALL = pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.name)


def text(value):
    return struct.pack("<Q", len(value.encode())) + value.encode()


def file_of(tensors, values=(), version=3, alignment=32):
    """Name -> (type, shape, bytes) as GGUF."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(values)) + b"".join(values)
    data = b""
    for name, (kind, shape, content) in tensors.items():
        head += text(name) + struct.pack("<I", len(shape))
        head += b"".join(struct.pack("<Q", size) for size in reversed(shape))
        head += struct.pack("<IQ", kind, len(data))
        data += content + b"\0" * (-len(content) % alignment)
    return head + b"\0" * (-len(head) % alignment) + data


def written(model, block):
    """The tensors of a model, its linears in blocks."""
    packed = foreign.linears(model)
    found = {}
    for name, tensor in model.state_dict().items():
        kind, content = 0, tensor.numpy().tobytes()
        if name.removesuffix(".weight") in packed:
            kind, content = block.number, block.write(quantized(block, tensor)).numpy().tobytes()
        found[name] = kind, tensor.shape, content
    return found


def quantized(block, matrix):
    return QTensor.quantize(matrix, block.spec)


def load(path, content, like=None):
    path.write_bytes(content)
    return fewbit.load(path, like=tiny.make() if like is None else like)


LITERAL = {  # the first bytes of a block, and what its first, second and 17th columns are
    "q4_0": (struct.pack("<e", -0.5) + bytes([0x1F, 0x80]), (-3.5, 4.0, 3.5)),
    "q4_1": (struct.pack("<ee", 0.5, -1.0) + bytes([0x1F, 0x80]), (6.5, -1.0, -0.5)),
    "q5_0": (struct.pack("<eI", 0.5, 0b11 | 1 << 16) + bytes([0x1F, 0x80]), (7.5, 0.0, 0.5)),
    "q5_1": (struct.pack("<eeI", 0.5, 2.0, 0b10) + bytes([0x1F, 0x80]), (9.5, 10.0, 2.5)),
    "q8_0": (struct.pack("<e", 0.25) + bytes([0xFF, 0x7F]), (-0.25, 31.75, 0.0)),
    "mxfp4": (bytes([128, 0x1F, 0x80]), (-12.0, 0.0, 1.0)),
}


@ALL
def test_literal_bytes(block):
    content, (first, second, middle) = LITERAL[block.name]
    stored = torch.zeros(1, block.nbytes, dtype=torch.uint8)
    stored[0, : len(content)] = torch.tensor(list(content))
    packed = block.read(stored)
    values = packed.dequantize()[0]
    assert (values[0].item(), values[1].item(), values[16].item()) == (first, second, middle)
    assert torch.equal(block.write(packed), stored)


@ALL
def test_any_bytes_come_back(block):
    stored = torch.randint(0, 256, (7, 3 * block.nbytes), generator=torch.Generator())
    stored = stored.to(torch.uint8)
    assert torch.equal(block.write(block.read(stored)), stored)


@ALL
def test_a_file_is_read_as_it_is_stored(block, tmp_path):
    model = tiny.make()
    loaded = load(tmp_path / "x.gguf", file_of(written(model, block)))
    for name, linear in foreign.linears(model).items():
        layer = loaded.get_submodule(name)
        expected = quantized(block, linear.weight.detach())
        assert layer.spec == block.spec
        assert torch.equal(layer.packed_weight.packed, expected.packed)
        assert torch.equal(layer.packed_weight.dequantize(), expected.dequantize())
        assert layer.stage is None
    fewbit.save(loaded, tmp_path / "own")
    again = fewbit.load(tmp_path / "own")
    x = normal(3, 64)
    assert torch.equal(again.get_submodule(LAYER)(x), loaded.get_submodule(LAYER)(x))
    expected = (
        x @ loaded.get_submodule(LAYER).effective_weight().T + loaded.get_submodule(LAYER).bias
    )
    torch.testing.assert_close(loaded.get_submodule(LAYER)(x), expected, rtol=1e-5, atol=1e-5)


@ALL
def test_the_package_writes_and_reads_the_same(block, tmp_path):
    """Its own file gives its own numbers; its blocks may have negative scales, or 0."""
    gguf = pytest.importorskip("gguf")
    kind = getattr(gguf.GGMLQuantizationType, block.name.upper())
    model, file = tiny.make(), tmp_path / "x.gguf"
    writer = gguf.GGUFWriter(file, "dit")
    exact = {}
    for name, tensor in model.state_dict().items():
        if name.removesuffix(".weight") not in foreign.linears(model):
            writer.add_tensor(name, tensor.numpy())
            continue
        matrix = tensor.numpy().copy()
        matrix[0, :32] = 0
        stored = gguf.quants.quantize(matrix, kind)
        exact[name.removesuffix(".weight")] = gguf.quants.dequantize(stored, kind)
        writer.add_tensor(name, stored, raw_shape=stored.shape, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    loaded = fewbit.load(file, like=tiny.make())
    for name, values in exact.items():
        found = loaded.get_submodule(name).packed_weight.dequantize().numpy()
        assert np.array_equal(found, values), name


def test_half_types_and_matrices_that_are_no_linears(tmp_path):
    """A table of embeddings in blocks is unpacked; it is no linear."""
    model, block = tiny.make(), NAMED["q8_0"]
    tensors = written(model, block)
    names = [n for n, (kind, shape, _) in tensors.items() if not kind and shape[-1] % 32 == 0]
    table = next(n for n in names if "embedding_table" in n)
    matrix = model.state_dict()[table]
    packed = quantized(block, matrix)
    tensors[table] = block.number, matrix.shape, block.write(packed).numpy().tobytes()
    bias = model.state_dict()["proj_out_1.bias"].bfloat16()
    content = bias.view(torch.int16).numpy().tobytes()
    tensors["proj_out_1.bias"] = 30, bias.shape, content
    state = load(tmp_path / "x.gguf", file_of(tensors)).state_dict()
    assert torch.equal(state[table], packed.dequantize())
    assert torch.equal(state["proj_out_1.bias"], bias.float())


VALUES = [
    text("general.architecture") + struct.pack("<I", 8) + text("dit"),
    text("a") + struct.pack("<If", 6, 1.5),
    text("b") + struct.pack("<IIQ", 9, 8, 2) + text("x") + text("y"),
    text("c") + struct.pack("<IIQ", 9, 4, 3) + bytes(12),
    text("general.alignment") + struct.pack("<II", 4, 64),
]


def test_values_are_passed_over_and_alignment_is_obeyed(tmp_path):
    tensors = written(tiny.make(), NAMED["q4_0"])
    for version in (2, 3):
        load(tmp_path / "x.gguf", file_of(tensors, VALUES, version, alignment=64))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda t: file_of(t)[:-100], "is truncated: .* ends at byte"),
        (lambda t: file_of(t)[:1000], "is truncated: at byte .* it should have"),
        (lambda t: file_of(t, version=1), "has version 1; versions that are read: 2, 3"),
        (lambda t: b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), "has a table of 11529"),
        (
            lambda t: file_of(t, [text("a") + struct.pack("<I", 77)]),
            "a value of the unknown kind 77",
        ),
        (
            lambda t: file_of(t, [text("a") + struct.pack("<II", 9, 9) + bytes(8)]),
            "of the unknown kind 9",
        ),
        (
            lambda t: file_of(t, [text("general.alignment") + struct.pack("<II", 4, 3)]),
            "aligns its data to 3 bytes, which is no power of two",
        ),
        (
            lambda t: file_of({**t, f"{LAYER}.weight": (12, (64, 256), bytes(64 * 144))}),
            f"{LAYER}.weight in the type 12, which is not read; types that are: q4_0 .2., ",
        ),
        (lambda t: file_of({**t, "new": (0, (3, 0), b"")}), r"has new \[3, 0\], which is empty"),
        (
            lambda t: file_of({**t, f"{LAYER}.weight": (8, (64, 48), bytes(64 * 51))}),
            r"\[64, 48\] in groups of 32, which do not divide it",
        ),
        (
            lambda t: file_of({**t, "new.weight": (0, (1,), bytes(4))}),
            "holds new.weight, which DiT",
        ),
        (
            lambda t: file_of({n: one for n, one in t.items() if LAYER not in n}),
            f"lacks {LAYER}.bias, ",
        ),
        (
            lambda t: file_of({**t, f"{LAYER}.weight": (8, (64, 32), bytes(64 * 34))}),
            r"to_q is \[64, 32\], the model has \[64, 64\]",
        ),
        (
            lambda t: file_of({**t, f"{LAYER}.weight": (8, (64, 64), b"\0\x7c" * 64 * 34)}),
            "holds a scale that is not positive and finite",
        ),
        (
            lambda t: file_of(t).replace(b"to_q.weight", b"to_k.weight"),
            "twice, or its bytes in another",
        ),
    ],
)
def test_what_is_refused(tmp_path, change, complaint):
    content = change(written(tiny.make(), NAMED["q8_0"]))
    with pytest.raises(BrokenFile, match=complaint) as error:
        load(tmp_path / "x.gguf", content)
    assert len(str(error.value)) < 800


def test_blocks_are_those_of_the_list():
    assert {block.name: block.nbytes for block in BLOCKS} == {
        "q4_0": 18, "q4_1": 20, "q5_0": 22, "q5_1": 24, "q8_0": 34, "mxfp4": 17,
    }  # fmt: skip
