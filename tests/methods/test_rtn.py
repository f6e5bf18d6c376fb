"""Plain rounding: what every variant and setting makes of every role."""

import itertools

import pytest
import torch

import fewbit
from fewbit.errors import BadArgument
from fewbit.formats import QTensor
from fewbit.layers.linear import QLinear

VARIANTS = {
    None: ("e2m1/row/fp32", "e2m1/row/fp32"),
    "w4a4": ("e2m1/row/fp32", "e2m1/row/fp32"),
    "w8a8": ("int8/row/fp32", "int8/row/fp32"),
    "w6a6": ("int6/row/fp32", "int6/row/fp32"),
    "w4a8": ("e2m1/row/fp32", "int8/row/fp32"),
    "w4a6": ("e2m1/row/fp32", "int6/row/fp32"),
    "w4a16": ("e2m1/row/fp32", None),
    "w4": ("e2m1/row/fp32", None),
    "w2": ("int2/row/fp32", None),
    "w2a16": ("int2/row/fp32", None),
    "mxfp4": ("e2m1/g32/e8m0", "e2m1/g32/e8m0"),
    "nvfp4": ("e2m1/g16/e4m3", "e2m1/g16/e4m3row"),
}
TO_Q, ADALN = "transformer_blocks.1.attn1.to_q", "transformer_blocks.1.norm1.linear"


def rtn(model, **arguments):
    return fewbit.quantize(model, "rtn", progress=False, **arguments)


@pytest.mark.parametrize("bits", VARIANTS)
def test_every_variant_is_plain_rounding_to_its_formats(small, bits):
    model, original = small(), small()
    report = rtn(model, bits=bits)
    weight, activation = VARIANTS[bits]
    layer = model.get_submodule(TO_Q)
    said = next(one for one in report.layers if one.name == TO_Q)
    assert (said.weight, said.activation) == (weight, activation)
    assert (str(layer.spec), layer.stage and str(layer.stage)) == (weight, activation)
    expected = QTensor.quantize(original.get_submodule(TO_Q).weight.detach(), layer.spec)
    assert torch.equal(layer.codes, expected.packed)
    assert said.weight_db == said.rounding_weight_db


def test_q_k_and_v_round_their_input_once(small):
    model = small()
    rtn(model)
    attention = model.transformer_blocks[0].attn1
    assert attention.to_q.stage is attention.to_k.stage is attention.to_v.stage
    assert attention.to_out[0].stage is not attention.to_q.stage


@pytest.mark.parametrize(
    ("adaln", "expected"),
    [("int8", "int8/row/fp32"), ("same", "e2m1/row/fp32"), ("keep", None)],
)
def test_the_modulation_is_weight_only(small, adaln, expected):
    model = small()
    rtn(model, adaln=adaln)
    layer = model.get_submodule(ADALN)
    assert (str(layer.spec) if isinstance(layer, QLinear) else None) == expected
    assert getattr(layer, "stage", None) is None


@pytest.mark.parametrize(
    ("bits", "settings", "expected"),
    [
        ("w4a4", {"group_size": 16}, "e2m1/g16/fp32"),
        ("w2", {"group_size": 8, "asymmetric": True}, "uint2/g8/fp32"),
        ("w8a8", {"asymmetric": True}, "uint8/row/fp32"),
        ("nvfp4", {"group_size": 32}, "e2m1/g32/e4m3"),
    ],
)
def test_settings_change_the_weight_format(small, bits, settings, expected):
    model = small()
    rtn(model, bits=bits, **settings)
    assert str(model.get_submodule(TO_Q).spec) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"group_size": 0}, "group_size cannot be 0; allowed: a whole number of 1"),
        ({"group_size": True}, "group_size cannot be True; allowed: a whole"),
        ({"group_size": "16"}, "group_size cannot be '16'; allowed: a whole"),
        ({"group_size": 48}, r"transformer_blocks.0.*48 does not divide 64.*8, 16, 32, 64"),
        ({"adaln": "int4"}, "adaln cannot be 'int4'; allowed: same, int8, keep"),
        ({"asymmetric": "yes"}, "asymmetric cannot be 'yes'; allowed: True, False"),
        ({"asymmetric": True}, "need an integer format, not e2m1; .*w8a8, w6a6, w2a16"),
    ],
)
def test_bad_settings_say_what_is_allowed_and_touch_nothing(small, arguments, message):
    model = small()
    with pytest.raises(BadArgument, match=message):
        rtn(model, **arguments)
    assert not any(isinstance(module, QLinear) for module in model.modules())


def test_more_bits_lose_less(small):
    """About 6 dB a bit, of the mean over layers: we ask for 6 dB between neighbours two bits
    apart."""

    def mean_db(**arguments):
        layers = rtn(small(), adaln="same", **arguments).layers
        return sum(layer.weight_db for layer in layers) / len(layers)

    scores = [mean_db(bits=bits) for bits in ("w2", "w4a16", "w6a6", "w8a8")]
    assert all(b > a + 6 for a, b in itertools.pairwise(scores)), scores
