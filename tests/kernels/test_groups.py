"""Inputs in groups of columns: every instruction set gives the bits of the definition."""

import pytest
import torch
from torch import Tensor

from fewbit.activations.centred import STRETCHES, Centred
from fewbit.activations.dynamic import Dynamic
from fewbit.errors import BadArgument
from fewbit.formats import FORMATS, MXFP4, NVFP4_TOKEN, QTensor, Spec
from fewbit.kernels.choose import backend_named
from fewbit.kernels.native import ops as native
from fewbit.kernels.values import AdaLNInput, Epilogue, QuantizedRows, Rotation, Weight
from fewbit.transforms.hadamard import Hadamard

if not native.available():
    pytest.skip(f"no native kernels: {native.why_not()}", allow_module_level=True)

NATIVE, DEFINITION = backend_named("native"), backend_named("reference")
TEXTS = ["e2m1/g16/fp32", "e3m0/g32/e8m0", "int4/g8/e4m3row", "int8/g64/fp32", "int4/g24/factor"]
TEXTS += ["book4/g32/factor", "book2/g24/factor", "book3/g16/e8m0", "e2m3/g32/e4m3row"]
SPECS = [NVFP4_TOKEN, MXFP4, *map(Spec.parse, TEXTS)]
specs = pytest.mark.parametrize("spec", SPECS, ids=str)
pytestmark = pytest.mark.usefixtures("isa")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def wild(*shape: int) -> Tensor:
    """Rows of all sizes, some of them or of their groups nothing but zeros."""
    x = normal(*shape) * torch.logspace(-42, 36, shape[-2])[:, None]
    x[..., 3, :], x[..., 5, :64], x[..., 7, 8:] = 0, 0, 0
    return x


def same(ours: Tensor, exact: Tensor) -> None:
    """Lost numbers alike."""
    assert torch.equal(ours.isnan(), exact.isnan())
    assert torch.equal(ours.nan_to_num(), exact.nan_to_num())


@specs
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_become_what_the_definition_makes_of_them(spec, dtype):
    x = wild(23, 192).to(dtype)
    coded = NATIVE.coder(spec, None)(x)
    assert coded.integers.dtype == torch.int8
    assert coded.scales.shape == (23, spec.float_groups(192))
    same(coded.values(), spec.round(x))


@specs
def test_what_is_not_finite_is_lost_as_in_the_definition(spec):
    x = normal(6, 192)
    x[1, 3], x[3, 100], x[4, 64:] = torch.nan, torch.inf, -torch.inf
    coded = NATIVE.coder(spec, None)(x)
    same(coded.values(), spec.round(x))
    assert not coded.integers[coded.values().isnan()].any()


@specs
def test_so_are_rows_around_the_mean_of_their_image(spec):
    x = 3 * normal(3, 1, 192, seed=1) + wild(3, 23, 192)
    ours = Centred(spec).coder(NATIVE, None)
    for given in (x, x[0], x[:1], normal(2, 5, 7, 192), normal(2, 5, 192)):
        coded = ours(given)
        assert isinstance(coded, QuantizedRows)
        same(coded.values().view(given.shape), Centred(spec)(given))
    x[1, 2, 9] = torch.nan
    same(ours(x).values().view(x.shape), Centred(spec)(x))


@pytest.mark.parametrize("text", ["e2m1/g16/fp32", "book4/g32/e4m3row"])
def test_some_scales_are_stretched_and_some_are_shortened(text):
    """Or the search above would be one in name."""
    spec, x = Spec.parse(text), normal(40, 192)
    full, best = (NATIVE.grouper(spec, some)(x, None).scales for some in ((), STRETCHES))
    assert ((best / full).min(), (best / full).max()) != (1, 1)
    assert (best < full).any()
    assert (best > full).any()


@specs
def test_after_all_that_is_done_to_a_row(spec):
    shift, scale = normal(2, 2, 192, seed=6)
    hadamard, directions = Hadamard(192, None, 3), _int8(8, 192)
    rotation = Rotation(hadamard.signs(), tuple(hadamard.matrices()))
    for given in (normal(2, 11, 192), AdaLNInput(normal(2, 11, 192), shift, scale, 1e-6)):
        rotated = DEFINITION.rotate(DEFINITION.rows(given), rotation)
        same(NATIVE.coder(spec, rotation)(given).values(), spec.round(rotated))
        split = DEFINITION.split(given, directions, rotation)
        for ours in (
            NATIVE.splitter(directions, rotation, spec)(given),
            Dynamic(spec).splitter(NATIVE, rotation, directions)(given),
        ):
            assert torch.equal(ours.side.integers, split.side.integers)
            same(ours.main.values(), spec.round(split.main))
        ours = Centred(spec).splitter(NATIVE, rotation, directions)(given)
        assert torch.equal(ours.side.values(), split.side.values())
        exact = Centred(spec)(split.main.view(2, 11, 192)).view(22, 192)
        same(ours.main.values(), exact)


def _int8(rows: int, columns: int) -> Tensor:
    return torch.randint(-127, 128, (rows, columns), dtype=torch.int8)


def in_order(x: QuantizedRows, weight: Weight) -> Tensor:
    """(sum * input scale) * weight scale, one group after another, in float32; an only input scale
    comes last where the weight has groups."""
    integers, scales = weight.integers(), weight.integer_scales()
    last = x.scales if x.scales.shape[1] == 1 < scales.shape[1] else None
    spans = max(scales.shape[1], x.scales.shape[1])
    total = torch.zeros(len(x.integers), len(integers))
    for span in range(spans):
        part = slice(span * integers.shape[1] // spans, (span + 1) * integers.shape[1] // spans)
        sums = (x.integers[:, part].double() @ integers[:, part].double().T).float()
        of_x, of_w = (s[:, span * s.shape[1] // spans, None] for s in (x.scales, scales))
        total = total + sums * (of_x if last is None else 1) * of_w.T
    return total if last is None else total * last


PAIRS = [
    ("book4/g32/fp16", "book4/g32/factor"),  # w4a4 of best
    ("int6/g64/fp16", "book4/g32/factor"),  # and what it becomes under a budget
    ("int8/row/fp32", "book4/g32/factor"),
    ("book2/g64/factor", "book4/g32/factor"),
    ("e2m1/g16/e4m3", "e2m1/g16/e4m3row"),  # nvfp4
    ("e2m1/g32/e8m0", "e2m1/g32/e8m0"),  # mxfp4
    ("e3m0/g64/bf16", "int8/g64/fp32"),
    ("uint4/g64/fp32", "e3m0/g8/fp32"),
]
pairs = pytest.mark.parametrize(("weight", "activation"), PAIRS)


def laid(text: str, rows: int, columns: int) -> Weight:
    packed = QTensor.quantize(normal(rows, columns, seed=1), Spec.parse(text))
    return Weight(packed, NATIVE.layout(packed, None, True))


@pairs
@pytest.mark.parametrize(("m", "n"), [(1, 1), (7, 65), (13, 130), (77, 64)])
def test_spans_are_summed_exactly_and_in_order(weight, activation, m, n):
    given = laid(weight, n, 192)
    x = NATIVE.coder(Spec.parse(activation), None)(normal(m, 192))
    ours = NATIVE.multiplier(given, None)(x, torch.float32, Epilogue())
    assert torch.equal(ours, in_order(x, given))


@pairs
def test_they_say_that_they_are_multiplied_as_integers(weight, activation):
    weight, activation = map(Spec.parse, (weight, activation))
    assert "integer products" in NATIVE.path(weight, activation, (70, 192))


@pytest.mark.parametrize("level", ["most", "least"])
@pairs
def test_the_largest_sums_do_not_overflow(weight, activation, level):
    """All codes at an end."""
    spec, given = Spec.parse(activation), laid(weight, 70, 192)
    end = spec.format.min if level == "least" else spec.format.max
    packed = QTensor.quantize(torch.full((70, 192), end), Spec.parse(weight))
    given = Weight(packed, NATIVE.layout(packed, None, True))
    x = NATIVE.coder(spec, None)(torch.full((9, 192), end))
    ours = NATIVE.multiplier(given, None)(x, torch.float32, Epilogue())
    assert torch.equal(ours, in_order(x, given))


@pairs
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_side", [False, True])
def test_a_layer_is_what_its_values_make(weight, activation, dtype, with_side):
    """To 1e-6 of the largest, as every product, with all that follows it."""
    spec, main, side = Spec.parse(activation), laid(weight, 70, 192), laid("int8/row/bf16", 70, 8)
    images, bias, directions = 2 + normal(2, 10, 192), normal(70, seed=3), _int8(8, 192)
    gate, residual = normal(2, 70, seed=4), normal(20, 70, seed=5).to(dtype)
    stage = Centred(spec)
    multiply = NATIVE.multiplier(main, bias)
    x = stage.coder(NATIVE, None)(images)
    values = x.values() @ main.packed.dequantize().T + bias
    if with_side:
        x = stage.splitter(NATIVE, None, directions)(images)
        values = x.main.values() @ main.packed.dequantize().T + bias
        values = values + x.side.values() @ side.packed.dequantize().T
        multiply = NATIVE.added(multiply, NATIVE.multiplier(side, None))
    for epilogue in (Epilogue(), Epilogue(gelu=True), Epilogue(gate=gate, residual=residual)):
        ours, exact = multiply(x, dtype, epilogue), epilogue(values)
        eps = 1e-6 + (0 if dtype == torch.float32 else torch.finfo(dtype).eps)
        assert ours.dtype == dtype
        assert (ours - exact).abs().max() <= 2 * eps * exact.abs().max()


@pytest.mark.parametrize("columns", [8, 32])
def test_one_group_may_be_all_of_a_row(columns):
    spec, weight, bias = (
        Spec(FORMATS["book4"], columns),
        laid("book4/row/fp16", 9, columns),
        normal(9),
    )
    x = Centred(spec).coder(NATIVE, None)(2 + normal(3, 5, columns))
    ours = NATIVE.multiplier(weight, bias)(x, torch.float32, Epilogue())
    exact = x.values() @ weight.packed.dequantize().T + bias
    assert (ours - exact).abs().max() <= 1e-6 * exact.abs().max()


@pytest.mark.parametrize(
    ("weight", "activation"),
    [("e2m1/g32/fp16", "e2m1/g48/fp32"), ("e3m4/row/fp32", "e2m1/g16/fp32")],
)
def test_groups_that_do_not_go_together_are_multiplied_as_values(weight, activation):
    given, spec = laid(weight, 20, 192), Spec.parse(activation)
    assert "integer" not in NATIVE.path(given.spec, spec, (20, 192))
    x = NATIVE.coder(spec, None)(normal(9, 192))
    ours = NATIVE.multiplier(given, None)(x, torch.float32, Epilogue())
    exact = x.values() @ given.packed.dequantize().T
    assert (ours - exact).abs().max() <= 1e-6 * exact.abs().max()


def test_an_input_of_no_rows():
    for stage in (Dynamic(NVFP4_TOKEN), Centred(NVFP4_TOKEN)):
        for shape in ((0, 192), (2, 0, 192), (0, 5, 192)):
            coded = stage.coder(NATIVE, None)(torch.empty(shape))
            out = NATIVE.multiplier(laid("e2m1/g16/e4m3", 9, 192), None)(
                coded, torch.float32, Epilogue()
            )
            assert out.shape == (0, 9)


def test_what_has_no_kernel_stays_values():
    for text in ("e2m1/g12/fp32", "e2m1/g32/fp16", "e3m4/g32/fp32", "int4/g384/fp32"):
        assert NATIVE.grouper(Spec.parse(text), STRETCHES) is None
        assert not NATIVE.accepts_codes(Spec.parse(text))
        x = Centred(Spec.parse(text)).coder(NATIVE, None)(normal(2, 3, 384))
        assert isinstance(x, Tensor)
    with pytest.raises(BadArgument, match="groups of 512 columns with scales in fp32"):
        native.Groups(512, Spec.parse("int4/row/fp32").scale)


def test_a_wrong_mean_is_refused():
    rows = native.Rows(FORMATS["int4"], None, native.Groups(16, NVFP4_TOKEN.scale))
    with pytest.raises(BadArgument, match="have no means"):
        rows(normal(5, 32), mean=normal(2, 32))
    with pytest.raises(BadArgument, match="groups of 16 do not divide 24 columns"):
        rows(normal(5, 24))
