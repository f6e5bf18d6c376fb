"""fewbit as a kind of layer that peft adapts: LoRA beside packed weights.

peft's table of tuners gets one that knows QLinear; what stood in the table does everything else.
"""

from __future__ import annotations

from typing import Any

from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.lora import Linear
from peft.utils import PeftType
from torch import nn

from fewbit.errors import BadArgument
from fewbit.layers.adapters import refuse_fusing
from fewbit.layers.linear import QLinear, quantized_layers

Tuner: Any = PEFT_TYPE_TO_TUNER_MAPPING[PeftType.LORA]
READ_THE_WEIGHT = ("use_dora", "kasa_config")  # options of peft
BESIDE_THE_WEIGHT = (True, False, "gaussian")  # ways to begin an adapter


class LoraQLinear(Linear):
    """A packed layer plus its corrections, computed from the input as it comes, unrounded."""

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        if isinstance(self.get_base_layer(), QLinear):
            refuse_fusing()
        super().merge(safe_merge, adapter_names)

    def nbytes(self) -> int:
        """Bytes of the layer inside, by its own count, and of the adapters."""
        layer: Any = self.get_base_layer()
        adapters = (getattr(self, name).parameters() for name in self.adapter_layer_names)
        size: int = layer.nbytes() + sum(tensor.nbytes for part in adapters for tensor in part)
        return size

    def _get_in_out_features(self, module: Any) -> tuple[int, int]:
        return module.in_features, module.out_features


class QLoraModel(Tuner):
    """Puts LoRA into models of which some layers are packed."""

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kw: Any) -> None:
        if quantized_layers(model):
            config = self.peft_config[adapter_name]
            _refuse_what_needs_the_weight(config)
            config._register_custom_module({QLinear: LoraQLinear})
        super().inject_adapter(model, adapter_name, *args, **kw)

    def _check_merge_allowed(self) -> None:
        if quantized_layers(self.model):
            refuse_fusing()
        super()._check_merge_allowed()


def _refuse_what_needs_the_weight(config: Any) -> None:
    asked = [
        f"{name}={value}" for name in READ_THE_WEIGHT if (value := getattr(config, name, None))
    ]
    if config.init_lora_weights not in BESIDE_THE_WEIGHT:
        asked.append(f"init_lora_weights={config.init_lora_weights!r}")
    if asked:
        raise BadArgument(
            f"{asked[0]} needs weights in full precision, which quantized layers have not; allowed "
            "beside them: plain LoRA, begun with init_lora_weights True, False or 'gaussian'"
        )


PEFT_TYPE_TO_TUNER_MAPPING[PeftType.LORA] = QLoraModel
