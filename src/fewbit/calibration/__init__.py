"""What layers see: sets of forward arguments, pipelines that give them, streams through blocks."""

from fewbit.calibration.call_set import CallSet
from fewbit.calibration.drawing import Source
from fewbit.calibration.reading import Reading
from fewbit.calibration.row_set import RowSet
from fewbit.calibration.set import CalibrationSet
from fewbit.calibration.stream import BlockInput, BlockStream, LayerInput, Rows, Step
from fewbit.calibration.trajectories import Sampling, sample
from fewbit.pipelines.asking import manner_of
from fewbit.pipelines.request import Calibration

__all__ = [
    "BlockInput",
    "BlockStream",
    "Calibration",
    "CalibrationSet",
    "CallSet",
    "LayerInput",
    "Reading",
    "RowSet",
    "Rows",
    "Sampling",
    "Source",
    "Step",
    "manner_of",
    "sample",
]
