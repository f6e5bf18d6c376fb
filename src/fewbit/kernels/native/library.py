"""The native library: found, checked, and set to one instruction set of this CPU; and the structs
that its functions take, field by field those of csrc/tasks.h.

`FEWBIT_ISA` = scalar, avx2, avx512vnni or neon picks another than the best.
"""

from __future__ import annotations

import os
from ctypes import (
    CDLL,
    CFUNCTYPE,
    POINTER,
    Structure,
    c_char_p,
    c_double,
    c_float,
    c_int32,
    c_int64,
    c_void_p,
    sizeof,
)
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from struct import unpack_from
from typing import Any

import torch
from torch import Tensor

from fewbit.errors import BadArgument

FILE = Path(__file__).parent / "_native.so"
ABI = 15
ELF64, HEADER = b"\x7fELF\x02", 64
ISAS = ("avx512vnni", "avx2", "neon", "scalar")

DTYPES = {torch.float32: 0, torch.bfloat16: 1}
MOST_MATRICES = 16

_P, _L, _I, _F = c_void_p, c_int64, c_int32, c_float


def _fields(kind: Any, names: str) -> list[tuple[str, Any]]:
    return [(name, kind) for name in names.split()]


class LinearTask(Structure):
    _fields_ = (
        *_fields(_P, "codes scales weight factors weight_scales bias common gate residual out"),
        *_fields(_L, "weight_bytes m n k tokens sharing"),
        *_fields(_I, "factor_groups groups scale_groups gelu out_dtype"),
        ("side", _P),
    )


class FloatLinearTask(Structure):
    _fields_ = (
        *_fields(_P, "x weight assignments codebook weight_scales bias out"),
        *_fields(_L, "weight_bytes m n k d"),
        *_fields(_I, "groups dtype out_dtype"),
    )


class RowsTask(Structure):
    _fields_ = (
        *_fields(_P, "x shift scale signs matrices mean ladder stretches codes scales out"),
        *_fields(_P, "directions squares aside aside_scales smooth steps"),
        *_fields(_L, "m k tokens rank group sharing whole"),
        ("orders", _I * MOST_MATRICES),
        *_fields(_I, "count dtype mantissa scale_kind stretch_count regions"),
        *_fields(_F, "norm top step smallest_normal zero bottom most_factor"),
        ("eps", c_double),
    )


class AttentionTask(Structure):
    _fields_ = (
        *_fields(_P, "q k v mask regions steps out"),
        *_fields(_L, "b h queries keys d"),
        *_fields(_L * 3, "q_stride k_stride v_stride"),
        ("mask_stride", _L * 4),
        *_fields(_I, "dtype many_regions step_images by_row mantissa"),
        *_fields(_F, "scale bottom top step smallest_normal zero"),
    )


class Step(Structure):
    _fields_ = (("at", _L), *_fields(_I, "operation waits"))


class Pointer(Structure):
    _fields_ = (*_fields(_L, "at base offset"),)


class Program(Structure):
    _fields_ = (
        *_fields(_P, "tasks steps pointers"),
        *_fields(_L, "bytes step_count pointer_count workspace"),
    )


TASKS: dict[str, type[Structure]] = {  # as csrc/tasks.h numbers the operations
    "linear": LinearTask,
    "float_linear": FloatLinearTask,
    "rows": RowsTask,
    "attention": AttentionTask,
}
_STRUCTS: tuple[type[Structure], ...] = (
    *TASKS.values(),
    Step,
    Pointer,
    Program,
)  # in the order of fewbit_task_bytes
LISTENER = CFUNCTYPE(None, _I, _P)  # of an operation's number and its task
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "abi": (_I, []),
    "task_bytes": (_L, [_I]),
    "most_depth": (_L, []),
    "few_rows": (_L, []),
    "supports": (_I, [c_char_p]),
    "choose": (None, [c_char_p]),
    "has_float_linear": (_I, [_I]),
    "has_attention": (_I, [_I]),
    "has_crc32": (_I, []),
    "crc32": (None, [_P, _P, _P, _L]),
    "threads": (_I, []),
    "packed_bytes": (_L, [_L, _L, _I, _I]),
    "packed_shape": (_I, [_P, _L, _P]),
    "pack": (None, [_P, _P, _P, _L, _L, _I, _I, _P]),
    "unpack": (_I, [_P, _L, _P]),
    "gelu": (_I, [_P, _P, _L, _I]),
    "listen": (None, [LISTENER]),
    "run": (_I, [POINTER(Program), POINTER(_P)]),
    **{name: (_I, [POINTER(task)]) for name, task in TASKS.items()},
}
_ERRORS = {
    1: "the native kernels found no memory for their scratch",
    2: "the packed weight was not made by fewbit.kernels.native.ops, or for another shape",
    3: "a group has more columns than its int32 sums of products can hold",
    4: "there is no native kernel of this type on this CPU",
}


@dataclass(frozen=True)
class Loaded:
    functions: CDLL
    isa: str


@lru_cache(1)
def load() -> Loaded | str:
    """The library, or why there is none."""
    if not FILE.exists():
        return "it was not built: there was no C++ compiler when fewbit was installed"
    if _is_cut_off(FILE):  # to load such a file would end the process
        return f"{FILE.name} cannot be loaded: its end is missing; install fewbit again"
    try:
        functions = _typed(CDLL(str(FILE)))
    except (OSError, AttributeError) as error:
        return f"{FILE.name} cannot be loaded: {error}"
    if functions.fewbit_abi() != ABI or not _has_same_structs(functions):
        return f"{FILE.name} belongs to another version of fewbit: install fewbit again"
    runnable = [isa for isa in ISAS if functions.fewbit_supports(isa.encode())]
    asked = os.environ.get("FEWBIT_ISA")
    if asked and asked not in runnable:
        raise BadArgument(
            f"FEWBIT_ISA is {asked!r}, which does not run here; allowed: {', '.join(runnable)}"
        )
    if not asked and runnable == ["scalar"]:
        return "this CPU has neither AVX2 nor AVX512-VNNI nor the Arm dot product"
    isa = asked or runnable[0]
    functions.fewbit_choose(isa.encode())
    return Loaded(functions, isa)


def functions() -> CDLL:
    """The C functions; an error that says why where there are none."""
    loaded = load()
    if isinstance(loaded, str):
        raise BadArgument(f"the native kernels cannot run: {loaded}")
    return loaded.functions


def available() -> bool:
    return why_not() is None


def why_not() -> str | None:
    """Why the native kernels cannot run here, if they cannot."""
    loaded = load()
    return loaded if isinstance(loaded, str) else None


def isa() -> str | None:
    """The instruction set in use."""
    loaded = load()
    return loaded.isa if isinstance(loaded, Loaded) else None


def has_attention(dtype: torch.dtype) -> bool:
    """Whether there is a vector kernel of attention for this type here."""
    loaded = load()
    if isinstance(loaded, str) or dtype not in DTYPES:
        return False
    return bool(loaded.functions.fewbit_has_attention(DTYPES[dtype]))


def has_bf16() -> bool:
    """Whether bfloat16 is multiplied as such here."""
    loaded = load()
    if isinstance(loaded, str):
        return False
    return bool(loaded.functions.fewbit_has_float_linear(DTYPES[torch.bfloat16]))


@lru_cache(1)
def most_depth() -> int:
    """How many columns of a group an int32 sum of products of codes holds."""
    return int(functions().fewbit_most_depth())


def threads() -> int:
    """How many threads a large operation uses: as many as torch, but one in a forked child."""
    return int(functions().fewbit_threads())


def address(x: Tensor | None) -> int | None:
    """Where the numbers of a tensor lie; one that has none here would end the process."""
    if x is None:
        return None
    if not x.is_cpu:
        raise BadArgument(f"the native kernels compute on the CPU, got a tensor on {x.device.type}")
    return x.data_ptr()


def failure(status: int) -> BadArgument:
    """The error of a status that is not zero."""
    return BadArgument(_ERRORS[status])


def _is_cut_off(file: Path) -> bool:
    """Whether an ELF file of 64 bits is shorter than its header says: its last part is the table
    of sections."""
    with file.open("rb") as opened:
        header = opened.read(HEADER)
    if not header.startswith(ELF64[: len(header)]):
        return False
    if len(header) < HEADER:
        return True
    (begin,), (size, count) = unpack_from("<Q", header, 40), unpack_from("<2H", header, 58)
    return bool(file.stat().st_size < begin + size * count)


def _typed(library: CDLL) -> CDLL:
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, f"fewbit_{name}")
        function.restype, function.argtypes = result, arguments
    return library


def _has_same_structs(library: CDLL) -> bool:
    sizes = [library.fewbit_task_bytes(index) for index in range(len(_STRUCTS))]
    return sizes == [sizeof(struct) for struct in _STRUCTS]
