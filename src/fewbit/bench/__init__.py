"""How fast and how small, measured: arms take turns in one process on the same weights."""

from fewbit.bench.measure import bench
from fewbit.bench.result import Result

__all__ = ["Result", "bench"]
