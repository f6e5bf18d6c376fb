"""An ambient device that is not the CPU changes nothing of what computes on the CPU."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fewbit
from fewbit.activations.clock import Clock, TimeBins
from fewbit.activations.dynamic import Dynamic
from fewbit.activations.multi_region import MultiRegion
from fewbit.activations.static import Static
from fewbit.errors import BadArgument
from fewbit.formats import QTensor, Spec
from fewbit.kernels.choose import BACKENDS, VARIABLE, backend_for
from fewbit.kernels.native import ops as native
from fewbit.kernels.values import AdaLNInput, Epilogue
from fewbit.layers.attention import QAttention
from fewbit.layers.linear import QLinear
from fewbit.layers.stage import InputStage
from fewbit.models.fused_attention import AttentionCall
from fewbit.transforms.hadamard import Hadamard, HadamardTransform

SOURCE = Path(__file__).parents[2] / "src" / "fewbit"
HERE = [b.name for b in BACKENDS if b.why_not(torch.device("cpu")) is None]
TENSOR = Spec.parse("int8/tensor/fp32")


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator("cpu").manual_seed(0), device="cpu")


@pytest.fixture(scope="module")
def operations() -> Any:
    """Everything that runs at run time, on tensors and parts that are there already."""
    x, vectors, heads = normal(2, 20, 64), normal(2, 64), normal(2, 2, 10, 32)
    mask, given = normal(1, 1, 10, 10) > 0, AdaLNInput(x, vectors, vectors, 1e-6)
    bins = TimeBins(torch.zeros(1))
    static = Static(TENSOR, torch.full((1, 1), 0.1), bins)
    shares = MultiRegion(TENSOR, "unit", torch.tensor([0.001, 1 / 128])[:, None, None], bins)
    rotation = HadamardTransform(Hadamard.for_width(64, 0))
    rounding = [Dynamic(Spec.parse(f"{name}/row/fp32")) for name in ("e2m1", "int8", "e4m3")]
    matrices = {
        text: QTensor.quantize(normal(24, 64), Spec.parse(text))
        for text in ("e2m1/row/fp32", "e2m1/g16/e4m3", "uint4/g8/fp16", "e4m3/row/fp32")
    }
    epilogue = (
        Epilogue(),
        Epilogue(gelu=True),
        Epilogue(gate=vectors[:, :24], residual=normal(40, 24)),
    )

    def run() -> Iterator[Tensor]:
        yield rotation(x)
        for activation in (*rounding, static):
            yield activation(x)
            yield InputStage(rotation, activation).values(x)
        for asked in (None, shares):
            call = AttentionCall(heads, heads, heads, mask)
            yield QAttention(static, static, asked, static)(call)
        backend = backend_for(x)
        yield backend.gelu(x)
        yield backend.attention(heads, heads, heads, mask, 0.2)
        yield backend.modulate(given)
        yield backend.quantize(given, rounding[1].spec.format).values()
        for matrix in matrices.values():
            for fast in (False, True):
                for stage in (None, InputStage(rotation, rounding[1]), InputStage(None, static)):
                    layer = QLinear(matrix, vectors[0, :24], stage)
                    layer.fast = fast
                    yield from (layer(x, then) for then in epilogue)
                    yield layer.packed_weight.packed

    return run


@torch.no_grad()
@pytest.mark.parametrize("backend", HERE)
def test_all_that_runs_gives_the_same_bits(operations, backend, monkeypatch):
    monkeypatch.setenv(VARIABLE, backend)
    expected = list(operations())
    with torch.device("meta"):
        found = list(operations())
    assert len(found) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_time_that_is_a_number_is_read_on_the_cpu():
    clock = Clock("timestep", 0)
    with torch.device("meta"):
        clock.read(torch.nn.Identity(), (3.0,), {})
    assert clock.time.tolist() == [3.0]


@pytest.mark.skipif(not native.available(), reason="no native kernels here")
def test_tensors_without_numbers_are_refused_before_they_are_read():
    packed = native.pack_levels(torch.ones(8, 8, dtype=torch.int8))
    for call in (
        lambda: native.unpack(packed.to("meta")),
        lambda: native.pack_levels(torch.ones(8, 8, dtype=torch.int8, device="meta")),
    ):
        with pytest.raises(BadArgument, match="compute on the CPU, got a tensor on meta"):
            call()


RUNNING = ("kernels", "formats", "activations", "transforms", "layers")
FILES = [file for room in RUNNING for file in sorted((SOURCE / room).rglob("*.py"))]
FACTORIES = {
    "arange", "as_tensor", "empty", "eye", "full", "linspace", "logspace", "ones", "rand",
    "randint", "randn", "randperm", "scalar_tensor", "tensor", "tril_indices", "zeros",
}  # fmt: skip
SKELETONS = {"empty", "empty_scales", "from_config"}  # made where their maker's `with` says


def ambient(tree: ast.AST) -> Iterator[int]:
    """Lines that make a tensor wherever the ambient device is."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef) and node.name in SKELETONS:
            continue
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            made = ast.unparse(node.func.value) == "torch" and node.func.attr in FACTORIES
            if made and "device" not in {keyword.arg for keyword in node.keywords}:
                yield node.lineno
        yield from ambient(node)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_whoever_makes_a_tensor_at_run_time_says_where(file):
    assert not list(ambient(ast.parse(file.read_text())))


@pytest.mark.parametrize("ambient", ["meta", "cpu"])
def test_quantize_computes_where_the_model_is(ambient):
    model = pytest.importorskip("tiny_transformers").make()
    with torch.device(ambient):
        fewbit.quantize(model, "rtn", progress=False)
    assert all(tensor.device.type == "cpu" for tensor in model.state_dict().values())
