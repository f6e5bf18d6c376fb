"""Parameters that depend on the time: bins over the continuous timestep, and who knows what it is.

The bins know nothing of schedulers or step counts: any timestep has a nearest bin. A clock, which
all bins of a model share, is set by a hook before each forward of the whole network. From there on
all is tensor arithmetic, each row by its own timestep.
"""

from __future__ import annotations

from threading import local
from typing import Any

import torch
from torch import Tensor, nn

from fewbit.activations.fixed_dtype import FixedDtype
from fewbit.errors import BadArgument, BadCalibration, BadModel, BrokenFile
from fewbit.models.timestep import TIMES, time_argument, time_of_rows

MOST_GROUPS = 1000
EARLIEST, LATEST = 0.0, 1000.0  # what the transformers of diffusion schedules are told


class Clock:
    """The time of the forward that is running: float32 [rows], or [1] for all rows.

    Each thread has its own, for several may run one model. A thread that was told none, as those
    that compute gradients, has the latest time of all.
    """

    def __init__(self, name: str, position: int) -> None:
        self.name, self.position = name, position
        self._latest: Tensor | None = None
        self._here = local()

    @property
    def time(self) -> Tensor | None:
        time: Tensor | None = getattr(self._here, "time", self._latest)
        return time

    @time.setter
    def time(self, time: Tensor) -> None:
        self._latest = self._here.time = time

    def read(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        time = kwargs[self.name] if self.name in kwargs else args[self.position]
        time = time if isinstance(time, Tensor) else torch.tensor(time, device="cpu")
        self.time = time_of_rows(time.detach())

    def __reduce__(self) -> tuple[type[Clock], tuple[str, int]]:
        return Clock, (self.name, self.position)


class TimeBins(FixedDtype):
    """Each bin is what lies nearer to its centre than to the others; on the middle between two
    it is the earlier."""

    centres: Tensor  # float32 [groups], ascending

    def __init__(self, centres: Tensor) -> None:
        super().__init__()
        self.register_buffer("centres", centres.float())
        self.clock: Clock | None = None

    @classmethod
    def spread(cls, times: Tensor | None, groups: int) -> TimeBins:
        """Bins that hold as many of the different times of calibration: a shifted schedule, whose
        times crowd at one end, fills all of them alike."""
        if groups == 1:
            return cls(torch.zeros(1, device="cpu"))
        if times is None:
            raise BadCalibration(
                f"groups={groups} need timesteps, and the calibration data has no argument "
                f"{' or '.join(TIMES)}; allowed: tgq=False"
            )
        _refuse_out_of_range(times)
        known = times.unique()  # ascending
        empty = groups - len(known)
        if empty > 0:
            raise BadCalibration(
                f"groups={groups} leave {empty} time groups without data, for they need as many "
                f"timesteps or more; the {len(times)} rows at {len(known)} timesteps "
                f"allow groups={len(known)}"
            )
        middle = ((2 * torch.arange(groups, device="cpu") + 1) * len(known) - 1) // (2 * groups)
        return cls(known[middle])

    @classmethod
    def empty(cls, groups: object) -> TimeBins:
        """Still to be loaded."""
        if type(groups) is not int or not 1 <= groups <= MOST_GROUPS:
            raise BadArgument(f"there are 1 to {MOST_GROUPS} time groups, got {groups!r}")
        return cls(torch.empty(groups))

    def of(self, times: Tensor) -> Tensor:
        """The bin of each time: int64, as `times`."""
        middles = (self.centres[1:] + self.centres[:-1]) / 2
        return (times[..., None] > middles).sum(-1)

    def pick(self, table: Tensor) -> Tensor:
        """table [groups, ...] to the entries of the rows that are running [rows or 1, ...]."""
        if len(self.centres) == 1:
            return table
        if self.clock is None or self.clock.time is None:
            raise BadArgument(
                "time-grouped layers do not know the timestep: run them through the whole model"
            )
        return table[self.of(self.clock.time.to(self.centres.device))]

    def check(self, name: str) -> None:
        centres = self.centres
        if not bool(centres.isfinite().all()) or not bool((centres.diff() > 0).all()):
            raise BrokenFile(f"{name}.centres holds time bins that are not finite and ascending")

    def extra_repr(self) -> str:
        return f"{len(self.centres)} groups"


def share_clock(model: nn.Module) -> None:
    """All bins of the model read one clock, set before each forward; without bins there is none."""
    bins = [module for module in model.modules() if isinstance(module, TimeBins)]
    timed = [one for one in bins if len(one.centres) > 1]
    known = next((one.clock for one in timed if one.clock is not None), None)
    if timed and known is None:
        known = _install(model)
    for one in timed:
        one.clock = known


def tell_time(model: nn.Module, arguments: dict[str, Any]) -> None:
    """As if the whole model were run on them, for the sake of parts that are called alone."""
    bins = [module for module in model.modules() if isinstance(module, TimeBins)]
    for clock in {one.clock for one in bins if one.clock is not None}:
        clock.read(model, (), arguments)


def remove_clock(model: nn.Module) -> None:
    for key, hook in list(model._forward_pre_hooks.items()):
        if isinstance(getattr(hook, "__self__", None), Clock):
            del model._forward_pre_hooks[key]
            model._forward_pre_hooks_with_kwargs.pop(key, None)


def _install(model: nn.Module) -> Clock:
    argument = time_argument(model)
    if argument is None:
        raise BadModel(
            f"the forward of {type(model).__name__} takes no {' or '.join(TIMES)}, so nothing "
            "can depend on time; allowed: tgq=False"
        )
    clock = Clock(*argument)
    model.register_forward_pre_hook(clock.read, with_kwargs=True)
    return clock


def _refuse_out_of_range(times: Tensor) -> None:
    wrong = (times < EARLIEST) | (times > LATEST)
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise BadCalibration(
            f"calibration row {row} has the timestep {float(times[row]):g}; allowed: "
            f"{EARLIEST:g} to {LATEST:g}"
        )
