"""fewbit as a quantizer of transformers, for the text encoders of pipelines.

What `config.json` says is read by the class that diffusers knows, which is imported when the first
quantized model comes.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING
from transformers.quantizers.base import HfQuantizer

from fewbit.storage.provenance import when_marked

if TYPE_CHECKING:
    import torch

    from fewbit.diffusers.plugin import FewbitConfig
    from fewbit.storage.reader import Artefact


class LateConfig:
    """In the place of FewbitConfig, until that is there."""

    @staticmethod
    def from_dict(content: Mapping[str, Any], **kwargs: Any) -> Any:
        from fewbit.diffusers.plugin import FewbitConfig

        return FewbitConfig.from_dict(dict(content), **kwargs)


class TextQuantizer(HfQuantizer):
    """Reads an artefact, or quantizes a plain model when it has been loaded; writes artefacts."""

    quantization_config: FewbitConfig
    artefact: Artefact | None = None
    derived: Mapping[str, torch.Tensor]  # what no file holds of the quantized layers

    def _process_model_before_weight_loading(
        self, model: Any, checkpoint_files: Sequence[str] | None = None, **_: Any
    ) -> Any:
        """transformers loads what it finds; tensors that are stored once for several names come
        afterwards, and are not missing."""
        from fewbit.layers.packed_weight import PackedWeight
        from fewbit.storage.reader import Artefact

        if not self.pre_quantized:
            _refuse_calibrated(self.quantization_config)
        else:
            PackedWeight._is_hf_initialized = True  # type: ignore[attr-defined]  # not at random
            self.artefact = Artefact.of_files([Path(file) for file in checkpoint_files or ()])
            self.artefact.prepare(model)
            later = [f"^{re.escape(name)}$" for name in self.artefact.manifest.aliases]
            known = model._keys_to_ignore_on_load_missing or ()
            model._keys_to_ignore_on_load_missing = [*known, *later]
            self.derived = _derived(model)
        return model

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        if self.artefact is None:
            _quantize(model, self.quantization_config)
            return model
        from fewbit.storage.folder import fill_again

        fill_again(model, self.artefact, self.derived)
        self.artefact, self.derived = None, {}
        return model

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


def _derived(model: Any) -> dict[str, torch.Tensor]:
    """transformers believes that it can make such buffers itself, and takes away what is there."""
    from fewbit.layers.linear import quantized_layers

    stored = model.state_dict().keys()
    return {
        f"{name}.{path}": buffer
        for name, layer in quantized_layers(model).items()
        for path, buffer in layer.named_buffers(remove_duplicate=False)
        if f"{name}.{path}" not in stored
    }


def _refuse_calibrated(config: FewbitConfig) -> None:
    from fewbit.diffusers.plugin import refuse_calibrated

    refuse_calibrated(config.as_recipe())


def _quantize(model: Any, config: FewbitConfig) -> None:
    from fewbit.diffusers.plugin import without
    from fewbit.engine.plan import make_plan
    from fewbit.engine.run import quantize
    from fewbit.storage.spec_file import spec_from

    recipe = config.as_recipe()
    plan = make_plan(model, recipe, spec_from(config.spec), allow_unknown=False)
    spec, chosen = plan.structure.spec, without(plan, config.modules_to_not_convert)
    keep = [name for name in plan.rules if name not in chosen.rules]
    quantize(
        model,
        recipe.method,
        bits=recipe.bits,
        spec=replace(spec, keep=(*spec.keep, *keep)),
        progress=False,
        **config.recipe["settings"],
    )


AUTO_QUANTIZER_MAPPING.setdefault("fewbit", TextQuantizer)
AUTO_QUANTIZATION_CONFIG_MAPPING.setdefault("fewbit", LateConfig)
when_marked(attach)
