"""Every backend is a faster copy of the definition: the same integers, products to 1e-6."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import gelu, layer_norm

from fewbit.formats import FORMATS, FormatChoice, Minifloat, QTensor, Spec
from fewbit.kernels.choose import BACKENDS, backend_named
from fewbit.kernels.values import (
    AdaLNInput,
    Epilogue,
    QuantizedRows,
    Rotation,
    SplitRows,
    Weight,
    has_integer_rows,
    has_integers,
)
from fewbit.transforms.hadamard import Hadamard

CPU = torch.device("cpu")
DEFINITION = backend_named("reference")
COPIES = [b for b in BACKENDS if b.name != "reference" and b.why_not(CPU) is None]
copies = pytest.mark.parametrize("backend", COPIES, ids=lambda b: b.name)
CODED = [name for name, fmt in FORMATS.items() if has_integer_rows(Spec(fmt))]
WEIGHTS = ["e2m1/row/fp32", "e3m0/row/bf16", "e1m2/g64/fp16", "int8/row/fp32", "int4/tensor/fp32"]
WEIGHTS += ["uint4/row/fp32", "int2/g8/fp32", "e2m3/row/fp32", "e3m0|e2m1|e1m2/row/fp32"]
WEIGHTS += ["book4/row/fp32", "book2/g64/fp16", "book4/g64/factor", "e2m1/g16/factor"]
WEIGHTS += ["int4/g32/factor", "book3/g64/factor", "lut16/g16/table", "lut16/g8/table"]
WEIGHTS += ["int5/g32/gguf", "uint4/g32/gguf"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def weight_of(text: str, rows: int, columns: int) -> QTensor:
    spec, matrix = Spec.parse(text), normal(rows, columns, seed=1)
    scales = spec.fit(matrix)
    if isinstance(spec.format, FormatChoice):
        choices = torch.arange(rows, dtype=torch.uint8)[:, None] % len(spec.format.options)
        scales = type(scales)(scales.stored, choices=choices)
    return QTensor.quantize(matrix, spec, scales)


def rotation_of(width: int, block: int | None = None) -> Rotation:
    hadamard = Hadamard(width, block, seed=3)
    return Rotation(hadamard.signs(), tuple(hadamard.matrices()))


def same_codes(ours: QuantizedRows, exact: QuantizedRows) -> None:
    assert ours.integers.dtype == torch.int8
    assert torch.equal(ours.scales, exact.scales)
    assert torch.equal(ours.integers, exact.integers)
    assert torch.equal(ours.values(), exact.values())


def alike(ours: Tensor, exact: Tensor, terms: Tensor | None = None) -> None:
    """To 1e-6 of the largest, or of the summed magnitudes of its `terms` where few results may all
    have cancelled: float32 sums in another order; a half type adds its own rounding."""
    assert ours.dtype == exact.dtype
    assert ours.shape == exact.shape
    half = 0 if ours.dtype == torch.float32 else torch.finfo(ours.dtype).eps
    if ours.numel():
        allowed = (1e-6 + half) * (exact if terms is None else terms).abs().max().double()
        assert (ours.double() - exact.double()).abs().max() <= allowed


@copies
@pytest.mark.parametrize("name", CODED)
class TestQuantize:
    def test_every_level_every_tie_and_their_neighbours(self, backend, name):
        fmt = FORMATS[name]
        levels = torch.tensor(fmt.levels)
        ties = (levels[1:] + levels[:-1]) / 2
        marks = torch.cat([levels, ties])
        up, down = (torch.nextafter(marks, torch.tensor(s * torch.inf)) for s in (1, -1))
        values = torch.cat([marks, up, down, -marks, torch.tensor([0.0, -0.0])])
        values = values.clamp(-fmt.max, fmt.max)
        rows = torch.stack([values, values * 2.0**-30, values * 2.0**100])  # the scale is exact
        rows = torch.cat([rows, torch.full((3, 1), fmt.max) * rows[:, -3:-2].sign().abs()], 1)
        rows[:, -1] = fmt.max * torch.tensor([1.0, 2.0**-30, 2.0**100])
        same_codes(backend.quantize(rows, fmt), DEFINITION.quantize(rows, fmt))

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_random_rows_of_every_dtype(self, backend, name, dtype):
        x = (normal(37, 71) * normal(37, 1, seed=2).exp()).to(dtype)
        same_codes(backend.quantize(x, FORMATS[name]), DEFINITION.quantize(x, FORMATS[name]))

    @pytest.mark.parametrize("scale", [0, 1e-45, 1e-40, 1e-38, 3e-38, 1e30, 3e38])
    def test_the_ends_of_float32(self, backend, name, scale):
        x = torch.linspace(-1, 1, 64).mul(scale).repeat(3, 1)
        same_codes(backend.quantize(x, FORMATS[name]), DEFINITION.quantize(x, FORMATS[name]))

    @pytest.mark.parametrize("lost", [torch.nan, torch.inf, -torch.inf])
    def test_a_lost_row_has_no_scale(self, backend, name, lost):
        x = normal(4, 64)
        x[2, 7] = lost
        coded = backend.quantize(x, FORMATS[name])
        assert coded.scales.isnan()[:, 0].tolist() == [False, False, True, False]
        assert coded.values().isnan().all(1).tolist() == [False, False, True, False]


@copies
@pytest.mark.parametrize(
    ("width", "block"),
    [(1152, None), (4608, None), (192, None), (64, None), (72, None), (48, 12), (1408, 128)],
)
def test_the_rotation_is_the_same_to_the_last_bit(backend, width, block):
    x, rotation = normal(70, width) * normal(70, width, seed=4).exp(), rotation_of(width, block)
    assert torch.equal(backend.rotate(x, rotation), DEFINITION.rotate(x, rotation))
    for fmt in (FORMATS["e2m1"], FORMATS["int8"], FORMATS["book4"]):
        same_codes(backend.quantize(x, fmt, rotation), DEFINITION.quantize(x, fmt, rotation))
        half = x.bfloat16()
        same_codes(backend.quantize(half, fmt, rotation), DEFINITION.quantize(half, fmt, rotation))


def modulated(dtype: torch.dtype, width: int = 192) -> AdaLNInput:
    shift, scale = normal(2, 2, width, seed=6)
    return AdaLNInput(3 * normal(2, 70, width).to(dtype) + 1, shift, scale, 1e-6)


@copies
@pytest.mark.parametrize("dtype", DTYPES)
class TestModulate:
    def test_it_is_the_same_to_the_last_bit(self, backend, dtype):
        given = modulated(dtype)
        assert torch.equal(backend.modulate(given), DEFINITION.modulate(given))

    @pytest.mark.parametrize("name", ["e2m1", "int8"])
    def test_so_is_what_is_made_of_it(self, backend, dtype, name):
        for rotation in (None, rotation_of(192)):
            ours = backend.quantize(modulated(dtype), FORMATS[name], rotation)
            same_codes(ours, DEFINITION.quantize(modulated(dtype), FORMATS[name], rotation))

    def test_many_tokens_are_cut_into_parts_of_one_image(self, backend, dtype):
        given = modulated(dtype, width=4608)
        ours = backend.quantize(given, FORMATS["e2m1"])
        same_codes(ours, DEFINITION.quantize(given, FORMATS["e2m1"]))


def directions_of(rank: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(-127, 128, (rank, width), generator=generator, dtype=torch.int8)


def same_split(ours: SplitRows, exact: SplitRows) -> None:
    same_codes(ours.side, exact.side)
    assert torch.equal(ours.main, exact.main)


SPLITTING = [b for b in BACKENDS if b.name != "reference"]  # also the GPU's operations, here


@pytest.mark.parametrize("backend", SPLITTING, ids=lambda b: b.name)
class TestSplit:
    @settings(max_examples=60, deadline=None)
    @given(rows=st.integers(0, 40), width=st.integers(1, 90), rank=st.integers(1, 90))
    def test_both_parts_are_the_same_to_the_last_bit(self, backend, rows, width, rank):
        x, directions = normal(rows, width), directions_of(min(rank, width), width)
        same_split(backend.split(x, directions), DEFINITION.split(x, directions))

    @pytest.mark.parametrize("width", [1152, 4608])
    def test_so_they_are_where_float32_would_not_hold_the_sums(self, backend, width):
        x, directions = normal(9, width) * normal(9, 1).exp(), directions_of(16, width)
        x[0], x[1:3] = 1.0, directions[:2].sign()
        same_split(backend.split(x, directions), DEFINITION.split(x, directions))

    def test_a_lost_row_is_lost_in_both_parts_and_spoils_no_other(self, backend):
        x, directions = normal(5, 64), directions_of(8, 64)
        x[1, 3], x[3, 9] = torch.nan, torch.inf
        split = backend.split(x, directions)
        lost = [False, True, False, True, False]
        assert split.side.scales.isnan()[:, 0].tolist() == lost
        assert split.main.isnan().all(1).tolist() == split.main.isnan().any(1).tolist() == lost


@copies
@pytest.mark.parametrize("name", ["e2m1", "int8", "book4", "e4m3", None])
@pytest.mark.parametrize("dtype", DTYPES)
class TestBoundSplit:
    """With all that is done to a row on the way."""

    def same(self, backend, given, rotation, name, rank=8):
        fmt = None if name is None else FORMATS[name]
        spec = None if fmt is None else Spec(fmt)
        if spec is not None and not backend.accepts_codes(spec):
            pytest.skip("it is handed values")
        directions = directions_of(rank, given.shape[-1])
        ours = backend.splitter(directions, rotation, spec)(given)
        exact = DEFINITION.split(given, directions, rotation, fmt)
        same_codes(ours.side, exact.side)
        if fmt is None:
            assert torch.equal(ours.main, exact.main)
        elif fmt.exact_in(8):
            same_codes(ours.main, exact.main)

    def test_rows(self, backend, dtype, name):
        self.same(backend, normal(2, 35, 192).to(dtype), None, name)
        self.same(backend, normal(0, 192).to(dtype), None, name)

    def test_after_a_rotation(self, backend, dtype, name):
        for width, block in ((192, None), (72, None), (48, 12)):
            rotation = rotation_of(width, block)
            self.same(backend, normal(35, width).to(dtype), rotation, name)

    def test_after_a_modulation(self, backend, dtype, name):
        for rotation in (None, rotation_of(192)):
            self.same(backend, modulated(dtype), rotation, name)


def test_a_split_loses_nothing():
    """x is what both parts stand for, to a float32 rounding of each."""
    x, directions = normal(40, 72), directions_of(6, 72)
    split = DEFINITION.split(x, directions)
    together = split.main.double() + split.side.values().double() @ directions.double()
    assert (together - x).abs().max() <= 2 * torch.finfo(torch.float32).eps * x.abs().max()


def test_a_split_by_hand():
    """Of (3, 1) along (127, 0) and (0, -127): components 3 / 127 and -1 / 127, as 127 and -42
    steps of 3 / 127²."""
    x = torch.tensor([[3.0, 1.0, 0.5]])
    split = DEFINITION.split(x, torch.tensor([[127, 0, 0], [0, -127, 0]], dtype=torch.int8))
    assert split.side.integers.tolist() == [[127, -42]]
    alike(split.side.scales, torch.tensor([[3 / 127**2]]))
    alike(split.main, torch.tensor([[0.0, 1 - 42 * 3 / 127, 0.5]]))


def test_the_definition_of_modulation_is_torchs_layer_norm():
    given = modulated(torch.float32)
    exact = layer_norm(given.x.double(), (192,), eps=1e-6)
    exact = exact * (1 + given.scale[:, None].double()) + given.shift[:, None].double()
    assert (DEFINITION.modulate(given) - exact).abs().max() <= 1e-6 * exact.abs().max()


@copies
@pytest.mark.parametrize(
    "weight", ["e2m1/row/fp32", "e1m2/g64/fp16", "uint4/row/fp32", "e4m3/row/fp32"]
)
@pytest.mark.parametrize("activation", ["e2m1", None])
@pytest.mark.parametrize("dtype", DTYPES)
class TestAfter:
    """What follows a product, of two images with 19 and of two with 300 tokens."""

    def both(self, backend, weight, activation, dtype, epilogue, tokens=19):
        packed, x = weight_of(weight, 1160, 128), normal(2 * tokens, 128).to(dtype)
        given = x if activation is None else DEFINITION.quantize(x, FORMATS[activation])
        laid = Weight(packed, backend.layout(packed, None, False))
        ours = backend.linear(given, laid, None, dtype, epilogue)
        return ours, DEFINITION.linear(given, Weight(packed), None, dtype, epilogue)

    def test_gelu(self, backend, weight, activation, dtype):
        ours, exact = self.both(backend, weight, activation, dtype, Epilogue(gelu=True))
        alike(ours, exact)

    @pytest.mark.parametrize("gelu", [False, True])
    def test_an_addend(self, backend, weight, activation, dtype, gelu):
        addend = 100 * normal(38, 1160, seed=9)
        epilogue = Epilogue(gelu).plus(addend)
        ours, exact = self.both(backend, weight, activation, dtype, epilogue)
        alike(ours, exact, addend)

    def test_an_addend_of_few_channels(self, backend, weight, activation, dtype):
        packed, x, addend = weight_of(weight, 3, 128), normal(5, 128).to(dtype), normal(5, 3)
        given = x if activation is None else DEFINITION.quantize(x, FORMATS[activation])
        ours = backend.linear(given, Weight(packed), None, dtype, Epilogue().plus(addend))
        alike(ours, DEFINITION.linear(given, Weight(packed), None, dtype, Epilogue().plus(addend)))

    @pytest.mark.parametrize("tokens", [19, 300])
    def test_all_of_it(self, backend, weight, activation, dtype, tokens):
        residual = normal(2 * tokens, 1160, seed=8).to(dtype)
        gated = Epilogue(gate=normal(2, 1160, seed=7), residual=residual)
        epilogue = gated.plus(normal(2 * tokens, 1160, seed=9))
        alike(*self.both(backend, weight, activation, dtype, epilogue, tokens))

    @pytest.mark.parametrize("tokens", [19, 300])
    def test_gate_and_residual(self, backend, weight, activation, dtype, tokens):
        residual = normal(2 * tokens, 1160, seed=8).to(dtype)
        epilogue = Epilogue(gate=normal(2, 1160, seed=7), residual=residual)
        alike(*self.both(backend, weight, activation, dtype, epilogue, tokens))


def test_after_is_what_its_words_say():
    product, gate, residual = normal(6, 5), normal(2, 5, seed=1), normal(6, 5, seed=2).bfloat16()
    assert torch.equal(Epilogue(gelu=True)(product), gelu(product, approximate="tanh"))
    gated = residual.float() + gate.repeat_interleave(3, 0) * product
    assert torch.equal(Epilogue(gate=gate, residual=residual)(product), gated)
    for part in (slice(0, 3), slice(1, 2), slice(3, 5)):
        some = Epilogue(gate=gate, residual=residual)(product[part], part.start)
        assert torch.equal(some, gated[part])
    assert Epilogue()(product) is product
    addend = normal(6, 5, seed=3)
    whole = product + addend
    assert torch.equal(Epilogue().plus(addend)(product), whole)
    assert torch.equal(Epilogue(gelu=True).plus(addend)(product), Epilogue(gelu=True)(whole))
    last = Epilogue(gate=gate, residual=residual).plus(addend)(product[3:], 3)
    assert torch.equal(last, Epilogue(gate=gate, residual=residual)(whole)[3:])


@copies
@pytest.mark.parametrize("text", WEIGHTS)
class TestLinear:
    @pytest.mark.parametrize("fast", [False, True])
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("bias", [False, True])
    @pytest.mark.parametrize("activation", ["e2m1", "int8", None])
    def test_it_is_the_definition(self, backend, text, activation, bias, dtype, fast):
        packed, x = weight_of(text, 40, 128), normal(19, 128).to(dtype)
        added = normal(40, seed=3) if bias else None
        weight = Weight(
            packed, backend.layout(packed, activation and Spec(FORMATS[activation]), fast)
        )
        given = x if activation is None else DEFINITION.quantize(x, FORMATS[activation])
        ours = backend.linear(given, weight, added, dtype)
        alike(ours, DEFINITION.linear(given, Weight(packed), added, dtype))

    @pytest.mark.parametrize("rows", [0, 1, 2, 3, 5, 8, 17, 65])
    def test_any_number_of_rows(self, backend, text, rows):
        packed = weight_of(text, 24, 192)
        weight = Weight(packed, backend.layout(packed, None, False))
        for x in (normal(rows, 192), DEFINITION.quantize(normal(rows, 192), FORMATS["e2m1"])):
            ours = backend.linear(x, weight, None, torch.float32)
            alike(ours, DEFINITION.linear(x, Weight(packed), None, torch.float32))


@copies
@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(0, 20),
    columns=st.integers(1, 90),
    outs=st.integers(1, 40),
    weight=st.sampled_from(["e2m1", "e3m0", "int8", "int3", "uint6", "e1m1"]),
    activation=st.sampled_from(["e2m1", "e3m0", "int8", "e2m3", "int6"]),
)
def test_shapes_that_are_multiples_of_nothing(backend, rows, columns, outs, weight, activation):
    packed, x = weight_of(f"{weight}/row/fp32", outs, columns), normal(rows, columns)
    coded = backend.quantize(x, FORMATS[activation])
    same_codes(coded, DEFINITION.quantize(x, FORMATS[activation]))
    for given_rows in (coded, x):
        laid = Weight(packed, backend.layout(packed, None, False))
        ours = backend.linear(given_rows, laid, None, torch.float32)
        exact = DEFINITION.linear(given_rows, Weight(packed), None, torch.float32)
        alike(ours, exact, x.abs() @ packed.dequantize().abs().T)


@copies
def test_strided_rows(backend):
    x = normal(192, 64).t()[::2]
    fmt, rotation = FORMATS["e2m1"], rotation_of(192)
    same_codes(backend.quantize(x, fmt), DEFINITION.quantize(x, fmt))
    same_codes(backend.quantize(x, fmt, rotation), DEFINITION.quantize(x, fmt, rotation))
    packed = weight_of("int8/row/fp32", 24, 192)
    ours = backend.linear(x, Weight(packed), None, torch.float32)
    alike(ours, DEFINITION.linear(x, Weight(packed), None, torch.float32))


WIDE = [
    name
    for name, fmt in FORMATS.items()
    if isinstance(fmt, Minifloat) and not fmt.exact_in(8) and fmt.signed
]


@pytest.mark.parametrize(
    ("backend", "name"),
    [(b, name) for b in COPIES for name in WIDE if b.accepts_codes(Spec(FORMATS[name]))],
)
@pytest.mark.parametrize("text", WEIGHTS)
@pytest.mark.parametrize("rows", [0, 1, 8, 9, 65])
def test_levels_too_wide_for_int8_are_multiplied_exactly(backend, name, text, rows):
    for dtype in (torch.float32, torch.bfloat16):
        packed, x, bias = weight_of(text, 40, 128), normal(rows, 128).to(dtype), normal(40, seed=2)
        coded, exact = backend.quantize(x, FORMATS[name]), Spec(FORMATS[name]).round(x)
        assert torch.equal(coded.values(), exact)
        for epilogue in (Epilogue(), Epilogue(gelu=True)):
            ours = backend.linear(coded, Weight(packed), bias, dtype, epilogue)
            alike(ours, DEFINITION.linear(exact, Weight(packed), bias, dtype, epilogue))


@copies
@pytest.mark.parametrize("lost", [torch.nan, torch.inf])
@pytest.mark.parametrize("activation", ["e2m1", "e3m4", None])
def test_a_lost_row_gives_no_number_and_spoils_no_other(backend, activation, lost):
    packed, x = weight_of("e2m1/row/fp32", 24, 64), normal(5, 64)
    x[3, 9] = lost
    if activation is not None and not backend.accepts_codes(Spec(FORMATS[activation])):
        pytest.skip("it is handed values")
    given = x if activation is None else backend.quantize(x, FORMATS[activation])
    finite = backend.linear(given, Weight(packed), None, torch.float32).isfinite()
    assert finite.all(1).tolist() == [True, True, True, False, True]
    assert not finite[3].any()


@pytest.mark.parametrize("weight", ["e3m0", "int8", "e2m3"])
@pytest.mark.parametrize("activation", ["e3m0", "int8"])
@copies
def test_the_largest_sums_are_exact(backend, weight, activation):
    """All at the largest level, wider than any layer: every product and the sum are integers."""
    columns, fmt = 20_000, FORMATS[activation]
    packed = QTensor.quantize(torch.ones(16, columns), Spec(FORMATS[weight]))
    x = torch.ones(2, columns)
    ours = backend.linear(backend.quantize(x, fmt), Weight(packed), None, torch.float32)
    assert (ours - columns).abs().max() <= 1e-6 * columns


def test_the_definition_of_a_product_is_that_of_its_values():
    for text in WEIGHTS:
        packed, x = weight_of(text, 40, 128), normal(19, 128)
        coded = DEFINITION.quantize(x, FORMATS["e2m1"])
        exact = coded.values().double() @ packed.dequantize().double().T
        ours = DEFINITION.linear(coded, Weight(packed), None, torch.float32)
        assert (ours - exact).abs().max() <= 1e-6 * exact.abs().max()


def test_coded_values_are_what_the_format_rounds_to():
    for name in CODED:
        x = normal(16, 64)
        assert torch.equal(
            DEFINITION.quantize(x, FORMATS[name]).values(), Spec(FORMATS[name]).round(x)
        )


@pytest.mark.parametrize("text", [text for text in WEIGHTS if has_integers(Spec.parse(text))])
def test_integers_times_their_scales_are_the_weight(text):
    weight = Weight(weight_of(text, 40, 128))
    scales = weight.integer_scales()
    values = weight.integers().view(40, scales.shape[1], -1) * scales[..., None]
    assert torch.equal(values.view(40, 128), weight.packed.dequantize())
    assert has_integers(weight.spec)
