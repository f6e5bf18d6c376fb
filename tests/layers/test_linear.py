"""QLinear: the definition of a quantized product, and what a module must survive."""

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.nn.functional import linear
from torch.nn.utils.parametrize import register_parametrization

from fewbit.activations.dynamic import Dynamic
from fewbit.formats import QTensor, Spec
from fewbit.kernels.choose import BACKENDS, VARIABLE
from fewbit.kernels.native import packing
from fewbit.layers.linear import QLinear
from fewbit.layers.stage import InputStage
from fewbit.transforms.hadamard import Hadamard, HadamardTransform

PAIRS = [
    ("e2m1/row/fp32", "e2m1/row/fp32"),
    ("e2m1/g16/e4m3", "e2m1/g16/e4m3row"),
    ("e2m1/g32/e8m0", "e2m1/g32/e8m0"),
    ("uint4/g8/fp16", "int8/row/fp32"),
    ("int2/row/bf16", None),
    ("e4m3/tensor/fp32", "uint8/row/fp32"),
    ("book4/g16/factor", "int8/row/fp32"),
    ("book4/row/fp32", "book4/g16/factor"),
]
pairs = pytest.mark.parametrize(("weight", "activation"), PAIRS)
STORED = {"codes", "scales", "outer_scales", "zeros", "choices"}


def make(weight: str, activation: str | None, bias: bool = True) -> QLinear:
    generator = torch.Generator().manual_seed(0)
    packed = QTensor.quantize(torch.randn(24, 32, generator=generator), Spec.parse(weight))
    stage = InputStage(activation=Dynamic(Spec.parse(activation))) if activation else None
    return QLinear(packed, torch.randn(24, generator=generator) if bias else None, stage)


def tokens(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [True, False])
@pairs
def test_it_is_the_product_of_what_was_rounded(weight, activation, bias, dtype):
    layer, x = make(weight, activation, bias), tokens(dtype)
    rounded = x.float()
    if activation:
        rounded = Spec.parse(activation).round(rounded.view(-1, 32)).view(x.shape)
    expected = linear(rounded, layer.packed_weight.dequantize(), layer.bias)
    assert layer(x).dtype == dtype
    distance = (layer(x).double() - expected.double()).abs().max()
    rounding = 0 if dtype == torch.float32 else torch.finfo(dtype).eps / 2
    assert (
        distance <= (1e-6 + rounding) * expected.abs().max()
    )  # float32 sums differ in their order


def test_the_bias_is_kept_as_it_is():
    original = nn.Linear(32, 24).bfloat16()
    layer = QLinear(
        QTensor.quantize(original.weight, Spec.parse("int8/row/fp32")), original.bias, None
    )
    assert torch.equal(layer.bias, original.bias)
    assert layer.bias.dtype == torch.bfloat16
    assert not layer.bias.requires_grad


@pytest.mark.parametrize(
    "move",
    [
        nn.Module.half,
        nn.Module.double,
        nn.Module.bfloat16,
        lambda m: m.to(torch.bfloat16),
        lambda m: m.to("cpu", torch.float16),
        lambda m: m.type(torch.float16),
        lambda m: nn.Sequential(m).half()[0],
    ],
    ids=["half", "double", "bfloat16", "to_dtype", "to_both", "type", "parent"],
)
@pairs
def test_changing_the_dtype_leaves_what_is_stored(weight, activation, move):
    layer = make(weight, activation)
    before = copy.deepcopy(layer.state_dict())
    moved = move(layer)
    epilogue = moved.state_dict()
    for name in STORED & before.keys():
        assert epilogue[name].dtype == before[name].dtype
        assert torch.equal(epilogue[name].view(torch.uint8), before[name].view(torch.uint8))
    assert moved.bias.dtype != torch.float32


@pairs
def test_a_deep_copy_and_a_state_dict_give_the_same_layer(weight, activation):
    layer, x = make(weight, activation), tokens()
    expected = layer(x)
    assert torch.equal(copy.deepcopy(layer)(x), expected)
    stage = layer.stage and InputStage.from_config(layer.config()["input"])
    empty = QLinear.from_config(layer.config(), stage)
    empty.load_state_dict(layer.state_dict())
    assert torch.equal(empty(x), expected)
    assert empty.config() == layer.config()


@pairs
def test_autocast_changes_nothing(weight, activation):
    layer, x = make(weight, activation), tokens()
    expected = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x), expected)


@pairs
def test_bytes_are_those_of_the_tensors(weight, activation):
    layer = make(weight, activation)
    assert layer.nbytes() == sum(t.nbytes for t in layer.state_dict().values())
    assert layer.nbytes() == Spec.parse(weight).bytes(24, 32) + 4 * 24


def test_a_lost_token_is_never_a_plausible_number():
    layer, x = make("e2m1/row/fp32", "e2m1/row/fp32"), tokens()
    x[0, 1, 3], x[1, 2, 0] = torch.nan, torch.inf
    lost = layer(x).isnan()
    assert lost[0, 1].all()
    assert lost[1, 2].all()
    assert lost.sum() == 2 * 24


class SharedInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        made = make(*PAIRS[0])
        self.layers = nn.ModuleList(QLinear(made.packed_weight, None, made.stage) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return sum(layer(x) for layer in self.layers)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_layers_of_one_stage_give_what_they_give_alone(mode):
    model, counted = SharedInput(), []
    activation = model.layers[0].stage.activation
    coder = activation.coder

    def counting(*given):
        code = coder(*given)
        return lambda x: (counted.append(1), code(x))[1]

    activation.coder = counting
    with mode():
        x = tokens()
        for _ in range(2):
            together = model(x)
            alone = sum(copy.deepcopy(layer)(x) for layer in model.layers)
            assert torch.equal(together, alone)
    # each of ours once while it binds, then once together, and the copies'
    assert mode is not torch.no_grad or len(counted) == 3 + 1 + 6


@pytest.mark.parametrize("layout", [*PAIRS, None], ids=str)
def test_it_compiles_as_one_graph_without_a_word(layout):
    """aot_eager runs the same operations, so the result is the same up to their grouping: 1e-6 of
    the largest, a few float32 roundings."""
    model = SharedInput() if layout is None else make(*layout)
    torch._dynamo.reset()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error")
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        for batch in (tokens(), tokens()[:1]):
            expected = model(batch)
            assert (compiled(batch) - expected).abs().max() <= 1e-6 * expected.abs().max()


BACKENDS_HERE = [b for b in BACKENDS if b.why_not(torch.device("cpu")) is None]


@pytest.fixture(params=BACKENDS_HERE, ids=lambda b: b.name)
def forced(request, monkeypatch) -> str:
    monkeypatch.setenv(VARIABLE, request.param.name)
    return request.param.name


WEIGHTS = ["e2m1/row/fp32", "int8/row/fp32", "int6/row/fp32", "int3/row/fp32", "e2m3/row/fp32"]
WEIGHTS += ["e2m1/g16/e4m3", "uint4/g8/fp16", "book3/g8/factor", "book4/g2/factor"]
WEIGHTS += ["int5/g8/factor", "int6/g16/factor", "uint6/row/fp32"]


@torch.no_grad()
@pytest.mark.parametrize("fast", [False, True, None])
@pytest.mark.parametrize("weight", WEIGHTS)
def test_whatever_the_layout_the_stored_codes_come_back(weight, fast, forced):
    layer = make(weight, "int8/row/fp32")
    before = {name: t.clone() for name, t in layer.state_dict().items()}
    layer.fast = fast
    expected = layer(tokens())
    for again in (layer, copy.deepcopy(layer)):
        epilogue = again.state_dict()
        assert before.keys() == epilogue.keys()
        assert all(_bits(epilogue[name]) == _bits(before[name]) for name in before)
        assert _bits(again.packed_weight.packed) == _bits(before["codes"])
        assert torch.equal(again(tokens()), expected)
    layer.unbind()
    assert _bits(layer.codes) == _bits(before["codes"])
    assert layer.hidden_bytes == 0


@torch.no_grad()
@pytest.mark.parametrize("activation", [None, "int8/row/fp32"])
@pytest.mark.parametrize("weight", WEIGHTS)
def test_a_call_unpacks_no_weight_and_few_are_in_memory_twice(weight, activation, monkeypatch):
    """Of floats of 6 bits the sign of a zero is lost in integers."""
    monkeypatch.setenv(VARIABLE, "native")
    layer = make(weight, activation)
    layer(tokens())
    assert (layer.hidden_bytes > 0) == weight.startswith("e2m3")

    def refuse(*_: object) -> None:
        raise AssertionError("unpacked at a call")

    monkeypatch.setattr(packing, "_pack", refuse)
    layer(tokens())


def _bits(tensor: Tensor) -> bytes:
    return bytes(tensor.contiguous().view(-1).view(torch.uint8).numpy())


@torch.no_grad()
@pytest.mark.parametrize("weight", ["e2m1/row/fp32", "int8/row/fp32"])
def test_a_weight_is_in_memory_once(weight):
    """What stands in for the codes may add a header and whole panels of 64 rows and 8 columns."""
    packed = QTensor.quantize(torch.randn(128, 256), Spec.parse(weight))
    layer = QLinear(packed, None, None)
    layer(torch.randn(1, 256))
    resting = sum(t.nbytes for t in (*layer.parameters(), *layer.buffers()))
    assert resting <= packed.nbytes + 1024


@torch.no_grad()
@pytest.mark.parametrize("change", ["load", "put", "write", "backend"])
def test_a_layout_follows_what_it_was_made_of(change, forced, monkeypatch):
    layer, other, x = make(*PAIRS[0]), make(*PAIRS[0]), tokens()
    flipped = other.codes ^ 8  # every other sign
    layer(x)
    if change == "load":
        layer.load_state_dict({**layer.state_dict(), "codes": flipped})
    elif change == "put":
        layer._parameters["codes"] = torch.nn.Parameter(flipped.clone(), requires_grad=False)
    elif change == "write":
        layer.unbind()
        layer(x)
        layer.unbind()
        layer.codes ^= 8
    else:
        layer.load_state_dict({**layer.state_dict(), "codes": flipped})
        layer(x)
        monkeypatch.setenv(VARIABLE, "reference")
    other.codes.copy_(flipped)
    assert torch.equal(layer(x), other(x))


@torch.no_grad()
@pytest.mark.parametrize("shape", [(0, 32), (2, 0, 32), (32,), (1, 32), (2, 3, 4, 32)])
@pairs
def test_any_shape_of_input(weight, activation, shape, forced):
    y = make(weight, activation)(torch.ones(shape))
    assert y.shape == (*shape[:-1], 24)


@torch.no_grad()
def test_an_input_of_any_strides(forced):
    layer, x = make(*PAIRS[0]), tokens()
    turned = x.transpose(0, 1).contiguous().transpose(0, 1)
    assert torch.equal(layer(turned), layer(x))
    wide = torch.cat([x, x], -1)[..., :32]
    assert torch.equal(layer(wide), layer(x))


def test_a_weight_only_layer_can_be_trained_through(forced):
    x = tokens().requires_grad_()
    layer = make("e2m1/row/fp32", None)
    layer(x).sum().backward()
    expected = layer.packed_weight.dequantize().sum(0).expand_as(x)
    assert torch.allclose(x.grad, expected, atol=1e-5)


@pytest.mark.parametrize("rotated", [False, True])
@pairs
def test_gradients_pass_the_rounding_of_inputs(weight, activation, rotated, forced):
    """Input and bias get those of the product with the weight the layer stands for."""
    layer, x = make(weight, activation), tokens().requires_grad_()
    if rotated and layer.stage is not None:
        layer.stage.transform = HadamardTransform(Hadamard.for_width(32, seed=0))
    layer.bias.requires_grad_()
    with torch.no_grad():
        plain = layer(x)
    product, toward = layer(x), torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(2))
    assert torch.equal(product, plain)
    product.backward(toward)
    expected = toward @ layer.effective_weight()
    assert (x.grad - expected).norm() <= 1e-5 * expected.norm()
    assert torch.allclose(layer.bias.grad, toward.sum((0, 1)), atol=1e-5)


def test_values_are_what_the_codes_stand_for():
    stage = make(*PAIRS[0]).stage
    assert torch.equal(stage.values(tokens()), stage.activation(tokens()))


def _rotated() -> QLinear:
    layer = make("e2m1/g16/e4m3", "e2m1/row/fp32")
    layer.stage.transform = HadamardTransform(Hadamard.for_width(32, seed=0))
    return layer


@torch.no_grad()
@pytest.mark.parametrize("name", ["scales", "outer_scales", "bias", "stage.transform.signs"])
def test_what_was_written_in_place_is_noticed(name, forced):
    layer = _rotated()
    before = layer(tokens())
    tensor = dict([*layer.named_parameters(), *layer.named_buffers()])[name]
    if name.endswith("signs"):
        tensor[::2].neg_()
    else:
        tensor.copy_((tensor.float() / 2).to(tensor.dtype))
    ours = layer(tokens())
    layer.unbind()
    assert torch.equal(ours, layer(tokens()))
    assert not torch.equal(ours, before)


@torch.no_grad()
def test_a_parametrized_bias_is_computed_in_each_forward(forced):
    layer, x = make(*PAIRS[0]), tokens()
    plain = layer(x)
    register_parametrization(layer, "bias", Doubled())
    for factor in (2, 4):
        layer.parametrizations.bias[0].factor = factor
        expected = (factor - 1) * layer.parametrizations.bias.original.expand_as(plain)
        assert torch.allclose(layer(x) - plain, expected, atol=1e-5)


class Doubled(torch.nn.Module):
    factor = 2

    def forward(self, x):
        return x * self.factor


@torch.no_grad()
@pytest.mark.parametrize("ran", [False, True])
@pytest.mark.parametrize("bits", [PAIRS[0], PAIRS[4]])
def test_a_recorded_graph_computes_with_its_own_input(bits, ran):
    layer, x = make(*bits), tokens()
    if ran:
        layer(x)
    traced = torch.jit.trace(layer, torch.ones_like(x), check_trace=False)
    assert torch.allclose(traced(x), layer(x), atol=1e-5)


@torch.no_grad()
def test_dispatch_modes_see_operators_and_no_memory():
    layer = make(*PAIRS[0])
    layer(tokens())
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert layer(torch.empty(3, 32)).shape == (3, 24)


@torch.no_grad()
def test_a_layer_that_cannot_be_bound_stays_as_it_was(monkeypatch):
    layer = make(*PAIRS[0])
    before = layer.codes.clone()
    ready = QLinear._ready

    def broken(*_):
        raise MemoryError

    monkeypatch.setattr(QLinear, "_ready", broken)
    with pytest.raises(MemoryError):
        layer(tokens())
    monkeypatch.setattr(QLinear, "_ready", ready)
    assert torch.equal(layer.codes, before)
    assert torch.equal(layer(tokens()), make(*PAIRS[0])(tokens()))


@torch.no_grad()
def test_a_layer_beyond_the_depth_of_int32_sums_takes_another_path(forced, monkeypatch):
    """As many columns would take long: the bound is lowered instead."""
    layer, other, x = make(*PAIRS[0]), make(*PAIRS[0]), tokens()
    expected = layer(x)
    monkeypatch.setattr("fewbit.kernels.native.ops.most_depth", lambda: 31)
    assert (other(x) - expected).abs().max() <= 1e-6 * expected.abs().max()
    assert forced != "native" or other.bound().weight.layout is None
