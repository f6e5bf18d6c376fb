"""The GPU's operations, run on the CPU, which knows them all: the same integers, the same sums."""

import pytest
import torch

from fewbit.formats import FORMATS, QTensor, Spec
from fewbit.kernels.choose import backend_named
from fewbit.kernels.cuda import FP8, fits_tensor_cores, fp8_levels, is_fp8
from fewbit.kernels.values import QuantizedRows, Weight

CUDA, DEFINITION = backend_named("cuda"), backend_named("reference")
IN_FP8 = [name for name, fmt in FORMATS.items() if is_fp8(fmt)]
HALF = 2.0**-8  # of bfloat16, in which a row-wise product is handed out


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def packed(name: str, rows: int = 48, columns: int = 64) -> QTensor:
    return QTensor.quantize(normal(rows, columns, seed=1), Spec(FORMATS[name]))


def test_which_formats_are_fp8_up_to_a_power_of_two():
    floats = ["e1m1", "e2m0", "e2m1", "e1m2", "e3m0", "e2m3", "e3m2", "e4m3"]
    assert ["book2", "book3", "book4", *floats] == IN_FP8


@pytest.mark.parametrize("name", IN_FP8)
def test_every_code_becomes_its_byte_by_a_shift(name):
    fmt = FORMATS[name]
    codes = torch.arange(2**fmt.bits, dtype=torch.uint8).view(1, -1)
    every = QTensor.empty(1, codes.shape[1], Spec(fmt))
    from fewbit.formats.pack import pack

    every = QTensor(pack(codes, fmt.bits), every.scales, every.spec, every.columns)
    values = fp8_levels(every).float()[0]
    assert torch.equal(values.nan_to_num(7e7), torch.tensor(fmt.code_values()).nan_to_num(7e7))


@pytest.mark.parametrize("name", IN_FP8)
def test_inputs_become_the_levels_of_the_definition(name):
    x, fmt = normal(9, 64) * normal(9, 1, seed=5).exp(), FORMATS[name]
    coded = CUDA.quantize(x, fmt)
    assert coded.integers.dtype == FP8
    assert torch.equal(coded.values(), Spec(fmt).round(x))


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("activation", ["e2m1", "e3m0", "e4m3", "int8", "book4"])
@pytest.mark.parametrize("weight", ["e2m1", "e3m0", "e2m3", "int8", "int4", "book4"])
def test_products_are_those_of_the_definition(weight, activation, dtype, fast):
    matrix, x = packed(weight), normal(5, 64)
    coded = CUDA.quantize(x, FORMATS[activation])
    laid = Weight(matrix, CUDA.layout(matrix, Spec(FORMATS[activation]), fast))
    ours = CUDA.linear(coded, laid, normal(48, seed=3), dtype)
    exact = DEFINITION.linear(coded.values(), Weight(matrix), normal(48, seed=3), torch.float32)
    assert ours.dtype == dtype
    through_half = dtype != torch.float32
    allowed = (2 * HALF if through_half else 1e-6) * exact.abs().max()
    assert (ours.float() - exact).abs().max() <= allowed


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", ["e2m1", "book4", "int8"])
def test_factors_of_groups_make_integers_and_no_fp8(activation, dtype, fast):
    matrix = QTensor.quantize(normal(48, 64, seed=1), Spec.parse("book4/g16/factor"))
    x, rounded = normal(5, 64), Spec(FORMATS[activation])
    laid = Weight(matrix, CUDA.layout(matrix, rounded, fast))
    coded = CUDA.quantize(x, rounded.format)
    exact = DEFINITION.linear(coded.values(), Weight(matrix), None, torch.float32)
    ours = CUDA.linear(coded, laid, None, dtype).float()
    assert (ours - exact).abs().max() <= (
        1e-6 if dtype == torch.float32 else 2 * HALF
    ) * exact.abs().max()
    assert (laid.layout is not None) == (fast and activation == "int8")


@pytest.mark.parametrize("weight", ["e2m1", "e3m0", "e1m2"])
@pytest.mark.parametrize("activation", ["e2m1", "e3m0", "e1m2"])
def test_fp8_sums_of_few_bit_floats_are_the_integers(weight, activation):
    """In float32 no rounding is left: both paths must give the very same sums."""
    matrix, x = packed(weight, 32, 1152), normal(4, 1152)
    coded = DEFINITION.quantize(x, FORMATS[activation])
    sums = coded.integers.double() @ Weight(matrix).integers().double().T
    step = FORMATS[activation].step * FORMATS[weight].step
    levels = (coded.integers.float() * FORMATS[activation].step).to(FP8)
    one = QuantizedRows(levels, torch.ones(4, 1), coded.largest)
    plain = QTensor(
        matrix.packed, Spec(FORMATS[weight]).fit(torch.ones(32, 1152)), matrix.spec, 1152
    )
    plain.scales.stored.fill_(1.0)
    ours = CUDA.linear(one, Weight(plain), None, torch.float32)
    assert torch.equal(ours.double(), sums * step)


def test_few_rows_are_filled_up_and_cut_off_again():
    matrix = packed("int8")
    for rows in (0, 1, 16, 33):
        coded = CUDA.quantize(normal(rows, 64), FORMATS["int8"])
        assert CUDA.linear(coded, Weight(matrix), None, torch.float32).shape == (rows, 48)


def test_what_tensor_cores_do_not_take_is_multiplied_in_the_dtype_of_the_model():
    for name, rows, columns in (("e2m1", 40, 64), ("e2m1", 48, 60), ("int8", 48, 65)):
        matrix, x = packed(name, rows, columns), normal(7, columns)
        assert not fits_tensor_cores(matrix.spec, rows, columns)
        coded = CUDA.quantize(x, FORMATS["e2m1"])
        ours = CUDA.linear(coded, Weight(matrix), None, torch.bfloat16)
        exact = coded.values() @ matrix.dequantize().T
        assert (ours.float() - exact).abs().max() <= 4 * HALF * exact.abs().max()


def test_a_lost_row_gives_no_number():
    x = normal(3, 64)
    x[1, 5] = torch.inf
    for name in ("e2m1", "int8"):
        ours = CUDA.linear(
            CUDA.quantize(x, FORMATS[name]), Weight(packed(name)), None, torch.float32
        )
        assert ours.isnan().all(1).tolist() == [False, True, False]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("activation", ["e2m1", "e3m0", "int8"])
def test_a_gpu_gives_the_integers_of_the_definition(activation):
    x, matrix, fmt = normal(40, 1152), packed("e2m1", 64, 1152), FORMATS[activation]
    ours, exact = CUDA.quantize(x.cuda(), fmt), DEFINITION.quantize(x, fmt)
    assert torch.equal(ours.values().cpu(), exact.values())
    there = QTensor(
        matrix.packed.cuda(),
        type(matrix.scales)(matrix.scales.stored.cuda()),
        matrix.spec,
        matrix.columns,
    )
    product = CUDA.linear(ours, Weight(there), None, torch.float32).cpu()
    expected = DEFINITION.linear(exact, Weight(matrix), None, torch.float32)
    assert (product - expected).abs().max() <= 1e-6 * expected.abs().max()
