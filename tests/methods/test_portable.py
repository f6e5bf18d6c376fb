"""portable: what its formats do to layers, and what calibrated rounding gains inside of them."""

import pytest
import tiny_transformers as tiny
import torch
from test_hq_dit import Pair
from torch import nn

import fewbit
from fewbit import ModelSpec
from fewbit.engine.decibel import sqnr
from fewbit.layers.linear import quantized_layers
from fewbit.methods.portable import VARIANTS
from fewbit.transforms.regular_hadamard import RegularHadamard

pytest.importorskip("diffusers")
pytestmark = pytest.mark.usefixtures("one_thread")


class Tower(nn.Module):
    """Blocks of two linears, without anything else."""

    def __init__(self, width, hidden):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.blocks = nn.ModuleList(Pair(width, hidden) for _ in range(2))

    def forward(self, hidden_states):
        for block in self.blocks:
            hidden_states = block(hidden_states)
        return hidden_states


TOWER = ModelSpec("blocks", {"up": "fc1", "down": "fc2"})


def tower(bits, width=64, hidden=256, data=None, **settings):
    model = Tower(width, hidden)
    if data is None:
        data = torch.randn(6, 4, width, generator=torch.Generator().manual_seed(0))
    rows = [{"hidden_states": row[None]} for row in data]
    fewbit.quantize(
        model, "portable", bits=bits, spec=TOWER, calibration=rows, progress=False, **settings
    )
    return model


@pytest.mark.parametrize("bits", VARIANTS)
def test_a_layer_is_what_its_format_says(bits):
    model = tower(bits)
    variant = VARIANTS[bits]
    for path, layer in quantized_layers(model).items():
        assert layer.spec == variant.weight, path
        if variant.activation is None:
            assert layer.stage is None
            continue
        assert layer.activation == variant.activation
        assert isinstance(layer.stage.transform, RegularHadamard)
        assert layer.stage.transform.block == {64: 64, 256: 256}[layer.in_features]


@pytest.mark.parametrize(
    ("bits", "kept"),
    [
        ("comfy-w4a8", []),
        ("comfy-convrot-w4a4", ["blocks.0.up", "blocks.1.up"]),
        ("gguf-q4_0", ["blocks.0.up", "blocks.1.up"]),
        ("comfy-int8", []),
    ],
)
def test_a_width_that_a_format_cannot_hold_stays_in_high_precision(bits, kept):
    model = tower(bits, width=48)
    left = [name for name, one in model.named_modules() if type(one) is nn.Linear]
    assert left == kept


@pytest.mark.parametrize("bits", ["comfy-w4a8", "gguf-q4_1"])
def test_the_same_call_gives_the_same_bits(bits):
    one, other = (tower(bits).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("bits", "adaln"), [("gguf-q4_0", "int8/g32/gguf"), ("comfy-w4a8", "int8/row/fp32")]
)
def test_a_modulation_has_eight_bits_of_the_same_family(bits, adaln):
    model = tiny.make()
    data = [{"hidden_states": torch.zeros(1, 4, 8, 8), "timestep": torch.tensor([1]),
             "class_labels": torch.tensor([1])}]  # fmt: skip
    fewbit.quantize(model, "portable", bits=bits, calibration=data, progress=False)
    layer = model.get_submodule("transformer_blocks.0.norm1.linear")
    assert str(layer.spec) == adaln
    assert layer.stage is None


@pytest.mark.parametrize("bits", VARIANTS)
def test_calibrated_rounding_is_nearer_in_the_same_format(bits):
    """On inputs that it never saw, whose channels go together and are not alike loud. Measured were
    5 to 7 dB; 2 and 3 dB where what is left is the rounding of the inputs."""
    data, unseen = correlated().split([24, 8])
    exact = change(Tower(64, 256), unseen)
    fidelity = [
        sqnr(exact, change(tower(bits, data=data, gptq=gptq), unseen)) for gptq in (True, False)
    ]
    few = 1.5 if bits in ("comfy-int8", "comfy-convrot-w4a4") else 4
    assert fidelity[0] > fidelity[1] + few


def correlated():
    random = torch.Generator().manual_seed(0)
    mixing = torch.randn(64, 64, generator=random) @ torch.logspace(0, -2, 64).diag()
    return torch.randn(32, 16, 64, generator=random) @ mixing


def change(model, x):
    with torch.no_grad():
        return model(x) - x
