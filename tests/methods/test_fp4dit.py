"""FP4DiT on small models of every family: formats by role, what is stored, what is refused."""

import pytest
import small_models
import torch
from killed import blocks_solved, kill_each
from small_dit import bits_of, rows, run

import fewbit
from fewbit.calibration import RowSet
from fewbit.engine.decibel import sqnr
from fewbit.errors import BadArgument, BadCalibration
from fewbit.formats import FORMATS
from fewbit.layers.attention import quantized_attentions
from fewbit.layers.linear import quantized_layers
from fewbit.layers.packed_matrix import STORED
from fewbit.methods import fp4dit

pytest.importorskip("diffusers")
pytestmark = pytest.mark.usefixtures("one_thread")
QUICK = {"steps": 6, "batch": 4}


def quantize(model, **arguments):
    given = {"calibration": rows(), "progress": False, **QUICK, **arguments}
    return fewbit.quantize(model, "fp4dit", **given)


def test_formats_go_by_role(small):
    model = small()
    report = quantize(model, steps=0, formats="role")
    found = {(layer.role, layer.weight) for layer in report.layers}
    assert ("fc1", "e3m0/g64/bf16") in found
    assert {weight for role, weight in found if role != "fc1"} == {
        "e2m1/g64/bf16",
        "e2m1/g128/bf16",  # of the second linear, which reads 256
    }


@pytest.mark.parametrize(
    ("preset", "first", "others", "inputs"),
    [("sigma", "e3m0", "e1m2", "e2m3"), ("integer", "int4", "int4", "int6")],
)
def test_presets_are_the_other_forms(small, preset, first, others, inputs):
    report = quantize(small(), steps=0, preset=preset)
    layers = [layer for layer in report.layers if layer.role != "adaln"]
    assert all(
        layer.weight.startswith(first if layer.role == "fc1" else others) for layer in layers
    )
    assert {layer.activation for layer in layers} == {f"{inputs}/row/fp32"}


@pytest.mark.parametrize(("bits", "name"), [("w4a6", "e2m3"), ("w4a8", "e3m4")])
def test_every_token_of_inputs_and_of_matmuls_has_its_own_range(small, bits, name):
    model = small()
    quantize(model, bits=bits)
    for layer_name, layer in quantized_layers(model).items():
        stage = layer.stage
        assert (stage is None) == ("norm1" in layer_name)
        assert stage is None or str(stage) == f"{name}/row/fp32"
    attentions = quantized_attentions(model)
    assert len(attentions) == 2
    for one in attentions.values():
        assert {one.query.spec, one.key.spec, one.value.spec} == {
            fewbit.formats.Spec(FORMATS[name])
        }
        assert one.shares is None


def test_auto_takes_the_format_that_loses_least(small):
    """Each of the three alone loses as much as auto, or more, in every layer's output."""

    def make():
        model = small()
        tail = model.transformer_blocks[0].ff.net[2].weight.data
        random = torch.Generator().manual_seed(0)
        tail.normal_(generator=random).pow_(3).mul_(0.01)
        return model

    ways = [{"formats": "role", "first": one, "others": one} for one in ("e2m1", "e1m2", "e3m0")]
    auto, *alone = (quantize(make(), bits="w4a16", steps=0, **how) for how in ({}, *ways))
    assert len({layer.weight.partition("/")[0] for layer in auto.layers}) > 1
    for layers in zip(auto.layers, *(report.layers for report in alone), strict=True):
        mine, *others = layers
        assert mine.output_db > max(other.output_db for other in others) - 0.2


@pytest.mark.parametrize("settings", [{}, {"scale_aware": False}, {"preset": "integer"}], ids=str)
def test_learned_rounding_is_better_than_plain(small, settings):
    exact, learned, plain = run(small()), small(), small()
    quantize(learned, bits="w4a16", steps=60, **settings)
    quantize(plain, bits="w4a16", steps=0, **settings)
    assert sqnr(exact, run(learned)) > sqnr(exact, run(plain)) + 0.5


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"bits": "w4a8", "softmax": "fp8"},
        {"ranges": "tensor"},
        {"attention": "skip"},
        {"inputs": "e3m2", "adaln": "int8"},
        {"bits": "w4a8", "inputs": "e4m3", "adaln": "keep"},
        {"precision": "fp32", "propagate": False, "bias_rate": 0},
    ],
    ids=str,
)
def test_saved_and_loaded_gives_the_same(small, tmp_path, settings):
    model = small()
    quantize(model, **settings)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert torch.equal(run(again), run(model))
    assert fewbit.inspect(tmp_path).layers == fewbit.inspect(model).layers


KILLS = {("written", 1): 1, ("advanced", 1): 2, ("advanced", 3): 1}  # and blocks left to solve


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    prepare = "import test_fp4dit as here, conftest; conftest.make_small()"
    function = "lambda place: here.quantize(conftest.make_small(), workdir=place)"
    return kill_each(prepare, function, KILLS, tmp_path_factory.mktemp("killed"))


@pytest.fixture(scope="module")
def whole(small):
    model = small()
    report = quantize(model)
    return bits_of(model), report.layers


@pytest.mark.parametrize("kill", KILLS, ids=str)
def test_killed_and_resumed_is_the_same_to_the_bit(small, killed, whole, monkeypatch, kill):
    solved = blocks_solved(monkeypatch)
    resumed = small()
    report = quantize(resumed, workdir=killed[kill])
    assert len(solved) == KILLS[kill]
    assert (bits_of(resumed), report.layers) == whole


def test_the_attention_is_rounded_as_asked(small):
    with_shares, skipped = small(), small()
    quantize(with_shares, bits="w4a8", softmax="fp8", steps=0)
    for one in quantized_attentions(with_shares).values():
        assert (one.shares.format.exponent, one.shares.format.mantissa) == (4, 4)
    quantize(skipped, attention="skip", steps=0)
    assert quantized_attentions(skipped) == {}


def test_known_ranges_come_from_both_halves_of_the_guidance(small, monkeypatch):
    looked, look = [], fp4dit.sample_operands

    def noted(step, layers, attentions, chosen, seed):
        looked.append(chosen)
        return look(step, layers, attentions, chosen, seed)

    monkeypatch.setattr(fp4dit, "sample_operands", noted)
    quantize(small(), ranges="tensor", steps=0, calibration=rows(2 * fp4dit.ATTENDING_ROWS))
    assert all({row % 2 for row in chosen} == {0, 1} for chosen in looked)


def test_rounding_that_learned_nothing_good_is_not_kept(small):
    worse, plain = small(), small()
    report = quantize(worse, rate=50.0, steps=2, penalty=0)
    assert "plain rounding" in report.warnings[0]
    quantize(plain, steps=0)
    assert bits_of(worse) == bits_of(plain)


def test_a_half_precision_model_keeps_its_dtype(small):
    model = small().bfloat16()
    given = [{**row, "hidden_states": row["hidden_states"].bfloat16()} for row in rows()]
    quantize(model, calibration=given)
    kept = {n: p for n, p in model.named_parameters() if n.rpartition(".")[2] not in STORED}
    assert {p.dtype for p in kept.values()} == {torch.bfloat16}


def test_modulation_may_be_kept_or_int8(small):
    kept, eight = small(), small()
    quantize(kept, adaln="keep", steps=1)
    assert not any("norm1" in name for name in quantized_layers(kept))
    report = quantize(eight, adaln="int8", steps=1)
    assert {layer.weight for layer in report.layers if layer.role == "adaln"} == {"int8/row/fp32"}


def test_an_image_does_not_depend_on_its_batch(small, monkeypatch):
    monkeypatch.setenv("FEWBIT_BACKEND", "reference")
    model = small()
    quantize(model)
    given, others = (dict(RowSet.from_items(rows(4, seed=seed)).take(range(4))) for seed in (9, 10))
    # as many mates as before, so that every sum keeps its order and the bits can be equal
    mixed = {name: value.clone() for name, value in others.items()}
    for name, value in given.items():
        mixed[name][2] = value[2]
    with torch.no_grad():
        among, elsewhere = (model(**rows)[0][2] for rows in (given, mixed))
    assert torch.equal(among, elsewhere)


@pytest.mark.parametrize("family", small_models.FAMILIES)
def test_every_family_learns(family):
    model = small_models.make(family)
    data = RowSet.from_items([small_models.arguments(family, 6)])
    fewbit.quantize(model, "fp4dit", calibration=data, progress=False, **{**QUICK, "steps": 40})
    plain = small_models.make(family)
    fewbit.quantize(plain, "fp4dit", calibration=data, progress=False, steps=0)
    given = small_models.arguments(family, 6)
    with torch.no_grad():
        exact, learned, nearest = (
            torch.as_tensor(one(**given)[0]) for one in (small_models.make(family), model, plain)
        )
    assert sqnr(exact, learned) > sqnr(exact, nearest)


@pytest.mark.parametrize("ranges", ["token", "tensor"])
def test_what_stands_in_padding_changes_nothing(ranges):
    family = "PixArtTransformer2DModel"
    states, reports = [], []
    for filling in (0.0, 50.0):
        given = small_models.arguments(family, 6)
        padding = given["encoder_attention_mask"] == 0
        given["encoder_hidden_states"][padding] = filling
        model = small_models.make(family)
        data = RowSet.from_items([given])
        given = {"calibration": data, "progress": False, "ranges": ranges, **QUICK}
        reports.append(fewbit.quantize(model, "fp4dit", **given))
        states.append(model.state_dict())
    assert reports[0].layers == reports[1].layers
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"bits": "w5"}, BadArgument, "no bits 'w5'; allowed: w4a6, w4a8, w4a16"),
        ({"first": "e9m9"}, BadArgument, "first cannot be 'e9m9'; allowed: e2m1, e1m2, e3m0, int4"),
        ({"formats": "best"}, BadArgument, "formats cannot be 'best'; allowed: auto, role"),
        ({"first": "e2m1"}, BadArgument, 'first and others are only read with formats="role"'),
        ({"inputs": "e3m4"}, BadArgument, "inputs of 6 bits cannot be e3m4; allowed: e2m3, e3m2"),
        ({"ranges": "row"}, BadArgument, "ranges cannot be 'row'; allowed: token, tensor"),
        ({"softmax": "int8"}, BadArgument, "softmax cannot be 'int8'; allowed: keep, fp8"),
        ({"steps": -1}, BadArgument, "steps cannot be -1; allowed: a whole number of 0 or more"),
        ({"group": 0}, BadArgument, "group cannot be 0; allowed: a whole number of 1 or more"),
        ({"rate": 0}, BadArgument, "rate cannot be 0; allowed: a number above 0"),
        ({"bits": "w4a16", "ranges": "tensor"}, BadArgument, "inputs stay as they come"),
        ({"attention": "skip", "softmax": "fp8"}, BadArgument, "softmax cannot be 'fp8'"),
        (
            {"warmup": 2},
            BadArgument,
            "warmup cannot be 2; allowed: a number of 0 or more",
        ),
        ({"calibration": []}, BadCalibration, "calibration is empty"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(small, arguments, error, message):
    with pytest.raises(error, match=message):
        quantize(small(), **arguments)
