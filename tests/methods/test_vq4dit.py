"""VQ4DiT on small models: what is stored, what is resumed, what is refused."""

import pytest
import torch
from killed import blocks_solved, kill_each
from small_dit import bits_of, rows, run

import fewbit
from fewbit.engine.decibel import sqnr
from fewbit.engine.stored_size import size_of
from fewbit.errors import BadArgument, BadCalibration, BadModel, BrokenFile
from fewbit.formats import Codebook, Spec
from fewbit.layers.linear import quantized_layers
from fewbit.layers.packed_matrix import STORED
from fewbit.rounding.candidates import VectorLinear

pytest.importorskip("diffusers")
pytestmark = pytest.mark.usefixtures("one_thread")
QUICK = {"steps": 12, "batch": 4}


def quantize(model, **arguments):
    given = {"calibration": rows(), "progress": False, **QUICK, **arguments}
    return fewbit.quantize(model, "vq4dit", **given)


@pytest.mark.parametrize(
    ("bits", "entries", "columns", "share"),
    [("w2", 256, 4, 2), ("w3", 64, 2, 3), ("w4", 256, 2, 4), ("w1.5", 64, 4, 1.5)],
)
def test_bits_are_codebooks_and_sizes_are_exact(small, bits, entries, columns, share):
    model = small()
    report = quantize(model, bits=bits, steps=0)
    for layer in report.layers:
        out, width = model.get_submodule(layer.name).packed_weight.shape
        fmt = Codebook(entries, columns).for_size(out, width)
        packed = (out * width // columns) * fmt.bits / 8
        assert layer.weight == f"{fmt}/row/fp16"
        assert layer.bits_per_weight == 8 * (packed + 2 * fmt.entries * columns + 2 * out) / (
            out * width
        )
    assert report.bytes == size_of(model).bytes


def test_activations_are_quantized_too(small):
    model = small()
    quantize(model, bits="w2a8")
    for name, layer in quantized_layers(model).items():
        assert (layer.stage is None) == ("norm1" in name)
    query, key = (model.transformer_blocks[0].attn1.get_submodule(f"to_{x}") for x in "qk")
    assert str(query.stage) == "int8/row/fp32"
    assert query.stage is key.stage


@pytest.mark.parametrize("name", ["PixArtTransformer2DModel", "HunyuanDiT2DModel"])
def test_other_families_plan_and_cluster(small, name):
    model = small(name)
    plan = fewbit.engine.plan.make_plan(
        model, fewbit.engine.recipe.Recipe.make("vq4dit", None, {}), None, False
    )
    assert all(isinstance(rule.weight.format, Codebook) for rule in plan.rules.values())


@pytest.mark.parametrize(
    "settings",
    [
        {"tuning": 5, "weighted": False},
        {"scope": "model"},
        {"propagate": False, "ratios": "uniform", "penalty": 0.1},
    ],
    ids=str,
)
def test_the_same_twice(small, settings):
    models = [small(), small()]
    for model in models:
        quantize(model, seed=3, steps=4, **settings)
    assert bits_of(models[0]) == bits_of(models[1])


@pytest.mark.parametrize("settings", [{"candidates": 1}, {"steps": 40}], ids=str)
def test_training_is_better_than_k_means(small, settings):
    exact, trained, untrained = run(small()), small(), small()
    quantize(trained, **settings)
    quantize(untrained, steps=0, weighted=False, row_scales=False)
    assert sqnr(exact, run(trained)) > sqnr(exact, run(untrained)) + 1


def squares_of_inputs(model):
    """Mean square of each column of each linear's input, over the calibration rows."""
    squares = {}

    def note(name):
        return lambda _, given: squares.setdefault(name, []).append(given[0].flatten(0, -2))

    linears = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    hooks = [m.register_forward_pre_hook(note(name)) for name, m in linears.items()]
    with torch.no_grad():
        for row in rows():
            model(**row)
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(seen).square().mean(0) for name, seen in squares.items()}


@pytest.mark.parametrize("weighted", [True, False])
def test_candidates_of_the_whole_model_are_weighed_by_the_inputs(small, monkeypatch, weighted):
    """Each layer's by those it had in full precision: other candidates than without weights."""
    expected, consider, changed = squares_of_inputs(small()), VectorLinear.consider, []
    weights = {name: layer.weight for name, layer in small().named_modules() if name in expected}

    def noted(layer, weight, moments, count, uniform):
        consider(layer, weight, None, count, uniform)
        plain = layer.candidates
        consider(layer, weight, moments, count, uniform)
        (name,) = (name for name, one in weights.items() if torch.equal(one, weight))
        if weighted:
            torch.testing.assert_close(moments, expected[name])
        changed.append(not torch.equal(layer.candidates, plain))

    monkeypatch.setattr(VectorLinear, "consider", noted)
    model = small()
    quantize(model, scope="model", weighted=weighted, steps=1)
    assert len(changed) == len(quantized_layers(model))
    assert any(changed) is weighted


def test_saved_and_loaded_gives_the_same(small, tmp_path):
    model = small()
    quantize(model)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert torch.equal(run(again), run(model))
    assert fewbit.inspect(tmp_path).layers == fewbit.inspect(model).layers


def test_the_report_compares_with_plain_k_means(small):
    report = quantize(small(), steps=0, weighted=False, row_scales=False)
    assert all(abs(layer.gain_db) < 1e-3 for layer in report.layers)  # of other matmuls
    assert all(layer.weight_db == layer.rounding_weight_db for layer in report.layers)


def test_modulation_may_be_kept_or_int8(small):
    kept = small()
    quantize(kept, adaln="keep", steps=1)
    assert not any("norm1" in name for name in quantized_layers(kept))
    model = small()
    report = quantize(model, adaln="int8")
    assert {layer.weight for layer in report.layers if layer.role == "adaln"} == {"int8/row/fp32"}


def test_a_half_precision_model_keeps_its_dtype(small):
    model = small().bfloat16()
    given = [{**row, "hidden_states": row["hidden_states"].bfloat16()} for row in rows()]
    quantize(model, calibration=given, tuning=2)
    kept = {n: p for n, p in model.named_parameters() if n.rpartition(".")[2] not in STORED}
    assert {p.dtype for p in kept.values()} == {torch.bfloat16}


KILLS = {
    ("written", 1): 1,
    ("advanced", 1): 2,
    ("advanced", 2): 1,
    ("advanced", 3): 1,
    ("tuned", 1): 0,
}  # and blocks left to solve


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    prepare = "import test_vq4dit as here, conftest; conftest.make_small()"
    function = "lambda place: here.quantize(conftest.make_small(), workdir=place, tuning=4)"
    return kill_each(prepare, function, KILLS, tmp_path_factory.mktemp("killed"))


@pytest.fixture(scope="module")
def whole(small):
    model = small()
    report = quantize(model, tuning=4)
    return bits_of(model), report.layers


@pytest.mark.parametrize("kill", KILLS, ids=str)
def test_killed_and_resumed_is_the_same_to_the_bit(small, killed, whole, monkeypatch, kill):
    solved = blocks_solved(monkeypatch)
    resumed = small()
    report = quantize(resumed, workdir=killed[kill], tuning=4)
    assert len(solved) == KILLS[kill]
    assert (bits_of(resumed), report.layers) == whole


def spoilt(model):
    model.transformer_blocks[1].attn1.to_q.weight.data[3, 3] = torch.nan


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"bits": "w5"}, BadArgument, "no bits 'w5'; allowed: w2a16, w3a16, w4a16, w1.5a16, w2a8"),
        ({"candidates": 0}, BadArgument, "candidates cannot be 0; allowed: 1, 2, 3"),
        ({"candidates": 300}, BadArgument, "candidates cannot be 300"),
        ({"ratios": "none"}, BadArgument, "ratios cannot be 'none'; allowed: distance, uniform"),
        ({"scope": "layer"}, BadArgument, "scope cannot be 'layer'; allowed: block, model"),
        ({"samples": 0}, BadArgument, "samples cannot be 0; allowed"),
        ({"steps": -1}, BadArgument, "steps cannot be -1; allowed: a whole number of 0"),
        ({"penalty": -1}, BadArgument, "penalty cannot be -1; allowed: a number of 0 or more"),
        ({"steps": 2.5}, BadArgument, "steps cannot be 2.5; allowed"),
        ({"rate": "fast"}, BadArgument, "rate cannot be .fast.; allowed: a number above 0"),
        ({"freeze_from": 0.8}, BadArgument, "freezing cannot go from 0.8 to 0.7"),
        ({"calibration": []}, BadCalibration, "calibration is empty"),
        ({"rate": 1e30}, BadCalibration, "training diverged"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(small, arguments, error, message):
    with pytest.raises(error, match=message):
        quantize(small(), **arguments)


def test_weights_that_are_no_numbers_are_refused(small):
    model = small()
    spoilt(model)
    with pytest.raises(BadModel, match=r"transformer_blocks\.1\.attn1\.to_q holds NaN"):
        quantize(model)


def test_a_layer_whose_columns_no_vectors_fit_gets_int8():
    from fewbit import ModelSpec

    class Tower(torch.nn.Module):
        def __init__(self):
            super().__init__()
            storeys = (torch.nn.Sequential(torch.nn.Linear(30, 30)) for _ in range(2))
            self.blocks = torch.nn.ModuleList(storeys)

        def forward(self, hidden_states):
            for block in self.blocks:
                hidden_states = block(hidden_states)
            return hidden_states

    model, spec = Tower(), ModelSpec("blocks", {"0": "fc1"})
    report = quantize(model, spec=spec, calibration=[{"hidden_states": torch.ones(1, 2, 30)}])
    assert {layer.weight for layer in report.layers} == {"int8/row/fp32"}


def test_equal_weights_are_no_trouble(small):
    model = small()
    model.transformer_blocks[0].attn1.to_q.weight.data.fill_(0.0)
    model.transformer_blocks[1].attn1.to_q.weight.data.fill_(0.25)
    quantize(model)
    assert run(model).isfinite().all()


def test_dit_xl_2_at_2_bits_has_the_published_size():
    """Published: 2553 MiB become 162, of which 159.47 are assignments; codebooks in float32."""
    shapes = [(3456, 1152), (1152, 1152), (4608, 1152), (1152, 4608), (6912, 1152)]
    spec = Spec(Codebook(256, 4), "tensor")
    packed = 28 * sum(spec.bytes(*shape) for shape in shapes)
    weights = 28 * sum(out * columns for out, columns in shapes)
    assert weights / 4 / 2**20 == pytest.approx(159.47, abs=0.01)
    assert packed / 2**20 == pytest.approx(159.74, abs=0.01)
    assert 4 * weights / packed == pytest.approx(15.97, abs=0.01)


def test_an_entry_that_is_no_number_is_never_written(small, tmp_path):
    model = small()
    quantize(model, steps=0)
    model.transformer_blocks[0].attn1.to_q.codebook[3, 1] = torch.inf
    with pytest.raises(BrokenFile, match=r"to_q\.codebook holds an entry that is not finite"):
        fewbit.save(model, tmp_path / "x")
