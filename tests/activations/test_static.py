"""Static steps: every code, every part by its own step, every row for itself."""

import pytest
import torch
from torch import Tensor

from fewbit.activations.clock import Clock, TimeBins
from fewbit.activations.static import Static, from_config
from fewbit.errors import BadArgument, BrokenFile
from fewbit.formats import QTensor, Spec
from fewbit.kernels.choose import BACKENDS as ALL
from fewbit.kernels.choose import VARIABLE, backend_for
from fewbit.kernels.values import QuantizedRows, Rotation
from fewbit.layers.linear import QLinear
from fewbit.layers.stage import InputStage
from fewbit.transforms.hadamard import Hadamard

BACKENDS = [one.name for one in ALL if one.why_not(torch.device("cpu")) is None]
INT8 = Spec.parse("int8/tensor/fp32")


def static(steps: list[list[float]], spec: Spec = INT8, time: object = None) -> Static:
    bins = TimeBins(torch.arange(len(steps)) * 100.0)
    bins.clock = Clock("t", 0)
    if time is not None:
        bins.clock.read(bins, (time,), {})
    return Static(spec, torch.tensor(steps), bins)


@pytest.mark.parametrize("name", ["int8", "int6", "uint8", "uint6"])
def test_every_level_stays_and_ties_go_to_even(name):
    quantizer = static([[0.25]], Spec.parse(f"{name}/tensor/fp32"))
    levels = torch.tensor(quantizer.spec.format.levels)
    assert torch.equal(quantizer(levels[None] * 0.25), levels[None] * 0.25)
    between = (levels[1:] + levels[:-1]) / 2
    even = torch.where(levels[1:] % 2 == 0, levels[1:], levels[:-1])
    assert torch.equal(quantizer(between[None] * 0.25), even[None] * 0.25)
    ends = torch.tensor([[-1e6, 1e6]])
    assert quantizer(ends).tolist() == [[levels[0] * 0.25, levels[-1] * 0.25]]


def test_each_part_of_the_second_axis_has_its_own_step():
    x = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    whole = static([[0.1, 0.02, 0.3]])(x)
    for part, step in enumerate((0.1, 0.02, 0.3)):
        assert torch.equal(whole[:, part], static([[step]])(x[:, part]))


def test_each_row_has_the_step_of_its_time():
    x = torch.randn(3, 7, 4, generator=torch.Generator().manual_seed(0))
    mixed = static([[0.1], [0.02]], time=torch.tensor([120, 10, 49]))(x)
    alone = [static([[step]])(row[None]) for step, row in zip((0.02, 0.1, 0.1), x, strict=True)]
    assert torch.equal(mixed, torch.cat(alone))


def test_a_row_does_not_depend_on_its_batch_mates():
    x = torch.randn(8, 7, 4, generator=torch.Generator().manual_seed(0))
    times = torch.linspace(0, 200, 8)
    together = static([[0.1], [0.02]], time=times)(x)
    for row in range(8):
        assert torch.equal(
            together[row : row + 1], static([[0.1], [0.02]], time=times[row])(x[[row]])
        )


def test_tokens_that_were_laid_side_by_side_keep_the_time_of_their_row():
    x = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))
    quantizer = static([[0.1], [0.02]], time=torch.tensor([0, 100]))
    assert torch.equal(quantizer(x.flatten(0, 1)), quantizer(x).flatten(0, 1))


def test_nothing_is_measured_at_run_time(monkeypatch):
    def refuse(*_, **__) -> Tensor:
        raise AssertionError("a range was measured")

    for name in ("amax", "max", "amin", "aminmax", "std"):
        monkeypatch.setattr(Tensor, name, refuse)
    x = torch.tensor([[-1000.0, 1000.0]])
    assert torch.equal(static([[0.5]])(x), torch.tensor([[-64.0, 63.5]]))


@pytest.mark.parametrize("lost", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_does_not_look_like_a_number(lost):
    assert static([[0.5]])(torch.tensor([[lost, 1.0]])).isnan().tolist() == [[True, False]]


@pytest.mark.parametrize("name", ["int8", "int6", "int4"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_product_is_handed_the_codes(name, backend, monkeypatch):
    monkeypatch.setenv(VARIABLE, backend)
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    times = torch.tensor([120, 10])
    quantizer = static([[0.1], [0.02]], Spec.parse(f"{name}/tensor/fp32"), times)
    coded = quantizer.code(backend_for(x), None, x)
    assert isinstance(coded, QuantizedRows)
    assert coded.integers.dtype == torch.int8
    assert torch.equal(coded.scales[:, 0], torch.tensor([0.02, 0.1]).repeat_interleave(5))
    assert torch.equal(coded.values(), quantizer(x).view(10, 8))


def test_codes_of_a_lost_row_stand_for_nan_and_the_others_for_what_they_were():
    x = torch.tensor([[1.0, torch.nan], [torch.inf, 1.0], [torch.inf, -torch.inf], [1.0, 0.5]])
    quantizer = static([[0.5]])
    values = quantizer.code(backend_for(x), None, x).values()
    assert values[:3].isnan().all()
    assert torch.equal(values[3:], quantizer(x)[3:])


@pytest.mark.parametrize("spec", ["uint8/tensor/fp32", "e4m3/tensor/fp32"])
def test_what_has_no_int8_codes_is_handed_on_as_values(spec):
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(0)).abs()
    quantizer = static([[0.5]], Spec.parse(spec))
    assert quantizer.code_spec is None
    assert torch.equal(quantizer.code(backend_for(x), None, x), quantizer(x))


def test_parts_with_steps_of_their_own_are_handed_on_as_values():
    x = torch.randn(1, 3, 8, generator=torch.Generator().manual_seed(0))
    quantizer = static([[0.1, 0.2, 0.3]])
    assert quantizer.code_spec is None
    assert torch.equal(quantizer.code(backend_for(x), None, x), quantizer(x)[0])


def test_a_rotation_comes_before_the_codes():
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    hadamard = Hadamard(8, None, seed=3)
    rotation = Rotation(hadamard.signs(), tuple(hadamard.matrices()))
    quantizer = static([[0.1]])
    assert torch.equal(
        quantizer.code(backend_for(x), rotation, x).values(),
        quantizer(backend_for(x).rotate(x, rotation)),
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_layer_multiplies_the_codes_as_the_definition_does(backend, monkeypatch):
    random = torch.Generator().manual_seed(0)
    x, matrix = torch.randn(2, 5, 64, generator=random), torch.randn(48, 64, generator=random)
    stage = InputStage(None, static([[0.02], [0.03]], time=torch.tensor([120, 10])))
    layer = QLinear(QTensor.quantize(matrix, Spec.parse("int8/row/fp32")), None, stage)
    assert layer.activation == INT8
    exact = stage.activation(x).double() @ layer.packed_weight.dequantize().double().T
    monkeypatch.setenv(VARIABLE, backend)
    # To 1e-6 of the largest: the sums are exact, and the scales are multiplied in float32.
    assert (layer(x) - exact).abs().max() <= 1e-6 * exact.abs().max()


def test_half_moves_nothing_but_the_device():
    quantizer = static([[0.1], [0.2]]).half()
    assert quantizer.steps.dtype == quantizer.bins.centres.dtype == torch.float32


def test_what_config_says_builds_it_again():
    quantizer = static([[0.1, 0.2], [0.3, 0.4]])
    again = from_config(quantizer.config())
    again.load_state_dict(quantizer.state_dict())
    assert again.config() == quantizer.config()
    assert torch.equal(again.steps, quantizer.steps)


@pytest.mark.parametrize("field", ["groups", "parts"])
@pytest.mark.parametrize("value", [0, -1, 10**9, 2.0, True, None, "3"])
def test_a_config_that_is_none_is_refused(field, value):
    config = {"kind": "static", "spec": str(INT8), "groups": 2, "parts": 1, field: value}
    with pytest.raises(BadArgument, match="got"):
        from_config(config)


@pytest.mark.parametrize("step", [0.0, -1.0, torch.nan, torch.inf])
def test_a_step_that_is_none_is_refused(step):
    with pytest.raises(BrokenFile, match=r"x\.steps"):
        static([[0.1], [step]]).check("x")
