"""fewbit as a quantizer of diffusers: `from_pretrained` and `save_pretrained` just work."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from diffusers.quantizers.base import DiffusersQuantizer
from diffusers.quantizers.quantization_config import QuantizationConfigMixin
from torch import Tensor, nn

from fewbit.blueprint import quantized_layers
from fewbit.checkpoint import (
    SCHEMA_VERSION,
    Manifest,
    check_architecture,
    check_digest,
    digest,
    manifest_of,
    prepare,
)
from fewbit.dequantize import dequantize_layers
from fewbit.errors import BadArgument, BadCalibration, BrokenFile
from fewbit.folder import check_all_values, put, shard_path
from fewbit.header import read_header
from fewbit.plan import Plan, make_plan
from fewbit.provenance import Provenance, source_sha256
from fewbit.recipe import Recipe
from fewbit.version import __version__


class QuantMethod(str, Enum):
    FEWBIT = "fewbit"


class FewbitConfig(QuantizationConfigMixin):
    """A data-free recipe to apply while loading, or what `config.json` says of a quantized model.

    How each layer is stored is written beside the weights, in the manifest.
    """

    def __init__(
        self,
        recipe: str | Mapping[str, Any] = "rtn",
        bits: str | None = None,
        modules_to_not_convert: Sequence[str] = (),
        quant_method: str = "fewbit",
        **settings: Any,
    ) -> None:
        self.quant_method = QuantMethod(quant_method)
        self.modules_to_not_convert = list(modules_to_not_convert)
        if isinstance(recipe, str):
            self.recipe = Recipe.make(recipe, bits, settings).to_dict()
            self.bits = self.recipe["bits"]
            self.schema_version, self.fewbit_version = SCHEMA_VERSION, __version__
        else:
            self.recipe, self.bits = dict(recipe), bits
            self.__dict__.update(settings)  # whatever else the file said, newer keys included

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "quant_method": self.quant_method.value}

    def to_diff_dict(self) -> dict[str, Any]:
        return self.to_dict()


class FewbitQuantizer(DiffusersQuantizer):
    requires_calibration = False
    use_keep_in_fp32_modules = True

    quantization_config: FewbitConfig
    manifest: Manifest
    plan: Plan
    model: nn.Module

    def __init__(self, quantization_config: FewbitConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self.keep_in_fp32: Sequence[str] = ()
        self.sources: dict[str, str] = {}
        if not self.pre_quantized:
            _refuse_calibrated(self.recipe)

    @property
    def recipe(self) -> Recipe:
        said = self.quantization_config.recipe
        return Recipe.make(said["method"], said["bits"], said["settings"])

    def update_torch_dtype(self, torch_dtype: torch.dtype | None) -> torch.dtype:
        return torch_dtype or torch.float32

    def maybe_update_loaded_keys(
        self, loaded_keys: list[str], checkpoint_files: list[str]
    ) -> list[str]:
        if not self.pre_quantized:
            return loaded_keys
        folder = Path(checkpoint_files[0]).parent
        names = [os.path.relpath(file, folder) for file in checkpoint_files]
        self.headers = [read_header(shard_path(folder, name)) for name in names]
        self.manifest = Manifest.from_headers(self.headers)
        return [*loaded_keys, *self.manifest.aliases]

    def _process_model_before_weight_loading(
        self, model: nn.Module, keep_in_fp32_modules: Sequence[str] | None = None, **_: Any
    ) -> None:
        self.model = model
        self.keep_in_fp32 = keep_in_fp32_modules or ()
        if self.pre_quantized:
            if self.manifest.provenance.recipe != self.quantization_config.recipe:
                raise BrokenFile("config.json names another recipe than the weights were made with")
            check_architecture(self.manifest, model.config)
            prepare(model, self.manifest, self.headers)
        else:
            self.plan = make_plan(model, self.recipe, None, allow_unknown=False).without(
                self.quantization_config.modules_to_not_convert
            )

    def check_if_quantized_param(
        self, model: nn.Module, param_value: Tensor, param_name: str, *_: Any, **__: Any
    ) -> bool:
        """All tensors of an artefact are ours to check; of a plain model, the planned weights."""
        return self.pre_quantized or param_name.removesuffix(".weight") in self.plan.rules

    def create_quantized_param(
        self,
        model: nn.Module,
        param_value: Tensor,
        param_name: str,
        target_device: Any,
        state_dict: dict[str, Any],
        unexpected_keys: list[str] | None = None,
        dtype: torch.dtype | None = None,
        **_: Any,
    ) -> None:
        stored = state_dict[param_name]  # `param_value` may have been cast already
        if not self.pre_quantized:
            self._quantize_when_complete(param_name.removesuffix(".weight"), stored, target_device)
            return
        check_digest(param_name, stored, self.manifest)
        tensor = stored.to(target_device)
        if not self._inside_quantized(param_name):
            tensor = tensor.to(self._kept_dtype(param_name, dtype))
        for name in (param_name, *self._sharers.get(param_name, ())):
            put(model, name, tensor)

    def _process_model_after_weight_loading(self, model: nn.Module, **_: Any) -> nn.Module:
        if self.pre_quantized:
            check_all_values(model)
            model.fewbit = self.manifest.provenance
        else:
            source = source_sha256(self.sources)
            model.fewbit = Provenance(self.recipe.to_dict(), 0, source, __version__)
            model.register_to_config(quantization_config=self.quantization_config)
        return model

    def get_state_dict_and_metadata(
        self, state_dict: dict[str, Any], safe_serialization: bool = False
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        if not safe_serialization:
            raise BadArgument("a quantized model is only saved as safetensors, never pickled")
        manifest, tensors = manifest_of(self.model, self.model.config)
        return tensors, manifest.to_metadata()

    def _dequantize(self, model: nn.Module) -> nn.Module:
        dequantize_layers(model)
        return model

    @property
    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False

    @property
    def is_compileable(self) -> bool:
        return True

    @property
    def _sharers(self) -> dict[str, list[str]]:
        sharers: dict[str, list[str]] = {}
        for alias, name in self.manifest.aliases.items():
            sharers.setdefault(name, []).append(alias)
        return sharers

    def _inside_quantized(self, name: str) -> bool:
        """Codes, scales and what belongs to the input keep the dtype they are stored in."""
        layers = quantized_layers(self.model)
        return any(name.startswith(f"{at}.") and name != f"{at}.bias" for at in layers)

    def _kept_dtype(self, name: str, dtype: torch.dtype | None) -> torch.dtype:
        exempt = any(part in name.split(".") for part in self.keep_in_fp32)
        return torch.float32 if exempt else dtype or torch.float32

    def _quantize_when_complete(self, name: str, weight: Tensor, device: Any) -> None:
        """Layers that read one tensor are solved together, as soon as the last one has come."""
        self.sources[name] = digest(weight)
        put(self.model, f"{name}.weight", weight.to(device))
        job = self.plan.job_of_group(self.model, name)
        if not any(job.linear(one).weight.is_meta for one in job.rules):
            self.recipe.implementation.solve(job, self.recipe.settings)


def attach(model: nn.Module, recipe: Recipe) -> None:
    """Make a model that was quantized in memory one that diffusers can save."""
    config = FewbitConfig(recipe.to_dict(), recipe.bits)
    config.schema_version, config.fewbit_version = SCHEMA_VERSION, __version__
    quantizer = FewbitQuantizer(config, pre_quantized=True)
    quantizer.model = model
    model.hf_quantizer = quantizer
    model.is_quantized = True
    model.quantization_method = config.quant_method
    model.register_to_config(quantization_config=config)


def _refuse_calibrated(recipe: Recipe) -> None:
    if recipe.implementation.CALIBRATED:
        raise BadCalibration(
            f"{recipe.method} needs calibration and cannot be applied while loading; load the "
            f'pipeline, call fewbit.quantize(pipe, "{recipe.method}"), then pipe.save_pretrained'
        )
