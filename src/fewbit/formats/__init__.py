"""Number formats: what a code means, how scales are kept, how codes become bytes."""

from fewbit.formats.choice import FormatChoice
from fewbit.formats.codebook import Codebook
from fewbit.formats.format import Format
from fewbit.formats.integer import Integer
from fewbit.formats.lut import LUT16
from fewbit.formats.minifloat import Minifloat
from fewbit.formats.names import format_named, formats, register
from fewbit.formats.qtensor import QTensor
from fewbit.formats.scale import SCALES, ScaleFormat, Scales
from fewbit.formats.spec import MXFP4, NVFP4, NVFP4_TOKEN, Spec

FORMATS = formats()

__all__ = [
    "FORMATS",
    "LUT16",
    "MXFP4",
    "NVFP4",
    "NVFP4_TOKEN",
    "SCALES",
    "Codebook",
    "Format",
    "FormatChoice",
    "Integer",
    "Minifloat",
    "QTensor",
    "ScaleFormat",
    "Scales",
    "Spec",
    "format_named",
    "register",
]
