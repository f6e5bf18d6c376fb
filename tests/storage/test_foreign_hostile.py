"""Mutated files of other runtimes: a model, or an error with a name, and nothing else."""

import random
import struct

import pytest
import torch
from test_hostile_files import SMALL, mutate

import fewbit
from fewbit.errors import FewbitError
from fewbit.formats import QTensor
from fewbit.layers.linear import QLinear, quantized_layers
from fewbit.methods.portable import VARIANTS
from fewbit.models.families.original_dit import OriginalDiT
from fewbit.storage.foreign.contents import Input
from fewbit.storage.foreign.loading import dialect_of
from fewbit.storage.foreign.writing import TARGETS

MUTATIONS = 2000
WIDE = {**SMALL.__dict__, "width": 64, "mlp_width": 64}


def small():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return OriginalDiT(type(SMALL)(**WIDE)).eval()


@pytest.fixture(params=TARGETS)
def file(request, tmp_path):
    """The smallest model there is in a format: its numbers do not matter."""
    model, rule = small(), VARIANTS[request.param]
    fewbit.quantize(model, "rtn", bits="w8a8", progress=False)
    for name, layer in quantized_layers(model).items():
        activation = layer.activation and rule.activation
        stage = Input(64 if activation else None, activation).stage(layer.in_features)
        spec = rule.weight if layer.activation else rule.wide
        packed = QTensor.quantize(layer.effective_weight(), spec)
        model.set_submodule(name, QLinear(packed, layer.bias, stage))
    path = tmp_path / f"x{TARGETS[request.param].suffix}"
    fewbit.export(model, path, request.param)
    return path


def where(raw, path, rng):
    """Mostly in the part that says what the rest is."""
    if rng.random() < 0.1:
        return len(raw)
    return 8 + struct.unpack("<Q", raw[:8])[0] if path.suffix == ".safetensors" else 2000


def test_mutated_files_load_or_say_why_not(file):
    whole, rng, read = file.read_bytes(), random.Random(0), 0
    said = []
    for _ in range(MUTATIONS):
        end = where(whole, file, rng)
        file.write_bytes(mutate(whole[:end], rng) + whole[end:])
        try:
            dialect_of(file).read(file)
            read += 1
            if read % 10 == 1:  # what can be read is put into a model, which takes much longer
                fewbit.load(file, like=small())
        except FewbitError as error:
            said.append(str(error))
    assert max(map(len, said)) < 800
    assert 0 < read < MUTATIONS / 2
    file.write_bytes(whole)
    fewbit.load(file, like=small())
