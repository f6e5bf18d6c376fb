"""No rows give an empty result as nn.Linear's do, and another width is refused in one sentence."""

from typing import Any

import pytest
import torch
from torch import Tensor

from fewbit.activations.clock import Clock, TimeBins
from fewbit.activations.dynamic import Dynamic
from fewbit.activations.multi_region import MultiRegion
from fewbit.activations.static import Static
from fewbit.errors import BadArgument
from fewbit.formats import QTensor, Spec
from fewbit.kernels.choose import BACKENDS, VARIABLE, backend_named
from fewbit.kernels.values import AdaLNInput, Epilogue, Rotation, Weight
from fewbit.layers.attention import QAttention
from fewbit.layers.linear import QLinear
from fewbit.layers.quick_attention import attention
from fewbit.layers.stage import InputStage
from fewbit.models.fused_attention import AttentionCall
from fewbit.transforms.chain import Chain
from fewbit.transforms.hadamard import Hadamard, HadamardTransform
from fewbit.transforms.smooth import Smooth

HERE = [b.name for b in BACKENDS if b.why_not(torch.device("cpu")) is None]
WIDTH, OUT = 64, 24
TENSOR = Spec.parse("int8/tensor/fp32")
WEIGHTS = ("e2m1/row/fp32", "int8/row/fp32", "e2m1/g16/e4m3", "uint4/g8/fp16", "e4m3/row/fp32")
WEIGHTS += ("e3m0|e2m1|e1m2/row/fp32", "vq16x4/row/fp32")


def bins(groups: int = 1) -> TimeBins:
    made = TimeBins(torch.arange(float(groups)))
    made.clock = Clock("timestep", 0)
    made.clock.time = torch.zeros(1)
    return made


def static(groups: int = 1) -> Static:
    return Static(TENSOR, torch.full((groups, 1), 0.1), bins(groups))


def two_regions(regions: Any, groups: int = 1) -> MultiRegion:
    return MultiRegion(TENSOR, regions, torch.full((2, groups, 1), 0.01), bins(groups))


ACTIVATIONS = {
    "none": lambda: None,
    "e2m1": lambda: Dynamic(Spec.parse("e2m1/row/fp32")),
    "e4m3": lambda: Dynamic(Spec.parse("e4m3/row/fp32")),
    "nvfp4": lambda: Dynamic(Spec.parse("e2m1/g16/e4m3row")),
    "uint8": lambda: Dynamic(Spec.parse("uint8/row/fp32")),
    "static": static,
    "timed": lambda: static(3),
    "signed": lambda: two_regions("signed"),
    "signed timed": lambda: two_regions("signed", 3),
}
TRANSFORMS = {
    "none": lambda: None,
    "hadamard": lambda: HadamardTransform(Hadamard.for_width(WIDTH, 0)),
    "smooth": lambda: Smooth(torch.ones(WIDTH)),
    "both": lambda: Chain(
        [Smooth(torch.ones(WIDTH)), HadamardTransform(Hadamard.for_width(WIDTH, 0))]
    ),
}


def layer(weight: str, activation: str = "none", transform: str = "none") -> QLinear:
    spec, matrix = Spec.parse(weight), torch.linspace(-1, 1, OUT * WIDTH).view(OUT, WIDTH)
    scales = spec.empty_scales(OUT, WIDTH)
    for tensor in vars(scales).values():
        if tensor is not None:
            tensor.copy_(torch.ones_like(tensor))
    stage = InputStage(TRANSFORMS[transform](), ACTIVATIONS[activation]())
    return QLinear(QTensor.quantize(matrix, spec, scales), torch.zeros(OUT), stage)


@pytest.fixture(params=HERE)
def backend(request: Any, monkeypatch: Any) -> str:
    monkeypatch.setenv(VARIABLE, request.param)
    return request.param


EMPTY = ((0, WIDTH), (2, 0, WIDTH), (0, 3, WIDTH))


@torch.no_grad()
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_no_rows_through_every_stage(backend, activation, transform):
    for weight in WEIGHTS:
        made = layer(weight, activation, transform)
        for shape in EMPTY:
            x = torch.ones(shape)
            for dtype in (torch.float32, torch.bfloat16):
                result = made(x.to(dtype))
                assert result.shape == (*shape[:-1], OUT)
                assert result.dtype == dtype


@torch.no_grad()
@pytest.mark.parametrize("images", [0, 2])
def test_no_tokens_through_a_fused_block(backend, images):
    """AdaLNInput, with what follows a product, and attention between."""
    vectors = torch.ones(images, WIDTH)
    x = torch.ones(images, 0 if images else 3, WIDTH)
    for activation in ACTIVATIONS:
        made = layer("e2m1/row/fp32", activation, "hadamard")
        given = AdaLNInput(x, vectors, vectors, 1e-6)
        epilogue = Epilogue(
            gate=vectors[:, :OUT], residual=torch.ones(x.shape[0] * x.shape[1], OUT)
        )
        for then in (Epilogue(), Epilogue(gelu=True), epilogue):
            assert made(given, then).shape == (*x.shape[:2], OUT)


@torch.no_grad()
@pytest.mark.parametrize("shape", [(0, 2, 5, 8), (2, 2, 0, 8)])
@pytest.mark.parametrize("shares", ["none", "unit", "unit timed"])
def test_no_queries_in_quantized_attention(backend, shape, shares):
    rounded = {"none": lambda: None, "unit": lambda: two_regions("unit")}
    made = rounded.get(shares, lambda: two_regions("unit", 3))()
    q, k = torch.ones(shape), torch.ones(shape[0], 2, 5, 8)
    assert QAttention(static(), static(), made, static())(AttentionCall(q, k, k)).shape == shape
    assert attention(AttentionCall(q, k, k)).shape == shape


WRONG = ((3, WIDTH + 1), (WIDTH, 1), (2, 3, WIDTH - 1), (2, 2 * WIDTH), (WIDTH + 1,), ())


@torch.no_grad()
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_another_width_is_refused_alike_through_every_stage(backend, activation, transform):
    made = layer("e2m1/row/fp32", activation, transform)
    for shape in WRONG:
        with pytest.raises(BadArgument, match=f"meets {WIDTH} columns"):
            made(torch.ones(shape))


@pytest.mark.parametrize("weight", WEIGHTS)
def test_another_width_is_refused_alike_by_every_backend(backend, weight):
    made, name = Weight(layer(weight).packed_weight), backend_named(backend)

    def refused(run: Any, *given: Any) -> None:
        with pytest.raises(BadArgument, match=f"meets {WIDTH} columns"):
            run(*given)

    hadamard = Hadamard.for_width(WIDTH, 0)
    rotation = Rotation(hadamard.signs(), tuple(hadamard.matrices()))
    fmt = Spec.parse("int8/row/fp32").format
    for columns in (1, WIDTH - 1, WIDTH + 1, 2 * WIDTH):
        x = torch.ones(3, columns)
        refused(name.linear, x, made, None, torch.float32)
        refused(name.linear, name.quantize(x, fmt), made, None, torch.float32)
        refused(name.rotate, x, rotation)
        refused(name.quantize, x, fmt, rotation)


def test_no_rows_train_as_those_of_a_linear_do():
    x = torch.ones(0, WIDTH, requires_grad=True)
    layer("e2m1/row/fp32")(x).sum().backward()
    assert isinstance(x.grad, Tensor)
    assert x.grad.shape == (0, WIDTH)
