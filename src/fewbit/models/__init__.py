"""Where a diffusion transformer keeps its blocks, and which linear plays which role in them.

A family is one file with `CLASSES` (class names it knows) and `spec(model)`, found by listing this
folder. Nothing here knows of quantization.
"""

from fewbit.models.original_checkpoint import load_original
from fewbit.models.recognise import Origin, is_known
from fewbit.models.spec import SPEC, ModelSpec, Role
from fewbit.models.structure import Attention, Layer, Structure, describe, transformer_of

__all__ = [
    "SPEC",
    "Attention",
    "Layer",
    "ModelSpec",
    "Origin",
    "Role",
    "Structure",
    "describe",
    "is_known",
    "load_original",
    "transformer_of",
]
