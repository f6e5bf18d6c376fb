"""best on small models: exact laws, what is shared and shown, what each part brings."""

import pytest
import torch
from small_dit import bits_of, rows, run
from torch import nn

import fewbit
from fewbit import ModelSpec
from fewbit.engine.decibel import sqnr
from fewbit.engine.recipe import Recipe
from fewbit.errors import BadArgument, BadCalibration
from fewbit.formats import MXFP4
from fewbit.methods.best import METHOD, VARIANTS, _counts
from fewbit.models import Layer, Role

pytest.importorskip("diffusers")
pytestmark = pytest.mark.usefixtures("one_thread")
TOWER = ModelSpec("blocks", {"up": "fc1", "down": "fc2"})


def quantize(model, **settings):
    return fewbit.quantize(model, "best", **{"calibration": rows(), "progress": False, **settings})


class Tower(nn.Module):
    """Blocks of two linears, whose hidden channels have a mean that is not zero."""

    def __init__(self, width=32, hidden=64, bias=True):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.blocks = nn.ModuleList(Pair(width, hidden, bias) for _ in range(2))

    def forward(self, hidden_states, timestep=None):
        for block in self.blocks:
            hidden_states = block(hidden_states)
        return hidden_states


class Pair(nn.Module):
    def __init__(self, width, hidden, bias):
        super().__init__()
        self.up, self.down = nn.Linear(width, hidden, bias), nn.Linear(hidden, width, bias)

    def forward(self, x):
        return x + self.down(nn.functional.gelu(self.up(x)))


def tokens(count=16, seed=1):
    random = torch.Generator().manual_seed(seed)
    mix = torch.randn(32, 32, generator=torch.Generator().manual_seed(0)) / 4
    return [{"hidden_states": torch.randn(1, 16, 32, generator=random) @ mix} for _ in range(count)]


def through(model, items):
    with torch.no_grad():
        return torch.cat([model(**item) for item in items])


def tower(bias=True, **settings):
    model = Tower(bias=bias)
    quantize(model, spec=TOWER, calibration=tokens(), **settings)
    return model


# Exact laws


@pytest.mark.parametrize("family", ["DiTTransformer2DModel", "PixArtTransformer2DModel"])
@pytest.mark.parametrize("transform", ["auto", "none"])
def test_at_eight_bits_nothing_but_rounding_is_lost(small, family, transform):
    """A wrong transform, fold or bias anywhere would not lose little, it would lose all."""
    exact = run(small())
    model = small()
    quantize(model, bits="w8a8", transform=transform)
    assert sqnr(exact, run(model)) > 38


def test_with_a_bias_the_mean_of_a_block_is_what_it_was():
    """The block that is solved first; of later ones the inputs differ."""
    exact, model = Tower(), tower(bits="w2a8")
    before, after = (through(one.blocks[0], _inputs()) for one in (exact, model))
    means = [one.flatten(0, -2).mean(0) for one in (before, after)]
    error = (before - after).std()
    assert (means[0] - means[1]).abs().max() < 1e-3 * error  # float32 sums
    plain = through(tower(bits="w2a8", bias=False).blocks[0], _inputs())
    assert (means[0] - plain.flatten(0, -2).mean(0)).abs().max() > 1e-2 * error


def _inputs():
    return [{"x": item["hidden_states"]} for item in tokens()]


@pytest.mark.parametrize("bits", VARIANTS)
def test_every_variant_is_saved_and_loaded_with_the_same_bits(small, bits, tmp_path):
    model = small()
    quantize(model, bits=bits)
    assert run(model).isfinite().all()
    fewbit.save(model, tmp_path / "saved")
    loaded = fewbit.load(tmp_path / "saved")
    assert torch.equal(run(loaded), run(model))


def test_the_same_seed_gives_the_same_bits(small):
    one, other = small(), small()
    for model in (one, other):
        quantize(model)
    assert bits_of(one) == bits_of(other)


# What is shared, stored and shown


def test_q_k_and_v_share_one_stage_and_what_is_folded_is_shown(small):
    model = small()
    quantize(model, bits="w4a4")
    block = model.transformer_blocks[0]
    stages = [layer.stage for layer in (block.attn1.to_q, block.attn1.to_k, block.attn1.to_v)]
    assert stages[0] is stages[1] is stages[2]
    assert block.attn1.to_out[0].stage.transform is None
    assert block.norm1.linear.stage is None


def test_groups_are_rounded_around_the_mean_of_their_image(small):
    for bits, centre, shown in [
        ("nvfp4", True, "centred e2m1/g16/e4m3row"),
        ("mxfp4", False, "e2m1/g32/e8m0"),
        ("w4a8", True, "int8/row/fp32"),
        ("w4a4", True, "centred book4/g32/factor"),
    ]:
        model = small()
        quantize(model, bits=bits, centre=centre, transform="none", directions=0)
        assert str(model.transformer_blocks[0].attn1.to_q.stage) == shown


def test_inputs_of_4_bits_keep_16_directions_apart_and_inputs_of_8_none(small):
    for bits, directions, count in [("w4a4", "auto", 16), ("w4a8", "auto", 0), ("w4a4", 3, 3)]:
        model = small()
        quantize(model, bits=bits, directions=directions)
        block = model.transformer_blocks[0]
        for layer in (block.attn1.to_q, block.attn1.to_out[0], block.ff.net[2]):
            apart = layer.stage.principal
            assert (0 if apart is None else apart.rank) == count
            assert (layer.side is None) == (count == 0)


def test_presets_name_bits_and_are_joined():
    assert str(Recipe.make("best", None, {})) == "best:w4a8"
    for preset, bits in [("balanced", "w4a8"), ("small", "w3a8"), ("tiny", "w2a8"),
                         ("four", "w4a4"), ("fp4", "nvfp4"), ("exact", "w8a8")]:  # fmt: skip
        assert Recipe.make("best", None, {"preset": preset}).bits == bits
    both = Recipe.make("best", None, {"preset": "small+fast"})
    assert (both.bits, both.settings.samples) == ("w3a8", 64)
    assert Recipe.make("best", "w4a8", {"preset": "small"}).bits == "w4a8"
    with pytest.raises(BadArgument, match="best has no preset 'quick'; allowed: balanced, small"):
        Recipe.make("best", None, {"preset": "small+quick"})


def test_it_needs_data_and_says_which_layer_it_cannot_solve():
    with pytest.raises(BadCalibration, match="best needs to see data"):
        fewbit.quantize(Tower(), "best", spec=TOWER, progress=False)


# What each part brings, on data that calibration never saw


def db(**settings):
    held_out = tokens(64, seed=2)
    return sqnr(through(Tower(), held_out), through(tower(**settings), held_out))


def test_compensation_pays():
    """1.3 dB here."""
    assert db(bits="w3a8") > db(bits="w3a8", compensate=False) + 0.3


def test_a_layer_without_a_bias_is_solved_around_zero():
    model = tower(bias=False, bits="w3a8")
    assert model.blocks[0].up.bias is None
    held_out = tokens(64, seed=2)
    assert sqnr(through(Tower(bias=False), held_out), through(model, held_out)) > 15


@pytest.mark.parametrize(("width", "span"), [(64, 32), (72, 24), (48, 24), (80, 16), (36, "row")])
def test_a_width_that_groups_of_32_do_not_divide_gets_others(width, span):
    layer = Layer("a", Role.FC1, "quantize", 0, (8, width), 0, 0)
    rule = METHOD.rule(layer, VARIANTS["w4a4"], METHOD.settings())
    assert (rule.weight.span, rule.activation.span) == (span, span)
    standard = METHOD.rule(layer, VARIANTS["mxfp4"], METHOD.settings())
    assert (standard.weight, standard.activation) == (MXFP4, MXFP4)


def test_a_width_without_a_rotation_is_smoothed_or_left():
    model, items = Tower(hidden=85), tokens(4)
    exact = through(model, items)
    fewbit.quantize(model, "best", spec=TOWER, calibration=items, progress=False)
    assert sqnr(exact, through(model, items)) > 25


def test_rows_of_a_layer_that_nothing_feels_count_alike():
    when = torch.tensor([0, 0, 1])
    assert _counts(torch.zeros(2, 4), when).tolist() == [1, 1, 1]
    assert _counts(torch.tensor([[1.0], [3.0]]), when).tolist() == [0.5, 0.5, 1.5]


def test_under_a_budget_an_error_of_the_modulation_counts_for_more(small, monkeypatch):
    class Enough(Exception):
        pass

    def losses(steady):
        seen = {}

        def look(plan, surveyed, budget):
            seen.update(surveyed)
            raise Enough

        monkeypatch.setattr("fewbit.methods.best.STEADY", steady)
        monkeypatch.setattr("fewbit.engine.run.allocate", look)
        with pytest.raises(Enough):
            quantize(small(), bits_per_weight=4.5)
        return {name: lost for name, lost in seen.items() if name.endswith(".losses")}

    once, more = losses(1), losses(4)
    for name, lost in once.items():
        factor = 4 if "norm1.linear" in name else 1
        assert torch.allclose(more[name], factor * lost)
    assert any("norm1.linear" in name for name in once)
