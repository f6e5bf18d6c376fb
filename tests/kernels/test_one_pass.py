"""Whatever becomes of an input before a product, native code does it in one pass, to the bit."""

import pytest
import torch
from torch import Tensor

from fewbit.activations.activation import Activation
from fewbit.activations.clock import Clock, TimeBins
from fewbit.activations.dynamic import Dynamic
from fewbit.activations.multi_region import MultiRegion
from fewbit.activations.static import Static
from fewbit.formats import FORMATS, QTensor, Spec
from fewbit.kernels.choose import VARIABLE, backend_named
from fewbit.kernels.native.backend import Native
from fewbit.kernels.native.prepared import run_rows
from fewbit.kernels.reference import Reference
from fewbit.kernels.values import AdaLNInput, Epilogue, QuantizedRows
from fewbit.layers.linear import QLinear
from fewbit.layers.stage import InputStage
from fewbit.transforms.chain import Chain
from fewbit.transforms.hadamard import Hadamard, HadamardTransform
from fewbit.transforms.smooth import Smooth
from fewbit.transforms.transform import Transform

needs_native = pytest.mark.skipif(
    Native().why_not(torch.device("cpu")) is not None, reason="no native library"
)
pytestmark = needs_native
IMAGES, TOKENS, COLUMNS = 3, 5, 40
TENSOR = Spec(FORMATS["int8"], "tensor")


def bins() -> TimeBins:
    found = TimeBins(torch.tensor([0.0, 100.0]))
    found.clock = Clock("t", 0)
    found.clock.read(found, (torch.tensor([90, 3, 120]),), {})
    return found


def steps(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(3)) / 20 + 0.003


ACTIVATIONS: dict[str, Activation] = {
    "row": Dynamic(Spec(FORMATS["int8"])),
    "row e2m1": Dynamic(Spec(FORMATS["e2m1"])),
    "static": Static(TENSOR, steps(2, 1), bins()),
    "static int6": Static(Spec(FORMATS["int6"], "tensor"), steps(2, 1), bins()),
    "static book4": Static(Spec(FORMATS["book4"], "tensor"), steps(2, 1), bins()),
    "static e2m1": Static(Spec(FORMATS["e2m1"], "tensor"), steps(2, 1), bins()),
    "regions": MultiRegion(TENSOR, "signed", steps(2, 2, 1), bins()),
    "regions int6": MultiRegion(Spec(FORMATS["int6"], "tensor"), "signed", steps(2, 2, 1), bins()),
    "fused": MultiRegion(TENSOR, "fused", steps(2, 2, 1), bins(), whole=13),
}


def transforms() -> dict[str, Transform | None]:
    smooth = Smooth(torch.rand(COLUMNS, generator=torch.Generator().manual_seed(1)) + 0.5)
    rotate = HadamardTransform(Hadamard(COLUMNS, 20, 0))
    chains = {"both": Chain([smooth, rotate]), "thrice": Chain([rotate, smooth, smooth])}
    return {"none": None, "smooth": smooth, "rotate": rotate, **chains}


def tokens(dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(IMAGES, TOKENS, COLUMNS, generator=generator)
    x[1, 2] *= 1000
    return x.to(dtype)


def given(kind: str, dtype: torch.dtype = torch.float32) -> Tensor | AdaLNInput:
    if kind == "plain":
        return tokens(dtype)
    shift, scale = torch.randn(2, IMAGES, COLUMNS, generator=torch.Generator().manual_seed(2))
    return AdaLNInput(tokens(dtype), shift, scale, 1e-6)


def coded(backend: Reference, transform: Transform | None, name: str, x: object) -> QuantizedRows:
    codes = InputStage(transform, ACTIVATIONS[name]).coder(backend)(x)
    assert isinstance(codes, QuantizedRows)
    return codes


@pytest.mark.parametrize("kind", ["plain", "modulated"])
@pytest.mark.parametrize("transform", transforms())
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_codes_are_those_of_the_definition(name, transform, kind):
    x = given(kind)
    found = coded(backend_named("native"), transforms()[transform], name, x)
    expected = coded(backend_named("reference"), transforms()[transform], name, x)
    assert torch.equal(found.integers, expected.integers)
    assert torch.equal(found.scales, expected.scales)
    assert (found.parts, found.largest) == (expected.parts, expected.largest)


@pytest.mark.parametrize("transform", ["smooth", "both"])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_it_is_one_pass(name, transform, monkeypatch):
    passes = []

    def counted(*arguments: object) -> None:
        passes.append(1)
        run_rows(*arguments)

    monkeypatch.setattr("fewbit.kernels.native.prepared.run_rows", counted)
    monkeypatch.setattr("fewbit.kernels.native.ops.run_rows", counted)
    for dtype in (torch.float32, torch.bfloat16):
        coded(backend_named("native"), transforms()[transform], name, given("modulated", dtype))
    assert len(passes) == 2


@pytest.mark.parametrize("lost", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", ["static", "regions", "fused"])
def test_a_row_that_is_not_finite_is_lost_alone(name, lost):
    x = tokens()
    x[2, 1, 3] = lost
    found = coded(backend_named("native"), None, name, x).values()
    row = 2 * TOKENS + 1
    assert found[row].isnan().all()
    kept = [n for n in range(IMAGES * TOKENS) if n != row]
    assert torch.equal(found[kept], coded_plainly(name)[kept])


def coded_plainly(name: str) -> Tensor:
    return coded(backend_named("native"), None, name, tokens()).values()


@torch.no_grad()
@pytest.mark.parametrize("after", ["nothing", "gelu", "gated"])
@pytest.mark.parametrize("name", ["static", "regions", "fused"])
def test_a_layer_adds_both_regions_in_one_product(name, after, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    weight = QTensor.quantize(torch.randn(24, COLUMNS, generator=generator), Spec(FORMATS["int4"]))
    stage = InputStage(transforms()["smooth"], ACTIVATIONS[name])
    gate = Epilogue(gate=torch.rand(IMAGES, 24), residual=torch.rand(IMAGES * TOKENS, 24))
    epilogue = {"nothing": Epilogue(), "gelu": Epilogue(gelu=True), "gated": gate}[after]
    bias, results = torch.rand(24, generator=generator), []
    for backend in ("native", "reference"):
        monkeypatch.setenv(VARIABLE, backend)
        results.append(QLinear(weight, bias, stage)(tokens(), epilogue))
    assert (results[0] - results[1]).abs().max() <= 2e-6 * results[1].abs().max()
