"""fewbit as a quantizer of transformers, for the text encoders of pipelines.

What `config.json` says is read by the class that diffusers knows, which is imported when the first
quantized model comes.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING
from transformers.quantizers.base import HfQuantizer

from fewbit.storage.provenance import when_marked

if TYPE_CHECKING:
    import torch

    from fewbit.diffusers.plugin import FewbitConfig
    from fewbit.diffusers.while_loading import Rounding
    from fewbit.storage.reader import Artefact


class LateConfig:
    """In the place of FewbitConfig, until that is there."""

    @staticmethod
    def from_dict(content: Mapping[str, Any], **kwargs: Any) -> Any:
        from fewbit.diffusers.plugin import FewbitConfig

        return FewbitConfig.from_dict(dict(content), **kwargs)


class TextQuantizer(HfQuantizer):
    """Reads an artefact, or quantizes a plain model while it is loaded; writes artefacts."""

    quantization_config: FewbitConfig
    artefact: Artefact | None = None
    rounding: Rounding | None = None
    derived: dict[str, torch.Tensor]  # what no file holds of the quantized layers

    def _process_model_before_weight_loading(
        self, model: Any, checkpoint_files: Sequence[str] | None = None, **_: Any
    ) -> Any:
        from fewbit.layers.packed_weight import PackedWeight

        PackedWeight._is_hf_initialized = True  # type: ignore[attr-defined]  # not at random
        self.derived = {}
        if self.pre_quantized:
            self._expect([Path(file) for file in checkpoint_files or ()], model)
        else:
            self.rounding = self.quantization_config.rounding()
            self.rounding.begin(model)
        return model

    def _expect(self, files: Sequence[Path], model: Any) -> None:
        """transformers loads what it finds; tensors that are stored once for several names come
        afterwards, and are not missing."""
        from fewbit.layers.linear import quantized_layers
        from fewbit.storage.reader import Artefact

        self.artefact = Artefact.of_files(files)
        self.artefact.prepare(model)
        later = [f"^{re.escape(name)}$" for name in self.artefact.manifest.aliases]
        known = model._keys_to_ignore_on_load_missing or ()
        model._keys_to_ignore_on_load_missing = [*known, *later]
        self.derived = _derived(quantized_layers(model))

    def param_needs_quantization(self, model: Any, param_name: str, **_: Any) -> bool:
        return self.rounding is not None and self.rounding.claims(param_name)

    def get_quantize_ops(self) -> TextQuantizer:
        return self

    def convert(
        self, input_dict: Mapping[str, Any], missing_keys: set[str], **_: Any
    ) -> dict[str, torch.Tensor]:
        """As an operation on weights that have come: nothing is left of them to be loaded."""
        assert self.rounding is not None
        for name, given in input_dict.items():
            weight = given[0] if isinstance(given, list) else given
            done = self.rounding.take(name, weight, weight.dtype)
            self.derived |= _derived({one: self.rounding.model.get_submodule(one) for one in done})
            missing_keys.discard(name)
        return {}

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        if self.rounding is not None:
            self._finish(model, self.rounding)
        else:
            from fewbit.storage.folder import fill_again

            assert self.artefact is not None
            fill_again(model, self.artefact, self.derived)
        self.artefact, self.rounding, self.derived = None, None, {}
        return model

    def _finish(self, model: Any, rounding: Rounding) -> None:
        from fewbit.layers.bind import bind
        from fewbit.storage.blueprint import by_name
        from fewbit.storage.folder import put
        from fewbit.storage.provenance import mark

        modules = by_name(model)
        for name, tensor in self.derived.items():
            put(modules, name, tensor)
        provenance = rounding.finish()
        model.requires_grad_(False)
        mark(model, provenance)
        bind(model)

    def get_state_dict_and_metadata(self, model: Any) -> tuple[dict[str, torch.Tensor], Any]:
        import fewbit.diffusers.writing  # noqa: F401
        from fewbit.storage.manifest import manifest_of

        manifest, tensors = manifest_of(model, {})
        return tensors, manifest.to_metadata()

    def _dequantize(self, model: Any, dtype: Any = None) -> Any:
        from fewbit.layers.dequantize import dequantize_layers

        dequantize_layers(model)
        return model

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False


def attach(model: Any) -> None:
    """Make a model of transformers that fewbit has quantized or read one that it can save."""
    if not hasattr(model, "config") or not hasattr(model.config, "architectures"):
        return
    from fewbit.diffusers.plugin import FewbitConfig
    from fewbit.storage.manifest import quantization_config
    from fewbit.storage.spec_file import stored_spec

    config = FewbitConfig(**quantization_config(model.fewbit), **stored_spec(model))
    model.hf_quantizer = TextQuantizer(config, pre_quantized=True)
    model.is_quantized = True
    model.quantization_method = config.quant_method
    model.config = copy.copy(model.config)  # the old one says what it was, if it is put back
    model.config.quantization_config = config
    model._weight_conversions = []  # the names of its tensors are those that it has in memory


def _derived(layers: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """transformers believes that it can make such buffers itself, and takes away what is there."""
    return {
        f"{name}.{path}": buffer
        for name, layer in layers.items()
        for path, buffer in layer.named_buffers(remove_duplicate=False)
        if path not in layer.state_dict()
    }


AUTO_QUANTIZER_MAPPING.setdefault("fewbit", TextQuantizer)
AUTO_QUANTIZATION_CONFIG_MAPPING.setdefault("fewbit", LateConfig)
when_marked(attach)
