"""fewbit as a quantizer of diffusers: `from_pretrained` and `save_pretrained` just work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from diffusers.configuration_utils import FrozenDict
from diffusers.quantizers.auto import (
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    AUTO_QUANTIZER_MAPPING,
)
from diffusers.quantizers.base import DiffusersQuantizer
from diffusers.quantizers.quantization_config import QuantizationConfigMixin
from torch import Tensor

import fewbit.diffusers.writing  # noqa: F401
from fewbit.diffusers.configuration import SAID
from fewbit.diffusers.registration import when_imported
from fewbit.diffusers.while_loading import Rounding
from fewbit.engine.recipe import Recipe
from fewbit.errors import BadArgument, BrokenFile
from fewbit.layers.bind import bind
from fewbit.layers.dequantize import dequantize_layers
from fewbit.storage.blueprint import by_name, stored_as_is
from fewbit.storage.folder import put
from fewbit.storage.manifest import (
    SCHEMA_VERSION,
    check_values,
    manifest_of,
    quantization_config,
)
from fewbit.storage.provenance import Provenance, when_marked
from fewbit.storage.reader import Artefact
from fewbit.storage.spec_file import KEY as SPEC_KEY
from fewbit.storage.spec_file import Given, as_stored, spec_from, stored_spec
from fewbit.version import __version__

_PACKED = (".codes", ".comfy_quant", ".scale_weight", ".weight_scale")  # no plain model has these
OURS_LATER = "fewbit.diffusers.text_encoders"  # has the class that stands for FewbitConfig there


class QuantMethod(StrEnum):
    FEWBIT = "fewbit"


class FewbitConfig(QuantizationConfigMixin):
    """A recipe that diffusers applies while it loads a model, layer by layer.

    It is also what `config.json` says of a quantized model. How each layer is stored is written
    beside the weights, in the manifest.

    Args:
        recipe: The name of a recipe that needs no data, perhaps with bits after a colon.
        bits: One of the recipe's variants; its first if left out.
        modules_to_not_convert: Names of modules that stay in full precision.
        spec: Where the blocks are and what their linear layers do: a `fewbit.ModelSpec`, a table of
            its fields, or a JSON file that `fewbit inspect MODEL --spec` has printed.
        **settings: Settings of the recipe by name.
    """

    def __init__(
        self,
        recipe: str | Mapping[str, Any] = "rtn",
        bits: str | None = None,
        modules_to_not_convert: Sequence[str] = (),
        spec: Given = None,
        quant_method: str = "fewbit",
        **settings: Any,
    ) -> None:
        self.quant_method = QuantMethod(quant_method)
        if not isinstance(modules_to_not_convert, list | tuple):
            raise BadArgument(
                f"modules_to_not_convert is a list of names, got {modules_to_not_convert!r:.80}"
            )
        self.modules_to_not_convert = list(modules_to_not_convert)
        if isinstance(recipe, str):
            told = spec_from(spec)
            self.spec: Given = None if told is None else as_stored(told)
            self.recipe = Recipe.resolve(recipe, bits, settings).to_dict()
            self.bits = self.recipe["bits"]
            self.schema_version, self.fewbit_version = SCHEMA_VERSION, __version__
        else:
            _refuse_no_configuration(recipe, settings)
            self.recipe, self.bits, self.spec = dict(recipe), bits, spec
            self.__dict__.update(settings)  # whatever else the file said, newer keys included

    def as_recipe(self) -> Recipe:
        return Recipe.make(self.recipe["method"], self.recipe["bits"], self.recipe["settings"])

    def rounding(self) -> Rounding:
        """What it asks for while a plain model is loaded."""
        return Rounding(self.as_recipe(), self.modules_to_not_convert, self.spec)

    def to_dict(self) -> dict[str, Any]:
        said = {**super().to_dict(), "quant_method": self.quant_method.value}
        return {name: value for name, value in said.items() if name != SPEC_KEY or value}

    def to_diff_dict(self) -> dict[str, Any]:
        return self.to_dict()


class FewbitQuantizer(DiffusersQuantizer):
    """Reads an artefact, or quantizes a plain model while it is loaded; writes artefacts."""

    requires_calibration = False
    use_keep_in_fp32_modules = True

    quantization_config: FewbitConfig
    model: Any
    work: _Reading | Rounding | None  # what is to be done while loading, gone afterwards

    def __init__(self, quantization_config: FewbitConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self.work = None if self.pre_quantized else quantization_config.rounding()

    def validate_environment(self, *_: Any, device_map: Any = None, **__: Any) -> None:
        """diffusers writes what goes to disk in the model's dtype, before anybody can check it."""
        places = device_map if isinstance(device_map, Mapping) else {}
        if "disk" in places.values():
            name = next(name for name, place in places.items() if place == "disk")
            raise BadArgument(
                f"device_map puts {name or 'all'} of a quantized model on disk; allowed: devices "
                "alone, or accelerate.disk_offload(model, folder) after loading"
            )

    def update_torch_dtype(self, torch_dtype: torch.dtype | None) -> torch.dtype:
        return torch_dtype or torch.float32

    def maybe_update_loaded_keys(
        self, loaded_keys: list[str], checkpoint_files: list[str]
    ) -> list[str]:
        if self.pre_quantized:
            artefact = Artefact.of_files([Path(file) for file in checkpoint_files])
            self.work = _Reading(artefact)
            return [*loaded_keys, *artefact.manifest.aliases]
        return loaded_keys

    def _process_model_before_weight_loading(
        self,
        model: Any,
        keep_in_fp32_modules: Sequence[str] | None = None,
        state_dict: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        self.model = model
        if self.work is None and state_dict is not None:  # a single file, in diffusers 0.40
            self.maybe_update_state_dict(state_dict)
        assert self.work is not None
        self.work.begin(model, keep_in_fp32_modules or ())

    def maybe_update_state_dict(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        if self.work is None:  # from_single_file, which never says that a model is not quantized
            _refuse_packed(state_dict)
            self.work = self.quantization_config.rounding()
        return self.work.state_dict(state_dict)

    def check_if_quantized_param(
        self, model: Any, param_value: Tensor, param_name: str, *_: Any, **__: Any
    ) -> bool:
        assert self.work is not None
        return self.work.claims(param_name)

    def create_quantized_param(
        self,
        model: Any,
        param_value: Tensor,
        param_name: str,
        target_device: Any,
        state_dict: dict[str, Any],
        unexpected_keys: list[str] | None = None,
        dtype: torch.dtype | None = None,
        **_: Any,
    ) -> None:
        assert self.work is not None
        stored = state_dict[param_name]  # `param_value` is the same, cast to `dtype`
        self.work.take(param_name, stored.to(target_device), dtype or torch.float32)

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        assert self.work is not None
        model.fewbit = self.work.finish()
        self.quantization_config.spec = stored_spec(model).get(SPEC_KEY)
        model.requires_grad_(False)
        model.register_to_config(**{SAID: self.quantization_config})
        self.work = None
        bind(model)
        return model

    def get_state_dict_and_metadata(
        self, state_dict: dict[str, Any], safe_serialization: bool = False
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        if not safe_serialization:
            raise BadArgument("a quantized model is only saved as safetensors, never pickled")
        manifest, tensors = manifest_of(self.model, self.model.config)
        return tensors, manifest.to_metadata()

    def _dequantize(self, model: Any) -> Any:
        dequantize_layers(model)
        plain = {key: value for key, value in model.config.items() if key != SAID}
        model._internal_dict = FrozenDict(plain)  # there is no public way to take a key out
        return model

    @property
    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        """Adapters beside the packed weights are."""
        return True

    @property
    def is_compileable(self) -> bool:
        return True


class _Reading:
    """Loading an artefact: our own reader gives the tensors, diffusers says which and where to.

    They are being checked from the beginning; `finish` waits for it.
    """

    def __init__(self, artefact: Artefact) -> None:
        self.artefact = artefact
        self.names = artefact.manifest.names()
        self.checking = ExitStack()
        self.tensors = self.checking.enter_context(artefact.tensors())

    def begin(self, model: Any, keep_in_fp32: Sequence[str]) -> None:
        self.model, self.keep_in_fp32 = model, keep_in_fp32
        with self.checking as until_here:
            self.artefact.prepare(model)
            self.checking = until_here.pop_all()
        self.modules, self.as_is = by_name(model), stored_as_is(model)

    def state_dict(self, mapped: dict[str, Any]) -> dict[str, Any]:
        """The tensors of the file that diffusers has just mapped into memory."""
        for header in self.artefact.headers:
            if header.tensors.keys() == mapped.keys():
                return {name: self.tensors[name] for name in header.tensors}
        raise BrokenFile(f"a weight file of {self.artefact.folder} changed while it was loaded")

    def claims(self, name: str) -> bool:
        return True

    def take(self, name: str, tensor: Tensor, dtype: torch.dtype) -> None:
        casts: dict[torch.dtype, Tensor] = {}
        for user in self.names[name]:
            wanted = self._dtype(user, tensor, dtype)
            put(self.modules, user, casts.setdefault(wanted, tensor.to(wanted)))

    def finish(self) -> Provenance:
        self.checking.close()
        check_values(self.model)
        return self.artefact.manifest.provenance

    def _dtype(self, name: str, tensor: Tensor, dtype: torch.dtype) -> torch.dtype:
        """As stored inside a quantized layer, as diffusers would have it elsewhere."""
        if name in self.as_is or not tensor.is_floating_point():
            return tensor.dtype
        exempt = any(part in name.split(".") for part in self.keep_in_fp32)
        return torch.float32 if exempt else dtype


def attach(model: Any) -> None:
    """Make a model of diffusers that was quantized or read by fewbit one that it can save."""
    if not hasattr(model, "register_to_config"):
        return
    config = FewbitConfig(**quantization_config(model.fewbit), **stored_spec(model))
    quantizer = FewbitQuantizer(config, pre_quantized=True)
    quantizer.model = model
    model.hf_quantizer = quantizer
    model.is_quantized = True
    model.quantization_method = config.quant_method
    model.register_to_config(**{SAID: config})


def _refuse_no_configuration(recipe: object, others: Mapping[str, Any]) -> None:
    if not isinstance(recipe, Mapping):
        raise BadArgument(f"the recipe of a quantization_config is a table, got {recipe!r:.80}")
    taken = [name for name in others if hasattr(FewbitConfig, name)]
    if taken:
        raise BadArgument(f"a quantization_config cannot hold {taken[0][:80]!r}")


def _refuse_packed(state_dict: Mapping[str, Any]) -> None:
    packed = next((name for name in state_dict if name.endswith(_PACKED)), None)
    if packed is not None:
        raise BadArgument(
            f"the file given to from_single_file is quantized already: it holds {packed[:200]!r}; "
            "allowed: from_pretrained of its folder, or fewbit.load(file, like=model) for one of "
            "another runtime"
        )


def _tell_transformers(auto: ModuleType) -> None:
    """PipelineQuantizationConfig takes no backend that transformers has not heard of."""
    known = auto.AUTO_QUANTIZATION_CONFIG_MAPPING
    name = QuantMethod.FEWBIT.value
    if getattr(known.setdefault(name, FewbitConfig), "__module__", "") == OURS_LATER:
        known[name] = FewbitConfig


# A name that somebody else has taken stays theirs.
AUTO_QUANTIZER_MAPPING.setdefault(QuantMethod.FEWBIT.value, FewbitQuantizer)
AUTO_QUANTIZATION_CONFIG_MAPPING.setdefault(QuantMethod.FEWBIT.value, FewbitConfig)
when_imported("transformers.quantizers.auto", _tell_transformers)
when_marked(attach)
