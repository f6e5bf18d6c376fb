"""Time bins: any timestep of any scheduler has its nearest one, and a clock knows the time."""

import copy

import pytest
import torch
from torch import nn

from fewbit.activations.clock import TimeBins, remove_clock, share_clock
from fewbit.activations.static import Static
from fewbit.errors import BadArgument, BadCalibration, BadModel, BrokenFile
from fewbit.formats import Spec


class Net(nn.Module):
    """Two time-grouped quantizers one after the other."""

    def __init__(self) -> None:
        super().__init__()
        spec, centres = Spec.parse("int8/tensor/fp32"), torch.tensor([100.0, 300.0, 900.0])
        steps = torch.tensor([[0.5], [0.125], [2.0]])
        self.parts = nn.Sequential(*(Static(spec, steps, TimeBins(centres)) for _ in range(2)))

    def forward(self, x, timestep, **_):
        return self.parts(x)


def net() -> Net:
    model = Net()
    share_clock(model)
    return model


def test_every_time_has_its_nearest_bin():
    centres = torch.tensor([50.0, 150.0, 400.0, 990.0])
    times = torch.linspace(-100, 1200, 2601)
    nearest = (times[:, None] - centres).abs().argmin(1)  # of equals the first
    assert torch.equal(TimeBins(centres).of(times), nearest)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.float16, torch.bfloat16])
def test_a_timestep_of_any_dtype_is_understood(dtype):
    x = torch.tensor([[0.3], [0.3]])
    found = net()(x, timestep=torch.tensor([100, 300]).to(dtype))
    assert found.flatten().tolist() == [0.5, 0.25]


@pytest.mark.parametrize("time", [300, 300.0, torch.tensor(300), torch.tensor([300])])
def test_one_time_serves_all_rows(time):
    assert net()(torch.full((4, 2, 1), 0.3), time).unique().tolist() == [0.25]


def test_a_time_that_no_scheduler_of_calibration_had_has_a_bin():
    x = torch.full((4, 1), 0.3)
    found = net()(x, timestep=torch.tensor([-5.0, 199.9, 333.3, 1e6]))
    assert found.flatten().tolist() == [0.5, 0.5, 0.25, 0.0]


def test_copies_have_clocks_of_their_own():
    model = net()
    twin = copy.deepcopy(model)
    x = torch.full((1, 1), 0.3)
    model(x, timestep=torch.tensor([300]))
    assert twin(x, timestep=torch.tensor([100])).item() == 0.5
    first, second = (part.bins.clock for part in twin.parts)
    assert first is second is not model.parts[0].bins.clock
    assert model.parts(x).item() == 0.25


def test_a_compiled_model_reads_its_clock():
    model = net()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0))
    for times in ([100, 300, 900], [900, 900, 100], [0, 0, 0]):
        time = torch.tensor(times)
        assert torch.equal(compiled(x, timestep=time), model(x, timestep=time))


def test_sharing_again_changes_nothing():
    model = net()
    share_clock(model)
    assert len(model._forward_pre_hooks) == 1
    remove_clock(model)
    assert not model._forward_pre_hooks


def test_a_part_run_alone_does_not_know_the_time():
    with pytest.raises(BadArgument, match="through the whole model"):
        Net().parts(torch.zeros(1, 1))


def test_a_model_without_time_is_refused():
    with pytest.raises(BadModel, match=r"Sequential takes no timestep .* tgq=False"):
        share_clock(Net().parts)


def test_centres_are_quantiles_of_the_times_of_calibration():
    bins = TimeBins.spread(torch.arange(0, 1000, 20.0), 4)
    assert bins.centres.tolist() == [120.0, 360.0, 620.0, 860.0]


@pytest.mark.parametrize("shift", [1, 3, 6, 12])
@pytest.mark.parametrize("steps", [20, 28, 50])
def test_every_schedule_fills_all_bins_alike(shift, steps):
    """Flow matching shifts its times, so that most of them lie close to 1000."""
    even = torch.linspace(1, 0.001, steps)
    times = 1000 * shift * even / (1 + (shift - 1) * even)
    counts = TimeBins.spread(times, 10).of(times).bincount(minlength=10)
    assert int(counts.max() - counts.min()) <= 2


def test_as_many_groups_as_there_are_timesteps_have_one_each():
    times = torch.tensor([5.0, 0.0, 1.0, 900.0, 1.0, 0.0, 905.0])
    assert TimeBins.spread(times, 5).of(times).tolist() == [2, 0, 1, 3, 1, 0, 4]


def test_more_groups_than_the_data_fills_are_refused_with_the_number_that_it_allows():
    times = torch.tensor([0.0, 250.0, 500.0, 750.0] * 8)
    with pytest.raises(BadCalibration, match=r"groups=10 leave 6 time groups .* allow groups=4"):
        TimeBins.spread(times, 10)
    with pytest.raises(BadCalibration, match="allow groups=1"):
        TimeBins.spread(torch.full((9,), 5.0), 2)


@pytest.mark.parametrize("time", [-1.0, 1000.5])
def test_times_outside_of_every_schedule_are_refused(time):
    with pytest.raises(
        BadCalibration, match=rf"row 1 has the timestep {time:g}; allowed: 0 to 1000"
    ):
        TimeBins.spread(torch.tensor([5.0, time, 7.0]), 2)


def test_data_without_times_has_one_group():
    assert len(TimeBins.spread(None, 1).centres) == 1
    with pytest.raises(BadCalibration, match="allowed: tgq=False"):
        TimeBins.spread(None, 2)


@pytest.mark.parametrize("centres", [[2.0, 1.0], [1.0, 1.0], [0.0, torch.nan], [0.0, torch.inf]])
def test_centres_that_are_none_are_refused(centres):
    with pytest.raises(BrokenFile, match=r"x\.centres"):
        TimeBins(torch.tensor(centres)).check("x")
