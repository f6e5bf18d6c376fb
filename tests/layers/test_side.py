"""A layer whose input keeps a few directions apart: the law, and what a module must survive."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear

from fewbit.activations.dynamic import Dynamic
from fewbit.formats import QTensor, Spec
from fewbit.kernels.choose import BACKENDS, VARIABLE, backend_named
from fewbit.kernels.values import AdaLNInput, Epilogue, SplitRows
from fewbit.layers.dequantize import to_linear
from fewbit.layers.linear import QLinear, quantized_layers
from fewbit.layers.stage import InputStage
from fewbit.transforms.chain import Chain
from fewbit.transforms.hadamard import Hadamard, HadamardTransform
from fewbit.transforms.principal import Principal
from fewbit.transforms.smooth import Smooth

WIDTH, OUT, RANK = 64, 48, 8
CPU = torch.device("cpu")
KINDS = [
    ("e2m1/row/fp32", "e2m1/row/fp32"),
    ("e2m1/g16/e4m3", "e2m1/g16/e4m3row"),  # in groups
    ("uint4/g8/fp16", "int8/row/fp32"),
    ("e3m0|e2m1|e1m2/row/fp32", "e2m1/row/fp32"),
    ("int8/row/fp32", None),
]
kinds = pytest.mark.parametrize("kind", KINDS, ids=str)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def directions(rank: int = RANK) -> Tensor:
    """Not quite orthogonal, and not equally long."""
    basis = torch.linalg.qr(normal(WIDTH, WIDTH, seed=3)).Q[:rank]
    lengths = torch.linspace(15, 31, rank)[:, None]
    return (basis / basis.abs().max() * lengths).round().to(torch.int8)


def smooth_and_rotate() -> Chain:
    rotation = HadamardTransform(Hadamard.for_width(WIDTH, seed=1))
    return Chain([Smooth(normal(WIDTH, seed=7).exp()), rotation])


def stage_of(activation: str | None, rank: int = RANK) -> InputStage:
    rounding = None if activation is None else Dynamic(Spec.parse(activation))
    return InputStage(smooth_and_rotate(), rounding, principal=Principal(directions(rank)))


def packed(weight: Tensor, text: str) -> QTensor:
    spec = Spec.parse(text)
    scales = spec.fit(weight)
    if len(spec.format.options) > 1:
        scales = type(scales)(scales.stored, choices=torch.zeros(len(weight), 1).to(torch.uint8))
    return QTensor.quantize(weight, spec, scales)


def make(kind: tuple[str, str | None] = KINDS[0], stage: InputStage | None = None) -> QLinear:
    stage = stage or stage_of(kind[1])
    weight = stage.transform.weight(normal(OUT, WIDTH, seed=1))
    return QLinear(packed(weight, kind[0]), normal(OUT, seed=2), stage)


def tokens(dtype: torch.dtype = torch.float32) -> Tensor:
    return normal(2, 5, WIDTH, seed=4).to(dtype)


def defined(layer: QLinear, x: Tensor) -> Tensor:
    """The two products and the bias, from what the codes stand for, in double precision."""
    split = layer.stage.coder(backend_named("reference"))(x)
    assert isinstance(split, SplitRows)
    main = split.main if isinstance(split.main, Tensor) else split.main.values()
    product = main.double() @ layer.packed_weight.dequantize().double().T
    side = split.side.values().double() @ layer.side.dequantize().double().T
    return (product + side + layer.bias).view(*x.shape[:-1], OUT)


def near(ours: Tensor, exact: Tensor, dtype: torch.dtype = torch.float32) -> None:
    """Float32 sums in another order, 22 bits of inputs that are floats, the rounding of a half."""
    half = 0 if dtype == torch.float32 else torch.finfo(dtype).eps
    assert (ours.double() - exact.double()).abs().max() <= (4e-6 + half) * exact.abs().max()


@pytest.fixture(params=[b.name for b in BACKENDS if b.why_not(CPU) is None])
def forced(request: Any, monkeypatch: Any) -> str:
    monkeypatch.setenv(VARIABLE, request.param)
    return request.param


@torch.no_grad()
@kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_it_is_the_sum_of_both_products(kind, dtype, forced):
    layer, x = make(kind), tokens(dtype)
    assert layer(x).dtype == dtype
    near(layer(x), defined(layer, x), dtype)


@torch.no_grad()
@pytest.mark.parametrize("after", [Epilogue(), Epilogue(gelu=True)], ids=["plain", "gelu"])
def test_both_products_in_one_pass_are_both_products(after, monkeypatch):
    native = backend_named("native")
    if native.why_not(CPU) is not None:
        pytest.skip(str(native.why_not(CPU)))
    monkeypatch.setenv(VARIABLE, "native")
    layer, x = make(), tokens()
    both = layer.bound().multiply
    assert both.general(layer.bound().code(x), torch.float32, after).shape == (10, OUT)
    near(layer(x, after).view(10, OUT), both.general(layer.bound().code(x), torch.float32, after))


@torch.no_grad()
@pytest.mark.parametrize("rank", [1, 3, 8, WIDTH])
def test_any_number_of_directions(rank, forced):
    stage = stage_of("e2m1/row/fp32", rank)
    layer, x = make(stage=stage), tokens()
    near(layer(x), defined(layer, x))


@torch.no_grad()
def test_nothing_is_lost_but_by_the_last_rounding(forced):
    """The rest unrounded and weights at 8 bits: the layer loses what these round, no more, though
    the components were rounded and their directions are no basis."""
    layer, x = make(KINDS[-1]), tokens()
    exact = x.double() @ normal(OUT, WIDTH, seed=1).double().T + layer.bias
    split = layer.stage.coder(backend_named("reference"))(x)
    main, side = split.main.abs(), split.side.values().abs()
    half_steps = (
        main @ layer.scales.expand(OUT, WIDTH).T
        + side @ layer.side.scales.stored.float().expand(OUT, RANK).T
    )
    assert ((layer(x) - exact).abs() <= half_steps.view_as(exact) / 2 + 1e-5).all()


@torch.no_grad()
@pytest.mark.parametrize(
    "given", [torch.zeros(0, WIDTH), torch.ones(WIDTH), torch.ones(1, 2, 3, WIDTH)]
)
def test_any_shape_of_input(given, forced):
    assert make()(given).shape == (*given.shape[:-1], OUT)


@torch.no_grad()
@kinds
def test_the_side_is_added_before_gelu_and_before_the_gate(kind, forced):
    layer, x = make(kind), tokens()
    exact = defined(layer, x)
    near(layer(x, Epilogue(gelu=True)), gelu(exact, approximate="tanh"))
    gate, residual = normal(2, OUT, seed=5), normal(10, OUT, seed=6)
    gated = layer(x, Epilogue(gate=gate, residual=residual))
    near(gated, residual.view(2, 5, OUT) + gate[:, None] * exact)


@torch.no_grad()
@kinds
def test_an_input_that_is_yet_to_be_modulated(kind, forced):
    layer, (shift, scale) = make(kind), normal(2, 2, WIDTH, seed=6)
    x = AdaLNInput(tokens(), shift, scale, 1e-6)
    near(layer(x), defined(layer, backend_named("reference").modulate(x)))


@torch.no_grad()
def test_a_lost_token_is_never_a_plausible_number(forced):
    layer, x = make(), tokens()
    x[0, 1, 3], x[1, 2, 0] = torch.nan, torch.inf
    assert layer(x).isnan().all(-1).nonzero().tolist() == [[0, 1], [1, 2]]
    assert layer(x).isnan().sum() == 2 * OUT


class Three(nn.Module):
    """As q, k and v: three layers of one input."""

    def __init__(self) -> None:
        super().__init__()
        stage = stage_of("e2m1/row/fp32")
        self.layers = nn.ModuleList(make(stage=stage) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return sum(layer(x) for layer in self.layers)


@torch.no_grad()
def test_layers_of_one_input_split_it_once(forced):
    model, x, split = Three(), tokens(), []
    activation = model.layers[0].stage.activation
    splitter = activation.splitter

    def counting(*given):
        code = splitter(*given)
        return lambda x: (split.append(1), code(x))[1]

    activation.splitter = counting
    for layer in model.layers:
        layer.bound()
    assert torch.equal(model(x), Three()(x))
    assert len(split) == 1


def test_a_side_is_no_layer_of_the_model():
    assert [*quantized_layers(Three())] == ["layers.0", "layers.1", "layers.2"]


@torch.no_grad()
@pytest.mark.parametrize("fast", [False, True])
@kinds
def test_what_is_stored_comes_back(kind, fast, forced):
    layer = make(kind)
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    assert "stage.principal.codes" in before
    assert not [name for name in before if name.startswith("side")]
    layer.fast = fast
    expected = layer(tokens())
    bound = layer.bound()
    assert torch.equal(layer(tokens()), expected)
    assert layer.bound() is bound
    stage = InputStage.from_config(layer.config()["input"])
    empty = QLinear.from_config(layer.config(), stage)
    empty.load_state_dict(layer.state_dict())
    ways = (copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it)), lambda _: empty)
    for again in (layer, *(way(layer) for way in ways)):
        state = again.state_dict()
        assert state.keys() == before.keys()
        assert all(_bits(state[name]) == _bits(before[name]) for name in before)
        assert torch.equal(again(tokens()), expected)
        assert again.config() == layer.config()


def _bits(tensor: Tensor) -> bytes:
    return bytes(tensor.contiguous().view(-1).view(torch.uint8).numpy())


@torch.no_grad()
@kinds
def test_changing_the_dtype_leaves_what_is_stored(kind, forced):
    layer = make(kind)
    layer.stage.transform = layer.stage.transform.parts[1]  # smoothing scales follow the dtype
    expected = layer(tokens())
    layer.bias = None
    unbiased = layer(tokens())
    assert not torch.equal(unbiased, expected)
    half = copy.deepcopy(layer).half()
    assert torch.equal(half(tokens()), unbiased)


@torch.no_grad()
@pytest.mark.parametrize("name", ["scales", "stage.principal.codes"])
def test_what_was_written_in_place_is_noticed(name, forced):
    layer = make()
    before = layer(tokens())
    tensor = dict([*layer.named_parameters(), *layer.named_buffers()])[name]
    tensor.copy_(tensor / 2)
    ours = layer(tokens())
    layer.unbind()
    assert torch.equal(ours, layer(tokens()))
    assert not torch.equal(ours, before)


def test_a_side_costs_no_bytes_in_a_file_and_its_own_in_memory():
    layer = make()
    state = layer.state_dict()
    own = [state[name] for name in state if not name.startswith("stage.")]
    assert layer.nbytes() == sum(tensor.nbytes for tensor in own) == OUT * (WIDTH // 2 + 4 + 4)
    before = layer.hidden_bytes
    layer.bound()
    assert layer.hidden_bytes >= before + OUT * (RANK + 2)


def test_a_side_is_the_packed_weight_times_the_directions():
    """In exact whole numbers, rounded as the format says."""
    layer = make(KINDS[0])
    units = (layer.packed_weight.dequantize() / layer.scales / 0.5).round().to(torch.int64)
    exact = units @ layer.stage.principal.directions.T.to(torch.int64)
    values = (exact.double() * layer.scales.double() * 0.5).float()
    expected = QTensor.quantize(values, Spec.parse("int8/row/bf16"))
    assert torch.equal(layer.side.packed, expected.packed)
    assert torch.equal(layer.side.scales.stored, expected.scales.stored)


@torch.no_grad()
@kinds
def test_the_effective_weight_multiplies_the_untransformed_input(kind):
    """What stands for an input of which nothing is rounded."""
    layer, x = make(kind), tokens()
    stage = layer.stage
    seen = stage.transform(x.double())
    product = stage.principal.rest(seen) @ layer.packed_weight.dequantize().double().T
    side = layer.side.dequantize().double()
    exact = product + stage.principal.components(seen) @ side.T
    assert torch.allclose(x @ layer.effective_weight().T, exact.float(), atol=1e-4)
    plain = to_linear(layer)
    assert torch.equal(plain.weight, layer.effective_weight())
    assert torch.allclose(plain(x).double(), exact + layer.bias, atol=1e-4)


@kinds
def test_gradients_pass_the_rounding_of_inputs(kind, forced):
    layer, x = make(kind), tokens().requires_grad_()
    layer.bias.requires_grad_()
    with torch.no_grad():
        plain = layer(x)
    product, toward = layer(x), normal(2, 5, OUT, seed=8)
    assert torch.equal(product, plain)
    product.backward(toward)
    expected = toward @ layer.effective_weight()
    assert (x.grad - expected).norm() <= 1e-5 * expected.norm()
    assert torch.allclose(layer.bias.grad, toward.sum((0, 1)), atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("ran", [False, True])
@pytest.mark.parametrize("kind", KINDS[:2], ids=str)
def test_it_compiles_as_one_graph(kind, ran, forced):
    layer, x = make(kind), tokens()
    if ran:
        layer(x)
    torch._dynamo.reset()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    near(compiled(x), layer(x))


@torch.no_grad()
@pytest.mark.parametrize("ran", [False, True])
def test_a_recorded_graph_computes_with_its_own_input(ran):
    layer, x = make(), tokens()
    if ran:
        layer(x)
    traced = torch.jit.trace(layer, torch.ones_like(x), check_trace=False)
    near(traced(x), layer(x))


@torch.no_grad()
def test_autocast_changes_nothing(forced):
    layer, x = make(), tokens()
    expected = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x), expected)


@torch.no_grad()
def test_inference_mode_changes_nothing(forced):
    layer, x = make(), tokens()
    expected = copy.deepcopy(layer)(x)
    with torch.inference_mode():
        assert torch.equal(layer(x), expected)
    assert torch.equal(layer(x), expected)


@torch.no_grad()
@pytest.mark.parametrize("buffers", [False, True])
def test_offloaded_tensors_are_brought(buffers, forced):
    accelerate = pytest.importorskip("accelerate")
    model, x = Three(), tokens()
    expected = model(x)
    accelerate.cpu_offload(model, "cpu", offload_buffers=buffers)
    assert model.layers[0].codes.is_meta
    for _ in range(2):
        assert torch.equal(model(x), expected)
    assert model.layers[0].codes.is_meta


def test_values_for_calibration_are_those_of_both_parts():
    """But for the rounding of the side, of less than half a step for each row."""
    layer, x = make(), tokens()
    exact, ours = defined(layer, x), layer.stage.values(x)
    assert ours.shape == x.shape
    found = linear(ours, layer.packed_weight.dequantize(), layer.bias)
    assert (found - exact).norm() <= 0.01 * exact.norm()


def test_it_is_said_what_an_input_goes_through():
    layer = make()
    assert str(layer.stage) == "smooth > hadamard 64 > 8 directions > e2m1/row/fp32"
