"""TQ-DiT on tiny models: exact laws of its run time, its files, its refusals."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import diffusers
import pytest
import small_models
import tiny_transformers as tiny
import torch
import torch.nn.functional as F
from row_by_row import RowByRow
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import fewbit
from fewbit.activations.clock import TimeBins
from fewbit.activations.multi_region import MultiRegion, two_regions
from fewbit.activations.static import Static
from fewbit.calibration import trajectories
from fewbit.engine.decibel import sqnr
from fewbit.engine.doctor import examine_layers
from fewbit.errors import BadArgument, BadCalibration, BrokenFile
from fewbit.formats import Spec
from fewbit.layers.attention import QAttention, quantized_attentions
from fewbit.layers.bind import unbind
from fewbit.layers.linear import quantized_layers
from fewbit.methods import tq_dit
from fewbit.models import Role
from fewbit.models.families.original_dit import DiTConfig, OriginalDiT
from fewbit.rounding.steps import Search, factors

FEW = {"groups": 3, "rounds": 1, "candidates": 20, "progress": False}
pytestmark = pytest.mark.usefixtures("one_thread")


def rows(name=tiny.DIT, count=9):
    random = torch.Generator().manual_seed(5)

    def normal(*shape):
        return torch.randn(1, *shape, generator=random)

    def of(row):
        inputs = {"hidden_states": normal(4, 8, 8), "timestep": torch.tensor([row * 100.0])}
        if name == tiny.DIT:
            return inputs | {"class_labels": torch.tensor([row % 10])}
        if "PixArt" in name:
            return inputs | {
                "encoder_hidden_states": normal(5, 32),
                "encoder_attention_mask": (torch.arange(5) < 1 + row % 5)[None].long(),
                "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
            }
        return inputs | {
            "encoder_hidden_states": normal(4, 32),
            "text_embedding_mask": torch.ones(1, 4),
            "encoder_hidden_states_t5": normal(4, 32),
            "text_embedding_mask_t5": torch.ones(1, 4),
            "image_meta_size": torch.tensor([[64.0, 64, 0, 0, 64, 64]]),
            "style": torch.zeros(1, dtype=torch.long),
            "image_rotary_emb": (torch.ones(16, 32), torch.zeros(16, 32)),
        }

    return [of(row) for row in range(count)]


def quantized(name=tiny.DIT, **settings):
    model = tiny.make(name)
    report = fewbit.quantize(model, "tq-dit", calibration=rows(name), **{**FEW, **settings})
    return model, report


@pytest.fixture(scope="module")
def dit():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield quantized()[0]
    torch.set_num_threads(threads)


def bare_original():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return OriginalDiT(DiTConfig(8, 2, 4, 32, 64, 2, 2, 5, True)).eval()


def original_rows():
    random = torch.Generator().manual_seed(1)
    return [
        {
            "x": torch.randn(1, 4, 8, 8, generator=random),
            "t": torch.tensor([row * 100]),
            "y": torch.tensor([row % 5]),
        }
        for row in range(9)
    ]


def original(**settings):
    model = bare_original()
    fewbit.quantize(model, "tq-dit", calibration=original_rows(), **{**FEW, **settings})
    return model


@pytest.mark.parametrize("name", tiny.NAMES)
def test_a_saved_model_loads_bit_equal(name, tmp_path):
    model, _ = quantized(name)
    model.save_pretrained(tmp_path / "one")
    loaded = getattr(diffusers, name).from_pretrained(tmp_path / "one")
    assert torch.equal(tiny.run(loaded), tiny.run(model))
    again = fewbit.load(tmp_path / "one")
    assert torch.equal(tiny.run(again), tiny.run(model))
    state = again.state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())


def test_the_original_dit_too(tmp_path):
    model = original()
    assert len(quantized_attentions(model)) == 2
    fewbit.save(model, tmp_path / "x")
    inputs = torch.randn(2, 4, 8, 8), torch.tensor([70, 701]), torch.tensor([1, 4])
    with torch.no_grad():
        assert torch.equal(fewbit.load(tmp_path / "x")(*inputs), model(*inputs))
        guided = model.forward_with_cfg(*(torch.cat([one, one]) for one in inputs), 1.0)
        assert torch.allclose(guided[:2], model(*inputs), atol=1e-5)


def test_in_half_precision_the_steps_stay_float32(dit, tmp_path):
    dit.save_pretrained(tmp_path)
    loaded = getattr(diffusers, tiny.DIT).from_pretrained(tmp_path, dtype=torch.bfloat16)
    steps = [part for part in loaded.modules() if isinstance(part, Static | MultiRegion)]
    assert {part.steps.dtype for part in steps} == {torch.float32}
    assert {part.bins.centres.dtype for part in steps} == {torch.float32}
    assert tiny.run(loaded, torch.bfloat16).isfinite().all()


def test_whatever_stands_in_the_file_must_be_a_step(dit, tmp_path):
    broken = copy.deepcopy(dit)
    next(iter(quantized_attentions(broken).values())).query.steps[1] = 0
    with pytest.raises(BrokenFile, match=r"attn1\.matmuls\.query\.steps holds a step that is not"):
        broken.save_pretrained(tmp_path)


class Measuring(TorchDispatchMode):
    """Refuses to look for a largest or smallest value."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in {"amax", "amin", "aminmax", "max", "min", "topk", "sort", "std"}, name
        return func(*args, **(kwargs or {}))


def test_no_range_is_measured_at_run_time(dit, monkeypatch):
    monkeypatch.setenv("FEWBIT_BACKEND", "reference")  # in torch operations, which can be watched
    with Measuring():
        tiny.run(dit)
    dynamic = tiny.quantized(bits="w8a8")
    with Measuring(), pytest.raises(AssertionError, match="amax"):
        tiny.run(dynamic)


def test_every_input_and_operand_is_static(dit):
    roles = [layer for layer in quantized_layers(dit).values() if layer.stage is not None]
    kinds = [type(layer.stage.activation) for layer in roles]
    assert set(kinds) == {Static, MultiRegion}
    assert kinds.count(MultiRegion) == 2  # what comes out of the GELU of each block
    for matmuls in quantized_attentions(dit).values():
        assert [type(part) for part in matmuls.children()] == [Static, Static, MultiRegion, Static]
        assert matmuls.query.steps.shape == (3, 2)  # times, heads


def forward(model, times, rows=slice(None)):
    random = torch.Generator().manual_seed(2)
    x = torch.randn(4, 4, 8, 8, generator=random)[rows]
    with torch.no_grad():
        return model(x, torch.as_tensor(times)[rows], class_labels=torch.arange(4)[rows]).sample


def test_an_image_alone_is_the_same_image(dit, monkeypatch):
    monkeypatch.setenv("FEWBIT_BACKEND", "reference")
    model = copy.deepcopy(dit)  # which binds itself to that backend
    with RowByRow(model):
        together = forward(model, [10, 300, 650, 900])
        for row in range(4):
            assert torch.equal(forward(model, [10, 300, 650, 900], [row])[0], together[row])


def test_what_stands_in_padding_has_no_say():
    """Neither in ranges nor in errors: the steps are the same to the bit."""
    name = "PixArtTransformer2DModel"

    def with_padding(loud):
        data = rows(name)
        for row in data:
            row["encoder_hidden_states"][row["encoder_attention_mask"] == 0] *= loud
        model = tiny.make(name)
        fewbit.quantize(model, "tq-dit", calibration=data, **FEW)
        return model.state_dict()

    quiet, loud = with_padding(0), with_padding(100)
    assert [key for key in quiet if not torch.equal(quiet[key], loud[key])] == []


def test_the_time_decides_and_any_time_is_understood(dit):
    whole = forward(dit, [10, 300, 650, 900])
    assert torch.equal(forward(dit, torch.tensor([10.0, 300.0, 650.0, 900.0])), whole)
    assert forward(dit, [-3, 5000, 0, 999]).isfinite().all()


def test_compiled_it_is_the_same(dit):
    """As its own forwards are, which the compiler sees: 100 dB are float32 roundings."""
    dit = copy.deepcopy(dit)
    unbind(dit)
    compiled = torch.compile(dit, fullgraph=True, backend="aot_eager")
    for times in ([10, 300, 650, 900], [900, 650, 20, 0]):
        assert sqnr(forward(dit, times), forward(compiled, times)) > 100


def test_copies_and_dequantizing(dit):
    twin = copy.deepcopy(dit)
    assert torch.equal(tiny.run(twin), tiny.run(dit))
    fewbit.dequantize(twin)
    assert not quantized_attentions(twin)
    assert not twin._forward_pre_hooks
    assert type(twin.transformer_blocks[0].attn1) is type(tiny.make().transformer_blocks[0].attn1)
    exact = tiny.run(tiny.make())
    assert (tiny.run(twin) - exact).abs().max() < 0.1 * exact.abs().max()


def test_the_same_seed_gives_the_same_model(dit):
    state = quantized()[0].state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in dit.state_dict().items())


def test_skipped_attention_stays_fused():
    model, _ = quantized(attention="skip")
    assert not quantized_attentions(model)
    unbind(model)
    calls = []

    class Counting(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            calls.append(func is F.scaled_dot_product_attention)
            return func(*args, **(kwargs or {}))

    with Counting():
        tiny.run(model)
    assert sum(calls) == 2


@pytest.mark.parametrize("bits", ["w8a8", "w6a6", "w4a8"])
def test_bits_are_what_they_say(bits):
    model, report = quantized(bits=bits, samples=10)
    weight, activation = bits[1], bits[3]
    linear = [layer for layer in report.layers if layer.role != "adaln"]
    assert {layer.weight for layer in linear} == {f"int{weight}/row/fp32"}
    assert {layer.activation for layer in linear} == {f"int{activation}/tensor/fp32"}
    shares = next(iter(quantized_attentions(model).values())).shares
    assert str(shares.spec) == f"uint{activation}/tensor/fp32"


def test_switched_off_it_is_one_static_step_for_everything():
    model, report = quantized(
        granularity="tensor", ho=False, mrq=False, tgq=False, smooth=None, adaln="keep"
    )
    assert {layer.weight for layer in report.layers} == {"int8/tensor/fp32"}
    parts = [part for part in model.modules() if isinstance(part, Static | MultiRegion)]
    assert all(isinstance(part, Static) and len(part.steps) == 1 for part in parts)
    assert not model._forward_pre_hooks
    assert all(layer.stage.transform is None for layer in quantized_layers(model).values())


def test_published_time_groups_are_of_the_softmax_alone():
    model, _ = quantized(time_group_all=False)
    groups = {
        name.rpartition(".")[2]: part.steps.shape[-2]
        for name, part in model.named_modules()
        if isinstance(part, Static | MultiRegion)
    }
    assert groups == {"activation": 1, "query": 1, "key": 1, "value": 1, "shares": 3}


def test_a_query_that_looks_at_one_key_alone_finds_its_value_unscaled(dit):
    """Attention sinks may first appear after calibration."""
    for matmuls in quantized_attentions(dit).values():
        for low, high in matmuls.shares.steps.unbind(1):
            assert two_regions(torch.ones(1), low, high, matmuls.shares.spec, "unit") == 1


class Shown(Exception):
    """Which rows show their attention."""


@pytest.mark.parametrize("groups", [1, 5])
def test_every_time_group_shows_the_attention_of_both_halves(pipe, monkeypatch, groups):
    def show(step, layers, attentions, rows, seed):
        raise Shown(rows)

    data = trajectories.sample(pipe, samples=200, seed=0)
    monkeypatch.setattr(tq_dit, "sample_operands", show)
    few = {"groups": groups, "ho": False, "progress": False}
    with pytest.raises(Shown) as shown:
        fewbit.quantize(pipe, "tq-dit", calibration=data, **few)
    (rows,) = shown.value.args
    bins = TimeBins.spread(data.timesteps(), groups)
    for group in range(groups):
        mine = [row for row in rows if bins.of(data.timesteps()[row]) == group]
        assert len(mine) == 2 * tq_dit.ATTENDING_PAIRS // groups
        assert data.conditional[mine].float().mean() == 0.5
        assert set(data.pair[mine].bincount().tolist()) <= {0, 2}


class SeparateAttention(nn.Module):
    """The same function as that of OriginalDiT, its joint projection in three."""

    def __init__(self, joint: nn.Module) -> None:
        super().__init__()
        self.heads, width = joint.heads, joint.qkv.in_features
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        weights, biases = joint.qkv.weight.chunk(3), joint.qkv.bias.chunk(3)
        for linear, weight, bias in zip((self.q, self.k, self.v), weights, biases, strict=True):
            linear.weight.data, linear.bias.data = weight.detach().clone(), bias.detach().clone()
        self.proj = joint.proj

    def forward(self, x: Tensor) -> Tensor:
        projected = (project(x) for project in (self.q, self.k, self.v))
        q, k, v = (one.unflatten(2, (self.heads, -1)).transpose(1, 2) for one in projected)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_a_joint_projection_becomes_what_separate_ones_become(granularity):
    joint, separate = bare_original(), bare_original()
    for block in separate.blocks:
        block.attn = SeparateAttention(block.attn)
    roles = {"attn.proj": "attn_out", "mlp.fc1": "fc1", "mlp.fc2": "fc2", "*.1": "adaln"}
    for model, projections in ((joint, ("qkv",)), (separate, ("q", "k", "v"))):
        own = {f"attn.{name}": name for name in projections}
        spec = fewbit.ModelSpec("blocks", own | roles, keep=("?_embedder.*", "final_layer.*"))
        settings = {**FEW, "granularity": granularity}
        fewbit.quantize(model, "tq-dit", calibration=original_rows(), spec=spec, **settings)
    for one, other in zip(joint.blocks, separate.blocks, strict=True):
        parts = other.attn.q, other.attn.k, other.attn.v
        for of in (lambda layer: layer.packed_weight.dequantize(), lambda layer: layer.bias):
            assert torch.equal(of(one.attn.qkv), torch.cat([of(part) for part in parts]))
        mine, theirs = (part.stage.activation.steps for part in (one.attn.qkv, other.attn.q))
        assert torch.equal(mine, theirs)


def test_behind_an_attention_and_a_gelu_the_gelu_has_two_regions(tmp_path):
    family = "FluxTransformer2DModel"
    model, data = small_models.make(family), [small_models.arguments(family, 9)]
    fewbit.quantize(model, "tq-dit", calibration=data, **FEW)
    for block in model.single_transformer_blocks:
        activation = block.proj_out.stage.activation
        assert isinstance(activation, MultiRegion)
        assert activation.whole == block.attn.to_v.out_features
        assert bool((activation.steps[0] < activation.steps[1] / 2).all())
    model.save_pretrained(tmp_path)
    loaded, inputs = diffusers.FluxTransformer2DModel.from_pretrained(tmp_path), data[0]
    with torch.no_grad():
        assert torch.equal(loaded(**inputs)[0], model(**inputs)[0])


def test_where_nothing_tells_the_columns_of_a_gelu_the_report_says_so():
    warnings: list[str] = []
    job = SimpleNamespace(
        name="blocks.3",
        layers=(),  # the one of role fc1 is kept
        role=lambda name: Role.FUSED_OUT,
        linear=lambda name: nn.Linear(8, 4),
        warn=warnings.append,
    )
    assert tq_dit._regions(job, "blocks.3.out") == (None, 0)
    assert [text for text in warnings if "which columns blocks.3.out reads from a GELU" in text]


def test_q_k_and_v_of_a_joint_projection_have_a_step_each():
    scales = original(granularity="tensor").blocks[0].attn.qkv.scales
    assert [len(part.unique()) for part in scales.chunk(3)] == [1, 1, 1]


def test_work_that_was_cut_off_goes_on_bit_equal(dit, tmp_path, monkeypatch):
    method, solved = tq_dit.METHOD, []

    def once(job, settings):
        if solved:
            raise KeyboardInterrupt
        solved.append(job.name)
        method.solve(job, settings)

    monkeypatch.setattr(tq_dit, "METHOD", replace(method, solve=once))
    with pytest.raises(KeyboardInterrupt):
        quantized(workdir=tmp_path)
    kept = replace(method, survey=lambda *_: pytest.fail("it was kept"))
    monkeypatch.setattr(tq_dit, "METHOD", kept)
    state = quantized(workdir=tmp_path)[0].state_dict()
    assert state.keys() == dit.state_dict().keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in dit.state_dict().items())


def test_a_run_without_gradients_is_resumed_too(tmp_path):
    one, two = (quantized(workdir=tmp_path, ho=False)[0] for _ in range(2))
    state = two.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in one.state_dict().items())


def test_a_layer_without_effect_is_named_in_a_warning():
    model = tiny.make()
    model.transformer_blocks[1].ff.net[2].weight.data.zero_()
    report = fewbit.quantize(model, "tq-dit", calibration=rows(), **FEW)
    assert [w.split(" ")[0] for w in report.warnings] == ["transformer_blocks.1.ff.net.0.proj"]
    assert "no effect" in report.warnings[0]


def test_inspect_shows_time_groups_and_regions_within_80_columns(dit):
    shown = str(fewbit.inspect(dit))
    assert "smooth > int8 t3" in shown
    assert "int8x2 t3" in shown
    assert (
        "matmuls     2 q, k, v int8/tensor t3; shares uint8/tensor" in shown or "matmuls" in shown
    )
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize(
    ("setting", "value"),
    [("groups", 0), ("rounds", 1.5), ("candidates", True), ("samples", -1)],
)
def test_numbers_that_are_none_are_refused(setting, value):
    with pytest.raises(
        BadArgument, match=f"setting {setting} cannot be .*; allowed: a whole number of 1"
    ):
        quantized(**{setting: value})


@pytest.mark.parametrize("setting", ["granularity", "attention", "adaln", "ho", "tgq", "mrq"])
def test_words_that_are_none_are_refused(setting):
    with pytest.raises(BadArgument, match=f"setting {setting} cannot be 'maybe'"):
        quantized(**{setting: "maybe"})


@pytest.mark.parametrize("value", ["none", 0, 1, True])
def test_a_smoothing_that_is_none_is_told_how_to_leave_it_out(value):
    allowed = r"a number between 0 and 1, None \(null on the command line\)"
    with pytest.raises(BadArgument, match=f"smooth cannot be {value!r}; allowed: {allowed}"):
        quantized(smooth=value)


def test_the_error_of_scores_is_that_of_the_products_but_for_a_constant():
    random = torch.Generator().manual_seed(0)
    query, key = (torch.randn(3, 2, n, 8, generator=random) for n in (5, 7))
    group, spec = torch.zeros(3, dtype=torch.long), Spec.parse("int6/tensor/fp32")
    steps = tq_dit._Steps(spec, None, group, [Search(torch.full((1, 2), 0.1), factors(10))])
    weights = torch.rand(3, 2, generator=random)
    error = tq_dit._score_error(query, key, steps.round(key), weights)

    def exactly(rounded):
        squares = (rounded @ steps.round(key).mT - query @ key.mT).square()
        return squares.sum((2, 3)) * weights

    one, two = (query + step * torch.rand(query.shape, generator=random) for step in (0.1, 0.2))
    found, expected = (of(two) - of(one) for of in (lambda q: error(slice(0, 3), q), exactly))
    assert torch.allclose(found, expected, rtol=1e-4)


def test_linear_inputs_reach_the_products_as_codes(dit, monkeypatch):
    monkeypatch.setenv("FEWBIT_BACKEND", "torch")
    kinds = {}
    for layer in examine_layers(dit).layers:
        kinds.setdefault((layer.input, layer.path), []).append(layer.name)
    assert set(kinds) == {
        ("smooth > int8 t3", "torch._int_mm"),
        ("smooth > int8x2 t3", "torch._int_mm"),
        (None, "torch._int_mm on the input's 8-bit digits"),
    }
    assert all(".ff.net.2" in name for name in kinds["smooth > int8x2 t3", "torch._int_mm"])


def test_more_groups_than_rows_say_how_many_there_may_be():
    with pytest.raises(BadCalibration, match=r"groups=50 leave .* allow groups=9"):
        quantized(groups=50)


def test_more_groups_than_a_schedule_has_steps_are_refused_before_anything_is_drawn(
    pipe, monkeypatch
):
    monkeypatch.setattr(trajectories, "_Recording", lambda *_: pytest.fail("it drew"))
    few = r"1000 time groups need 2000 samples .* 320 samples of 50 steps allow 50"
    with pytest.raises(BadCalibration, match=few):
        fewbit.quantize(pipe, "tq-dit", groups=1000, progress=False)
    assert not quantized_layers(pipe.transformer)


def test_a_timestep_outside_of_the_schedule_is_refused():
    data = rows()
    data[4]["timestep"] = torch.tensor([-1.0])
    with pytest.raises(BadCalibration, match="row 4 has the timestep -1; allowed: 0 to 1000"):
        fewbit.quantize(tiny.make(), "tq-dit", calibration=data, **FEW)


class Blocks(nn.Module):
    """A model of somebody's own, whose attention multiplies by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.ModuleDict({"attn": ByHand()})])
        self.blocks[0].forward = lambda x: x + self.blocks[0]["attn"](x)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.blocks[0](hidden_states)


class ByHand(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.proj((q @ k.mT).softmax(-1) @ v)


def by_hand(**settings):
    spec = fewbit.ModelSpec("blocks", {"attn.qkv": "qkv", "attn.proj": "attn_out"}, heads=1)
    data = [{"hidden_states": torch.randn(1, 4, 8)} for _ in range(8)]
    model = Blocks()
    fewbit.quantize(model, "tq-dit", calibration=data, spec=spec, **{**FEW, **settings})
    return model


@pytest.mark.parametrize("ho", [True, False])
def test_an_attention_that_cannot_be_reached_stays_and_is_told(ho):
    model = by_hand(tgq=False, ho=ho)
    assert model(torch.randn(2, 4, 8)).isfinite().all()
    assert not any(isinstance(module, QAttention) for module in model.modules())


def test_a_model_without_time_needs_no_clock():
    model = by_hand(tgq=False, attention="skip")
    assert model(torch.randn(2, 4, 8)).isfinite().all()
    with pytest.raises(BadCalibration, match="need timesteps"):
        by_hand(attention="skip")


def test_gradients_that_are_no_numbers_name_the_layer():
    model = tiny.make()
    model.proj_out_2.weight.data[0, 0] = torch.nan
    with pytest.raises(BadCalibration, match=r"of transformer_blocks\.0\.\S+: .* NaN"):
        fewbit.quantize(model, "tq-dit", calibration=rows(), **FEW)
