"""Where a diffusion transformer keeps its blocks, and which linear plays which role in them.

A family is one file with `CLASSES` (class names it knows) and `spec(model)`, found by listing this
folder. Nothing here knows of quantization.
"""

from fewbit.models.original_checkpoint import load_original
from fewbit.models.spec import ModelSpec, Role
from fewbit.models.structure import Attention, Layer, Structure, describe, transformer_of

__all__ = [
    "Attention",
    "Layer",
    "ModelSpec",
    "Role",
    "Structure",
    "describe",
    "load_original",
    "transformer_of",
]
