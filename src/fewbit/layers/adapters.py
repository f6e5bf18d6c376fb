"""Adapters that peft has put around layers of a model, seen without importing peft."""

from __future__ import annotations

from torch import nn

from fewbit.errors import BadModel


def is_adapted(model: nn.Module) -> bool:
    """Whether a layer in it, or it itself, is wrapped, be it by adapters that are all deleted."""
    return any(hasattr(module, "base_layer") for module in model.modules())


def inner_layer(module: nn.Module) -> nn.Module:
    """The layer itself, where adapters are around it."""
    inner = getattr(module, "base_layer", None)
    return module if inner is None else inner_layer(inner)


def adapter_names(model: nn.Module) -> tuple[str, ...]:
    """As they were loaded or added."""
    return tuple(getattr(model, "peft_config", ()))


def refuse_adapted(model: nn.Module, verb: str) -> None:
    """Of work that belongs to the bare model: an adapter has a file of its own."""
    if is_adapted(model):
        names = ", ".join(adapter_names(model)) or "all deleted, their layers still in place"
        raise BadModel(
            f"the model carries adapters ({names}) and cannot be {verb} with them; take them off "
            "with unload_lora_weights() of a pipeline or unload_lora() of a transformer, and load "
            "them again afterwards"
        )


def refuse_fusing() -> None:
    raise BadModel(
        "adapters cannot be fused into quantized weights, whose few levels would lose them; keep "
        "them loaded, or call fewbit.dequantize(model) first"
    )
