"""HQ-DiT on small models: exact laws, what is shared, what is shown, what is refused."""

import copy
import json
import math
from dataclasses import replace

import pytest
import torch
from small_dit import bits_of, rows, run
from torch import nn

import fewbit
from fewbit import ModelSpec
from fewbit.calibration import BlockStream, CallSet
from fewbit.calibration.observe import InputStats
from fewbit.engine.decibel import sqnr
from fewbit.engine.plan import make_plan
from fewbit.engine.recipe import Recipe
from fewbit.errors import BadArgument, BadCalibration
from fewbit.layers.linear import quantized_layers
from fewbit.methods.hq_dit import CANDIDATES, Settings
from fewbit.transforms.chain import Chain
from fewbit.transforms.hadamard import Hadamard, HadamardTransform
from fewbit.transforms.smooth import Smooth

pytest.importorskip("diffusers")
pytestmark = pytest.mark.usefixtures("one_thread")
TOWER = ModelSpec("blocks", {"up": "fc1", "down": "fc2"})


def quantize(model, **settings):
    arguments = {"calibration": rows(), "progress": False, **settings}
    return fewbit.quantize(model, "hq-dit", **arguments)


class Tower(nn.Module):
    """Blocks of two linears, without anything else."""

    def __init__(self, width=24, hidden=40):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.blocks = nn.ModuleList(Pair(width, hidden) for _ in range(2))

    def forward(self, hidden_states, timestep=None):
        for block in self.blocks:
            hidden_states = block(hidden_states)
        return hidden_states


class Pair(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x):
        return x + self.down(nn.functional.gelu(self.up(x)))


def tokens(width, count=8):
    random = torch.Generator().manual_seed(1)
    return [{"hidden_states": torch.randn(1, 16, width, generator=random)} for _ in range(count)]


# Exact laws


@pytest.mark.parametrize("family", ["DiTTransformer2DModel", "PixArtTransformer2DModel"])
def test_folding_a_transform_into_the_values_changes_nothing(small, family):
    model = small(family).double()
    plan = make_plan(model, Recipe.make("hq-dit", None, {}), None, allow_unknown=False)
    job = plan.job(model, 0, seed=0)
    x, text = torch.randn(2, 16, 64).double(), torch.randn(2, 5, 64).double()
    conditions = {
        "DiTTransformer2DModel": {
            "timestep": torch.tensor([3, 500]),
            "class_labels": torch.tensor([1, 2]),
        },
        "PixArtTransformer2DModel": {
            "encoder_hidden_states": text,
            "timestep": torch.randn(2, 6 * 64).double(),
        },
    }[family]
    with torch.no_grad():
        before = job.module(x, **conditions)
        for attention in job.attentions:
            value = job.weight(attention.values[0]).clone()
            scales = torch.randn(64, generator=torch.Generator().manual_seed(2)).exp()
            rotation = HadamardTransform(Hadamard(64, attention.head_width, seed=3))
            job.fold_into_values(attention, Chain([Smooth(scales), rotation]))
            assert not torch.allclose(job.weight(attention.values[0]), value)
        after = job.module(x, **conditions)
    # the fold itself is computed in float32: some 2^-24 of values that smoothing scaled up
    torch.testing.assert_close(after, before, rtol=0, atol=1e-5 * before.abs().max().item())
    assert len(job.attentions) == (1 if family.startswith("DiT") else 2)


def test_moments_after_a_transform_are_those_of_transformed_inputs():
    x = torch.randn(300, 48, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scales = torch.linspace(0.1, 9, 48, dtype=torch.float64)
    transform = Chain([Smooth(scales), HadamardTransform(Hadamard(48, None, seed=1))])
    seen = InputStats.of(x.T @ x / 300, x[:7]).after(transform)
    direct = transform(x).T @ transform(x) / 300
    torch.testing.assert_close(seen.moments, direct, rtol=0, atol=1e-9)
    torch.testing.assert_close(seen.rms, transform(x).square().mean(0).sqrt())
    assert torch.equal(seen.sample, transform(x[:7]))


@pytest.mark.parametrize("smooth", [None, 0.5])
@pytest.mark.parametrize("hadamard", [True, False])
def test_at_eight_bits_nothing_but_rounding_is_lost(small, monkeypatch, smooth, hadamard):
    """A wrong transform anywhere would not lose little, it would lose all."""
    from fewbit.methods import hq_dit
    from fewbit.methods.method import Rule

    exact = run(small())
    int8 = hq_dit._row("int8")
    monkeypatch.setitem(hq_dit.VARIANTS, "w4a4", Rule(int8, int8))
    model = small()
    quantize(model, transform="all", smooth=smooth, hadamard=hadamard)
    assert sqnr(exact, run(model)) > 30


# What is shared, stored and shown


def test_q_k_and_v_share_one_stage_and_the_heads_are_rotated_offline(small):
    model = small()
    quantize(model, transform="all")
    block = model.transformer_blocks[0]
    stages = [layer.stage for layer in (block.attn1.to_q, block.attn1.to_k, block.attn1.to_v)]
    assert stages[0] is stages[1] is stages[2]
    assert isinstance(stages[0].transform, Chain)
    out = block.attn1.to_out[0].stage
    assert out.transform is None
    assert out.folded == "smooth > hadamard 32"
    assert block.norm1.linear.stage is None


def test_inspect_shows_what_is_online_and_what_is_folded(small, tmp_path):
    model = small()
    quantize(model, preset="published")
    fewbit.save(model, tmp_path / "saved")
    for inspection in (fewbit.inspect(model), fewbit.inspect(tmp_path / "saved")):
        shown = {layer.name.partition("0.")[2]: layer.input for layer in inspection.layers}
        rounded = "e2m1/row/fp32"
        assert shown["attn1.to_q"] == f"hadamard 64 > {rounded}"
        assert shown["attn1.to_out.0"] == f"(hadamard 32) > {rounded}"
        assert shown["ff.net.2"] == f"hadamard 256 > {rounded}"
        assert shown["norm1.linear"] is None


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"transform": "all", "block": 16},
        {"preset": "published"},
        {"selection_per": "channel", "selection": "mse", "activation_format": "auto"},
        {"bits": "w3a4", "adaln": "same", "order": "activation"},
        {"hadamard": False, "gptq": False},
    ],
    ids=str,
)
def test_saved_and_loaded_it_is_the_same_to_the_bit(small, tmp_path, settings):
    model = small()
    quantize(model, **settings)
    fewbit.save(model, tmp_path / "saved")
    loaded = fewbit.load(tmp_path / "saved")
    assert bits_of(loaded) == bits_of(model)
    assert torch.equal(run(loaded), run(model))


def test_the_same_seed_gives_the_same_bits_and_another_does_not(small):
    models = [small(), small(), small()]
    for model, seed in zip(models, (5, 5, 6), strict=True):
        quantize(model, seed=seed)
    first, again, other = map(bits_of, models)
    assert first == again
    assert first != other


@pytest.mark.parametrize(("bits", "weight", "rounded"), [
    ("w4a4", 4, 4), ("w4a6", 4, 6), ("w4a8", 4, 8), ("w3a4", 3, 4),
])  # fmt: skip
def test_every_variant_has_its_bits(small, bits, weight, rounded):
    model = small()
    quantize(model, bits=bits)
    layer = model.transformer_blocks[0].ff.net[2]
    assert layer.spec.format in CANDIDATES[weight]
    assert layer.stage.activation.spec.format.bits == rounded


@pytest.mark.parametrize("adaln", ["int8", "same", "keep"])
def test_the_modulation_linear_is_a_choice_of_its_own(small, adaln):
    model = small()
    report = quantize(model, adaln=adaln)
    specs = {layer.weight for layer in report.layers if layer.role == "adaln"}
    formats = {spec.partition("/")[0] for spec in specs}
    assert formats <= {"int8": {"int8"}, "same": {"e3m0", "e2m1", "e1m2"}, "keep": set()}[adaln]
    assert (adaln == "keep") == isinstance(model.transformer_blocks[0].norm1.linear, nn.Linear)


# What each ingredient does


def test_propagate_decides_what_later_blocks_see(small, monkeypatch):
    from fewbit.methods import hq_dit

    observed = {}
    solve = hq_dit.solve

    def listen(job, settings):
        look = job.observe()[job.groups[0][0]].moments
        observed.setdefault(settings.propagate, []).append(look)
        solve(job, settings)

    monkeypatch.setattr(hq_dit, "METHOD", replace(hq_dit.METHOD, solve=listen))
    model = small()
    exact = _exact_moments(model, block=1)
    for propagate in (True, False):
        quantize(small(), propagate=propagate)
    assert torch.equal(observed[True][0], observed[False][0])
    # layer 0 of a DiT block is its adaLN linear, whose input no block touches
    assert torch.equal(observed[True][1], observed[False][1])
    assert torch.equal(observed[False][1], exact)


def _exact_moments(model, block):
    plan = make_plan(model, Recipe.make("hq-dit", None, {}), None, allow_unknown=False)
    stream = BlockStream(model, list(model.transformer_blocks), CallSet.from_items(rows()))
    for step in stream.steps():
        if step.index == block:
            job = plan.job(model, block, seed=0)
            job.step = step
            return job.observe()[job.groups[0][0]].moments
    raise AssertionError


@pytest.mark.parametrize("switch", ["hadamard", "gptq", "clip", "propagate"])
def test_a_switch_changes_the_result(small, switch):
    on, off = small(), small()
    quantize(on)
    quantize(off, **{switch: False})
    assert bits_of(on) != bits_of(off)


def test_gptq_beats_its_own_grid_without_it():
    with_it, without = Tower(), Tower()
    reports = [
        fewbit.quantize(
            model, "hq-dit", calibration=tokens(24), spec=TOWER, progress=False, gptq=gptq
        )
        for model, gptq in ((with_it, True), (without, False))
    ]
    gains = [sum(layer.gain_db for layer in report.layers) for report in reports]
    assert gains[0] > gains[1]


def test_per_channel_choices_differ_within_a_layer(small):
    model = small()
    quantize(model, selection="mse", selection_per="channel")
    choices = [layer.choices for layer in quantized_layers(model).values()]
    assert any(choice is not None and len(choice.unique()) > 1 for choice in choices)


def test_the_report_measures_the_layers_that_were_folded(small):
    """At eight bits for the input only the weight's rounding is left, whatever was rotated."""
    report = quantize(small(), bits="w4a8", gptq=False, clip=False, selection="off")
    errors = {layer.name: layer.output_db for layer in report.layers if layer.role == "attn_out"}
    assert all(db > 12 for db in errors.values()), errors


# What is refused, and what is said


@pytest.mark.parametrize(
    ("setting", "value", "allowed"),
    [
        ("alpha", 0, "between 0 and 1"),
        ("alpha", 1, "between 0 and 1"),
        ("alpha", -0.5, "between 0 and 1"),
        ("alpha", math.nan, "between 0 and 1"),
        ("samples", 0, "a whole number of 1 or more"),
        ("samples", -4, "a whole number of 1 or more"),
        ("damping", 0, "between 0 and 1"),
        ("smooth", 1.5, "between 0 and 1"),
        ("hadamard", "yes", "True, False"),
        ("gptq", None, "True, False"),
        ("clip", 2, "True, False"),
        ("propagate", "on", "True, False"),
        ("selection", "best", "ratio, mse, off"),
        ("selection_per", "row", "layer, channel"),
        ("activation_format", "mse", "fixed, auto"),
        ("order", "random", "natural, activation"),
        ("adaln", "fp8", "same, int8, keep"),
        ("block", 1, "a whole number of 2 or more, auto, None"),
        ("block", "full", "a whole number of 2 or more, auto, None"),
        ("preset", "slow", "fast"),
    ],
)
def test_a_bad_setting_says_what_is_allowed(small, setting, value, allowed):
    model = small()
    before = bits_of(model)
    with pytest.raises(BadArgument, match=setting) as error:
        quantize(model, **{setting: value})
    assert allowed in str(error.value)
    assert bits_of(model) == before


@pytest.mark.parametrize("width", [52, 100])
def test_a_width_without_a_full_rotation_is_refused_before_any_work(width):
    model = Tower(width, hidden=40)
    before = bits_of(model)
    with pytest.raises(BadArgument, match=rf"blocks\.0\.up: width {width} has no full Hadamard"):
        fewbit.quantize(
            model, "hq-dit", calibration=tokens(width), spec=TOWER, block=None, progress=False
        )
    assert bits_of(model) == before
    given = {"calibration": tokens(width), "spec": TOWER, "preset": "published"}
    fewbit.quantize(model, "hq-dit", progress=False, **given)
    assert model.blocks[0].up.stage.transform.hadamard.order < width


@pytest.mark.parametrize("settings", [{}, {"preset": "published"}])
def test_an_odd_width_goes_without_rotation_and_is_told(settings):
    model = Tower(24, hidden=5)
    given = {"calibration": tokens(24), "spec": TOWER, "progress": False}
    report = fewbit.quantize(model, "hq-dit", **given, **settings)
    odd = [line for line in report.warnings if "no rotation" in line]
    assert odd[0] == "blocks.0.down: no rotation, for the width 5 allows none"
    assert len(odd) == 2
    assert model(torch.randn(1, 16, 24)).isfinite().all()


def test_no_samples_and_no_rows_are_refused(pipe):
    with pytest.raises(
        BadArgument, match="samples cannot be 0; allowed: a whole number of 1 or more"
    ):
        fewbit.quantize(pipe, "hq-dit", samples=0, progress=False)
    with pytest.raises(BadArgument, match="samples must be"):
        fewbit.quantize(pipe, "hq-dit", calibration=0, progress=False)
    with pytest.raises(BadCalibration, match="calibration is empty"):
        fewbit.quantize(pipe, "hq-dit", calibration=[], progress=False)


def test_too_small_a_damping_is_raised_and_said(monkeypatch):
    """Two equal channels make the moments singular; float64 alone might still invert them."""
    model, data = Tower(), tokens(24)
    for item in data:
        item["hidden_states"][..., 1] = 1e3 * item["hidden_states"][..., 0]
    report = fewbit.quantize(
        model, "hq-dit", calibration=data, spec=TOWER, progress=False, damping=1e-18, hadamard=False
    )
    assert any("blocks.0.up: damping raised to" in warning for warning in report.warnings)
    assert model(data[0]["hidden_states"]).isfinite().all()


def test_not_a_number_names_layer_and_timestep(small):
    model = small()
    with torch.no_grad():
        model.transformer_blocks[0].attn1.to_v.bias[3] = math.inf
    with pytest.raises(
        fewbit.errors.FewbitError, match=r"bias of transformer_blocks\.0\.attn1\.to_v"
    ):
        quantize(model)
    model = small()
    model.transformer_blocks[1].attn1.register_forward_pre_hook(_spoil)
    with pytest.raises(BadCalibration, match=r"layer attn1\.to_q of block 1 .*timestep 1\)"):
        quantize(model)


def _spoil(module, args):
    x = args[0].clone()
    x[:, 2] = math.nan
    return (x, *args[1:])


def test_the_warning_names_the_layers_where_a_rotation_does_harm():
    model = Tower()
    data = tokens(24)
    with torch.no_grad():
        for item in data:
            item["hidden_states"][..., 5] *= 300
        model.blocks[0].up.weight[:, 5] /= 300
    plain = copy.deepcopy(model.state_dict())
    given = {"calibration": data, "spec": TOWER, "progress": False}
    report = fewbit.quantize(model, "hq-dit", preset="published", **given)
    first = next(one for one in report.warnings if 'transform="auto" leaves it out' in one)
    assert first.startswith("blocks.0: the transform makes plain rounding lose more")
    assert "up (" in first
    assert "down (" not in first
    json.dumps(report.to_dict())
    other = Tower()
    other.load_state_dict(plain)
    report = fewbit.quantize(other, "hq-dit", **given)
    assert not report.warnings
    assert not isinstance(other.blocks[0].up.stage.transform, HadamardTransform)


def test_the_defaults_are_what_the_studies_chose():
    assert replace(Settings()) == Settings(
        samples=512, alpha=0.25, clip=True, adaln="int8", damping=0.01, transform="auto", smooth=0.5
    )
