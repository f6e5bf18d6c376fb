"""The blueprint: any quantized model there and back, and no harm from a hostile one."""

import json
import time

import pytest
import torch
from torch import nn

import fewbit
from fewbit.activations.dynamic import Dynamic
from fewbit.errors import BrokenFile
from fewbit.formats import QTensor, Spec
from fewbit.layers.linear import QLinear, quantized_layers
from fewbit.layers.stage import InputStage
from fewbit.storage.blueprint import MOST_LAYERS, apply_blueprint, blueprint_of, expand

FAMILIES = ("DiTTransformer2DModel", "PixArtTransformer2DModel", "HunyuanDiT2DModel")


def sharing(model: nn.Module) -> list[list[str]]:
    users: dict[int, list[str]] = {}
    for name, layer in quantized_layers(model).items():
        if layer.stage is not None:
            users.setdefault(id(layer.stage), []).append(name)
    return sorted(users.values())


def there_and_back(model: nn.Module, fresh: nn.Module) -> nn.Module:
    entries = json.loads(json.dumps(blueprint_of(model)))
    apply_blueprint(fresh, entries)
    fresh.load_state_dict(model.state_dict())
    assert {n: m.config() for n, m in quantized_layers(fresh).items()} == {
        n: m.config() for n, m in quantized_layers(model).items()
    }
    assert sharing(fresh) == sharing(model)
    assert blueprint_of(fresh) == blueprint_of(model)
    return fresh


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("arguments", [{}, {"bits": "nvfp4"}, {"bits": "w2", "asymmetric": True}])
def test_there_and_back(small, family, arguments):
    model = small(family)
    fewbit.quantize(model, "rtn", progress=False, **arguments)
    there_and_back(model, small(family, seed=1))


def test_equal_blocks_fold_into_few_entries(small):
    model = small()
    fewbit.quantize(model, "rtn", progress=False)
    entries = blueprint_of(model)
    assert {entry["blocks"] for entry in entries} == {"transformer_blocks.0-1"}
    assert len(entries) <= 6


class Tower(nn.Module):
    """Blocks of three linears of one width."""

    def __init__(self, blocks: int = 3) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.ModuleDict({name: nn.Linear(16, 16, bias=False) for name in "abc"})
            for _ in range(blocks)
        )

    def put(self, block: int, name: str, spec: str, stage: InputStage | None) -> None:
        packed = QTensor.quantize(self.blocks[block][name].weight, Spec.parse(spec))
        self.blocks[block][name] = QLinear(packed, None, stage)


def rounding() -> InputStage:
    return InputStage(activation=Dynamic(Spec.parse("int8/row/fp32")))


def test_sharers_may_be_described_before_the_layer_they_share_with():
    model = Tower()
    for block, spec in enumerate(("int8/row/fp32", "int4/row/fp32", "int8/row/fp32")):
        stage = rounding()
        model.put(block, "a", spec, stage)
        model.put(block, "b", "int2/row/fp32", stage)
    there_and_back(model, Tower())


def test_a_stage_shared_across_blocks_becomes_one_per_block():
    model, stage = Tower(2), rounding()
    for block in (0, 1):
        for name in ("a", "b"):
            model.put(block, name, "int8/row/fp32", stage)
    fresh = Tower(2)
    apply_blueprint(fresh, blueprint_of(model))
    assert [len(users) for users in sharing(fresh)] == [2, 2]


def test_gaps_and_partly_quantized_blocks():
    model = Tower(5)
    for block in (0, 1, 3):
        model.put(block, "b", "int8/row/fp32", None)
    model.put(4, "c", "e2m1/g16/e4m3", None)
    assert [entry["blocks"] for entry in blueprint_of(model)] == [
        "blocks.0-1",
        "blocks.3",
        "blocks.4",
    ]
    there_and_back(model, Tower(5))


def test_biases_take_the_dtype_of_the_model(small):
    model = small()
    fewbit.quantize(model, "rtn", progress=False)
    fresh = small().bfloat16()
    apply_blueprint(fresh, blueprint_of(model))
    layers = quantized_layers(fresh).values()
    assert {layer.bias.dtype for layer in layers if layer.bias is not None} == {torch.bfloat16}
    assert {layer.scales.dtype for layer in layers} == {torch.float32}


def test_a_model_on_meta_gets_layers_on_meta():
    model = Tower()
    model.put(0, "a", "int8/row/fp32", rounding())
    with torch.device("meta"):
        fresh = Tower()
    apply_blueprint(fresh, blueprint_of(model))
    assert all(t.is_meta for t in fresh.state_dict().values())


GOOD = {
    "blocks": "blocks.0",
    "layers": ["a"],
    "weight": "int8/row/fp32",
    "shape": [16, 16],
    "bias": False,
}
HUGE = 1 << 40


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks": "blocks.0-9999"}, r"blocks\.3\.a, which the model has not"),
        ({"blocks": "x.0-9999"}, r"x\.0\.a, which the model has not"),
        ({"blocks": "blocks.0-99999999"}, "names no blocks and layers"),
        ({"blocks": "blocks.2-0"}, "backwards"),
        ({"blocks": "blocks"}, "names no blocks"),
        ({"blocks": None}, "names no blocks"),
        ({"blocks": ["blocks.0"]}, "names no blocks"),
        ({"blocks": "a." * 50_000 + "0"}, "the blueprint"),
        ({"layers": "a"}, "names no blocks and layers"),
        ({"layers": None}, "names no blocks and layers"),
        ({"layers": [1]}, "names no blocks and layers"),
        ({"layers": ["a", "a"]}, r"'blocks\.0\.a' twice"),
        ({"layers": [""]}, "which the model has not"),
        ({"layers": ["__class__"]}, "which the model has not"),
        ({"layers": ["a.weight"]}, "which the model has not"),
        (
            {"blocks": "x.0-9999", "layers": [str(n) for n in range(1000)]},
            f"more than {MOST_LAYERS}",
        ),
        ({"shape": [16, 32]}, r"the shape \[16, 32\], the model has \[16, 16\]"),
        ({"shape": [-16, 16]}, "the shape"),
        ({"shape": [HUGE, HUGE]}, "the shape"),
        ({"shape": None}, "the shape"),
        ({"shape": [16.0, 16.0]}, "cannot be read"),
        ({"weight": "int9/row/fp32"}, "cannot be read.*not a number format"),
        ({"weight": "int8/g24/fp32"}, "cannot be read.*does not divide 16"),
        ({"weight": f"int8/g{HUGE}/fp32"}, "cannot be read.*does not divide"),
        ({"weight": "int8/g" + "9" * 5000 + "/fp32"}, "cannot be read"),
        ({"weight": None}, "cannot be read"),
        ({"bias": ...}, "lacks 'bias'"),
        ({"input": None}, "cannot be read"),
        ({"input": []}, "cannot be read"),
        ({"input": "int8"}, "cannot be read"),
        ({"input": {"activation": 3}}, "cannot be read"),
        ({"input": {"activation": {"kind": "psychic"}}}, "unknown kind 'psychic' in activations"),
        ({"input": {"activation": {"kind": []}}}, "cannot be read"),
        ({"input": {"activation": {"kind": "dynamic"}}}, "lacks 'spec'"),
        ({"input": {"activation": {"kind": "dynamic", "spec": 1}}}, "cannot be read"),
        ({"input": {"same_as": "b"}}, r"shares the input of blocks\.0\.b, which has none"),
        ({"input": {"same_as": "a"}}, "which has none"),
        ({"input": {"same_as": []}}, "shares the input of no layer"),
    ],
)
def test_a_hostile_entry_is_a_named_error_at_once(change, message):
    entry = {key: value for key, value in {**GOOD, **change}.items() if value is not ...}
    started = time.perf_counter()
    with pytest.raises(BrokenFile, match=message):
        apply_blueprint(Tower(), [entry])
    assert time.perf_counter() - started < 2


@pytest.mark.parametrize("entry", [None, 3, "text", [], {}])
def test_an_entry_that_is_no_table_is_a_named_error(entry):
    with pytest.raises(BrokenFile, match="names no blocks and layers"):
        expand([entry])


def test_the_good_entry_is_good():
    model = Tower()
    apply_blueprint(model, [GOOD])
    assert list(quantized_layers(model)) == ["blocks.0.a"]


def test_what_is_no_linear_is_refused():
    model = Tower()
    model.put(0, "a", "int8/row/fp32", None)
    with pytest.raises(BrokenFile, match=r"blocks\.0\.a, which is no linear layer"):
        apply_blueprint(model, [GOOD])


STEPS = {"kind": "static", "spec": "int8/tensor/fp32", "groups": 2, "parts": 1}
MATMULS = {"query": STEPS, "key": STEPS, "shares": STEPS, "value": STEPS}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attentions": ["attn9"]}, "which the model has not"),
        ({"attentions": ["attn1", "attn1"]}, "twice"),
        ({"attentions": "attn1"}, "names no blocks and layers"),
        ({"layers": ["attn1.to_q"]}, "names no blocks and layers"),
        ({"query": None}, "cannot be read"),
        ({"key": {"kind": "static"}}, "lacks 'groups'"),
        ({"shares": {**STEPS, "groups": 10**12}}, "1 to 1000 time groups"),
        ({"shares": {**STEPS, "parts": 10**12}}, "parts with steps"),
        ({"value": {**STEPS, "kind": "magic"}}, "unknown kind 'magic'"),
    ],
)
def test_a_hostile_entry_of_attentions_is_refused(small, changes, message):
    entry = {"blocks": "transformer_blocks.0-1", "attentions": ["attn1"], **MATMULS, **changes}
    with pytest.raises(BrokenFile, match=message):
        apply_blueprint(small(), [entry])
