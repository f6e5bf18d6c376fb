"""quantize(): in place, the same twice, honest about bytes, and all or nothing where it refuses."""

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import fewbit
from fewbit import ModelSpec
from fewbit.engine.plan import make_plan
from fewbit.engine.recipe import Recipe
from fewbit.engine.stored_size import size_of
from fewbit.errors import BadArgument, BadCalibration, BadModel
from fewbit.layers.linear import QLinear

FAMILIES = ("DiTTransformer2DModel", "PixArtTransformer2DModel", "HunyuanDiT2DModel")
SPEC = ModelSpec("blocks", {"up": "fc1"})


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.ModuleDict({"up": nn.Linear(32, 32)}) for _ in range(2))

    def forward(self, x):
        for block in self.blocks:
            x = block["up"](x)
        return x


def quantize(model, recipe="rtn", **arguments):
    return fewbit.quantize(model, recipe, progress=False, **arguments)


def tower(seed: int = 0) -> Tower:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Tower()


def bits_of(model: nn.Module) -> dict[str, bytes]:
    state = model.state_dict().items()
    return {name: t.contiguous().view(-1).view(torch.uint8).numpy().tobytes() for name, t in state}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_twice_and_in_place(small, family):
    models = [small(family), small(family)]
    reports = [quantize(model, seed=7) for model in models]
    assert bits_of(models[0]) == bits_of(models[1])
    assert reports[0].layers == reports[1].layers
    assert reports[0].source == reports[1].source
    quantized = [m for m in models[0].modules() if isinstance(m, QLinear)]
    assert len(quantized) == len(reports[0].layers)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("bits", ["w4a4", "mxfp4", "w2"])
def test_the_totals_are_the_arithmetic(small, family, bits):
    model = small(family)
    plan = make_plan(model, Recipe.make("rtn", bits, {}), None, allow_unknown=False)
    before = size_of(model).bytes
    report = quantize(model, bits=bits)
    assert report.bytes_before == before == plan.stored.bytes
    assert report.size == size_of(model)
    apart = size_of(model, aliases=())  # scales of few codes may be equal, which no plan knows
    assert apart.packed == plan.size_after.packed == sum(layer.bytes for layer in report.layers)
    assert plan.size_after.bytes >= report.bytes


def test_a_layer_is_reported_by_hand():
    model = tower()
    original = model.blocks[0]["up"].weight.detach().clone()
    one = quantize(model, bits="w8a8", spec=SPEC).layers[0]
    error = model.blocks[0]["up"].packed_weight.dequantize() - original
    db = 10 * torch.log10(original.square().sum() / error.square().sum()).item()
    assert (one.name, one.role, one.weight) == ("blocks.0.up", "fc1", "int8/row/fp32")
    assert (one.bytes_before, one.bytes) == (4 * 33 * 32, 32 * 32 + 4 * 32 + 4 * 32)
    assert one.bits_per_weight == 8 + 32 / 32
    assert one.weight_db == pytest.approx(db, abs=1e-3)  # float32 sums of 1024 squares


def test_a_pipeline_a_transformer_and_any_module(small):
    bare, inside, strange = small(), small(), tower()
    quantize(bare)
    quantize(SimpleNamespace(transformer=inside))
    assert bits_of(bare) == bits_of(inside)
    assert quantize(strange, spec=SPEC).family == "Tower"
    assert strange(torch.randn(2, 32)).isfinite().all()
    assert strange.fewbit.recipe["method"] == "rtn"


@pytest.mark.parametrize("thing", [None, 3, "model", SimpleNamespace(unet=nn.Linear(2, 2))])
def test_what_is_no_model_is_refused(thing):
    with pytest.raises(BadModel, match="is not a model fewbit can read"):
        quantize(thing)


def test_a_recipe_file(tmp_path):
    path = tmp_path / "recipe.json"
    by_name, by_file = tower(), tower()
    report = quantize(by_name, bits="w8a8", spec=SPEC, group_size=8)
    path.write_text(json.dumps(report.recipe))
    quantize(by_file, path, spec=SPEC)
    assert bits_of(by_name) == bits_of(by_file)


def corrupt(model):
    model.blocks[1]["up"].weight.data[3, 3] = torch.nan


@pytest.mark.parametrize(
    ("spoil", "arguments", "error", "message"),
    [
        (None, {"calibration": 8}, BadCalibration, "rtn looks at no data; leave calibration out"),
        (None, {"calibration": []}, BadCalibration, "leave calibration out"),
        (None, {"bits": "w5"}, BadArgument, "no bits 'w5'; allowed: w4a4"),
        (None, {"group_size": 24}, BadArgument, r"blocks\.0\.up: a group of 24 does not divide 32"),
        (None, {"sed": 1}, BadArgument, "no setting 'sed'"),
        (None, {"device": "abacus"}, BadArgument, "cannot use device 'abacus': "),
        (None, {"device": "meta"}, BadArgument, "cannot use device 'meta': it holds no data"),
        (None, {"device": 2.5}, BadArgument, "cannot use device '2.5'"),
        (corrupt, {}, BadModel, r"the weight of blocks\.1\.up holds NaN"),
    ],
)
def test_a_refusal_touches_nothing(spoil, arguments, error, message):
    model = tower()
    if spoil:
        spoil(model)
    before = bits_of(model)
    with pytest.raises(error, match=message):
        quantize(model, spec=SPEC, **arguments)
    assert bits_of(model) == before
    assert not any(isinstance(module, QLinear) for module in model.modules())
    assert not hasattr(model, "fewbit")


def test_a_quantized_model_is_refused():
    model = tower()
    quantize(model, spec=SPEC)
    with pytest.raises(BadModel, match=r"already quantized \(blocks\.0\.up is e2m1/row/fp32\)"):
        quantize(model, spec=SPEC)


def test_the_global_random_state_is_left_alone(small):
    before = torch.get_rng_state()
    quantize(small())
    assert torch.equal(torch.get_rng_state(), before)


def test_a_lossless_layer_is_infinitely_good():
    model = tower()
    model.blocks[0]["up"].weight.data = torch.eye(32)
    report = quantize(model, spec=SPEC)
    assert report.layers[0].weight_db == float("inf")


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu")])
def test_a_named_device_gives_the_same(device):
    one, other = tower(), tower()
    quantize(one, spec=SPEC)
    quantize(other, spec=SPEC, device=device)
    assert bits_of(one) == bits_of(other)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_visit_to_the_gpu_gives_the_same_and_comes_home():
    one, other = tower(), tower()
    quantize(one, spec=SPEC)
    quantize(other, spec=SPEC, device="cuda")
    assert bits_of(one) == bits_of(other)
    assert {t.device.type for t in other.state_dict().values()} == {"cpu"}
