"""Quantizing a model while it is being loaded, by diffusers or by transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fewbit.engine.plan import Plan, make_plan
from fewbit.engine.recipe import Recipe
from fewbit.errors import BadArgument, BadCalibration, BadModel, BrokenFile
from fewbit.models import SPEC
from fewbit.models.guess import blocks_of
from fewbit.models.hidden import is_shown, show_at, shown
from fewbit.models.recognise import is_known
from fewbit.storage.blueprint import by_name
from fewbit.storage.folder import put
from fewbit.storage.provenance import Provenance, source_sha256
from fewbit.storage.spec_file import Given, spec_from
from fewbit.storage.tensors import digest
from fewbit.version import __version__


class Rounding:
    """Layers that read one tensor are quantized as soon as all of them have come."""

    def __init__(self, recipe: Recipe, keep: Sequence[str], spec: Given) -> None:
        _refuse_calibrated(recipe)
        self.recipe, self.keep, self.spec = recipe, keep, spec_from(spec)
        self.sources: dict[str, str] = {}

    def begin(self, model: Any, keep_in_fp32: Sequence[str] = ()) -> None:
        self.model = model
        with shown(model):
            if self.spec is None:
                _refuse_without_blocks(model)
            whole = make_plan(model, self.recipe, self.spec, allow_unknown=False)
        self.plan = _without(whole, self.keep)
        self.modules = by_name(model)

    def state_dict(self, mapped: dict[str, Any]) -> dict[str, Any]:
        return mapped

    def claims(self, name: str) -> bool:
        return name.removesuffix(".weight") in self.plan.rules

    def take(self, name: str, tensor: Tensor, dtype: torch.dtype) -> Sequence[str]:
        """The layers that are quantized now. Cast first: the same as loading in that dtype and
        quantizing then."""
        put(self.modules, name, tensor.to(dtype))
        return self._solve(name.removesuffix(".weight"))

    def _solve(self, layer: str) -> Sequence[str]:
        self.sources[layer] = digest(self.model.get_submodule(layer).weight.detach())
        job = self.plan.job_of_group(self.model, layer)
        if any(job.linear(one).weight.is_meta for one in job.rules):
            return ()
        self.recipe.method.solve(job, self.recipe.settings)
        return tuple(job.rules)

    def finish(self) -> Provenance:
        for layer in [name for name in self.plan.rules if name not in self.sources]:
            if not (show_at(self.model, layer) or is_shown(self.model, layer)):
                raise BrokenFile(f"the checkpoint lacks the weight of {layer}")
            self._solve(layer)
        setattr(self.model, SPEC, self.plan.structure.spec)
        return Provenance(self.recipe.to_dict(), 0, source_sha256(self.sources), __version__)


def _without(plan: Plan, keep: Sequence[str]) -> Plan:
    """Names and patterns of layers, or of modules that hold layers."""
    for pattern in keep:
        kept = plan.without([pattern, f"{pattern}.*", f"*.{pattern}", f"*.{pattern}.*"])
        if len(kept.rules) == len(plan.rules):
            raise BadArgument(
                f"modules_to_not_convert names {pattern!r}, but no layer to be quantized is "
                f"called so; a layer: {next(iter(plan.rules), 'none is left')}"
            )
        plan = kept
    return plan


def _refuse_calibrated(recipe: Recipe) -> None:
    if recipe.method.calibrated:
        raise BadCalibration(
            f"{recipe.method} needs calibration and cannot be applied while loading; load the "
            f'pipeline, call fewbit.quantize(pipe, "{recipe.method}"), then pipe.save_pretrained'
        )


def _refuse_without_blocks(model: nn.Module) -> None:
    """As a VAE is, of which a pipeline is full that is told to quantize all that it has."""
    if not is_known(model) and not blocks_of(model):
        raise BadModel(
            f"{type(model).__name__} has no transformer blocks, so nothing of it can be quantized "
            "while it is loaded; allowed: the names of a pipeline's networks, such as "
            'PipelineQuantizationConfig(..., components_to_quantize=["transformer"]), or no '
            "quantization_config"
        )
