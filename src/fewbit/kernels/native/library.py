"""The native library: found, checked, and set to one instruction set of this CPU.

`FEWBIT_ISA` = scalar, avx2, avx512vnni or neon picks another than the best.
"""

from __future__ import annotations

import os
from ctypes import CDLL, c_char_p, c_double, c_float, c_int32, c_int64, c_void_p
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from struct import unpack_from
from typing import Any

from fewbit.errors import BadArgument

FILE = Path(__file__).parent / "_native.so"
ABI = 5
ELF64, HEADER = b"\x7fELF\x02", 64
ISAS = ("avx512vnni", "avx2", "neon", "scalar")

_P, _L, _I, _F = c_void_p, c_int64, c_int32, c_float
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "abi": (_I, []),
    "supports": (_I, [c_char_p]),
    "choose": (None, [c_char_p]),
    "has_attention": (_I, [_I]),
    "has_bf16": (_I, []),
    "has_crc32": (_I, []),
    "crc32": (None, [_P, _P, _P, _L]),
    "threads": (_I, []),
    "packed_bytes": (_L, [_L, _L, _I, _I]),
    "packed_shape": (_I, [_P, _L, _P]),
    "pack": (None, [_P, _P, _P, _L, _L, _I, _I, _P]),
    "unpack": (_I, [_P, _L, _P]),
    "linear": (_I, [_P, _P, _P, _L, *[_P] * 5, *[_L] * 4, *[_I] * 4]),
    "float_linear": (_I, [_P, _P, _L, *[_P] * 5, *[_L] * 4, *[_I] * 3]),
    "rows": (_I, [*[_P] * 9, *[_L] * 3, *[_I] * 4, *[_F] * 4, c_double]),
    "gelu": (_I, [_P, _P, _L, _I]),
    "attention": (_I, [*[_P] * 6, *[_L] * 5, _P, _I, _I, _F]),
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
    if functions.fewbit_abi() != ABI:
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
