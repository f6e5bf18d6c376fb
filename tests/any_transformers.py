"""The classes of diffusers that differ most, out of the table of all, and a call of each."""

from typing import Any

from benchmarks.tiny_classes import CLASSES

NAMES = (
    "Flux2Transformer2DModel",
    "ChromaTransformer2DModel",
    "BriaTransformer2DModel",
    "QwenImageTransformer2DModel",
    "ZImageTransformer2DModel",
    "WanTransformer3DModel",
    "LTXVideoTransformer3DModel",
    "SanaTransformer2DModel",
    "Lumina2Transformer2DModel",
    "CogVideoXTransformer3DModel",
    "CogView4Transformer2DModel",
    "AuraFlowTransformer2DModel",
    "HunyuanVideoTransformer3DModel",
    "HunyuanVideo15Transformer3DModel",
    "HunyuanImageTransformer2DModel",
    "MochiTransformer3DModel",
    "LatteTransformer3DModel",
    "Krea2Transformer2DModel",
    "NucleusMoEImageTransformer2DModel",
    "HiDreamImageTransformer2DModel",
    "AllegroTransformer3DModel",
    "PRXTransformer2DModel",
    "StableAudioDiTModel",
)


def make(name: str) -> Any:
    return CLASSES[name].build(name)


def call(name: str) -> dict[str, Any]:
    [only] = CLASSES[name].calls(1)
    return only
