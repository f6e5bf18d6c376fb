"""Where a diffusion transformer keeps its blocks, and which linear plays which role in them.

A family is one file with `CLASSES` (class names it knows) and `spec(model)`, found by listing this
folder. Nothing here knows of quantization.
"""

from fewbit.models.component import (
    Component,
    components_of,
    denoises,
    networks_of,
    quantized_components,
    transformer_of,
)
from fewbit.models.original_checkpoint import load_original
from fewbit.models.recognise import Origin, is_known
from fewbit.models.spec import SPEC, ModelSpec, Role
from fewbit.models.structure import Attention, Layer, Structure, describe

__all__ = [
    "SPEC",
    "Attention",
    "Component",
    "Layer",
    "ModelSpec",
    "Origin",
    "Role",
    "Structure",
    "components_of",
    "denoises",
    "describe",
    "is_known",
    "load_original",
    "networks_of",
    "quantized_components",
    "transformer_of",
]
