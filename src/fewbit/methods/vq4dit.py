"""VQ4DiT (Deng et al., 2024): every linear of a block as a codebook and assignments to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fewbit.activations.dynamic import Dynamic
from fewbit.calibration.reconstruction import Reconstruction
from fewbit.calibration.training import Group, Schedule, train, trainable_copy
from fewbit.formats import FORMATS, Codebook, QTensor, SCALES, Spec
from fewbit.input_stage import InputStage
from fewbit.linear import QLinear
from fewbit.methods.contract import BlockJob, Rule, one_of, within
from fewbit.models import Layer, Role
from fewbit.rounding.candidates import VectorLinear
from fewbit.rounding.vector import vector_quantize

NAME = "vq4dit"
SUMMARY = "2 and 3 bit weights: codebooks and assignments, calibrated together without data"
CALIBRATED = True
TARGETS = True
PRESETS: dict[str, dict[str, object]] = {"fast": {"samples": 64, "steps": 100}}


def _codebook(entries: int, columns: int) -> Spec:
    return Spec(Codebook(entries, columns), "tensor", SCALES["fp32"])


VARIANTS = {
    "w2a16": Rule(_codebook(256, 4)),
    "w3a16": Rule(_codebook(64, 2)),
    "w4a16": Rule(_codebook(256, 2)),
    "w1.5a16": Rule(_codebook(64, 4)),
    "w2a8": Rule(_codebook(256, 4), Spec(FORMATS["int8"])),
}


@dataclass(frozen=True)
class Settings:
    samples: int = 256
    propagate: bool = True
    steps: int = 300
    batch: int = 16
    candidates: int = 3
    ratios: str = "distance"
    freeze_from: float = 0.1
    freeze_to: float = 0.7
    penalty: float = 0.0
    rate: float = 3e-3
    ratio_rate: float = 5e-2
    bias_rate: float = 1e-3
    gain_rate: float = 1e-3
    weighted: bool = True
    row_scales: bool = True
    adaln: str = "same"
    hard: bool = False


def rule(layer: Layer, variant: Rule, settings: Settings) -> Rule | None:
    if layer.role is Role.ADALN and settings.adaln != "same":
        return None if settings.adaln == "keep" else Rule(Spec(FORMATS["int8"]))
    spec = replace(variant.weight, format=variant.weight.format.for_size(*layer.shape))
    if settings.row_scales:
        spec = replace(spec, span="row", scale=SCALES["fp16"])
    return Rule(spec, None if layer.role is Role.ADALN else variant.activation)


def solve(job: BlockJob, settings: Settings) -> None:
    seen = job.observe() if settings.weighted else {}
    block = trainable_copy(job.module)
    layers = {}
    plain = {}
    for number, group in enumerate(job.groups):
        moments = seen[group[0]].moments.diagonal() if group[0] in seen else None
        for n2, name in enumerate(group):
            linear, spec = job.linear(name), job.rules[name].weight
            start = vector_quantize(job.weight(name), spec, job.seed_of(number*10+n2), moments)
            plain[name] = vector_quantize(job.weight(name), replace(spec, span="tensor"), job.seed_of(number*10+n2))
            layers[name] = VectorLinear(start, linear.bias)
            if settings.candidates > 1:
                layers[name].consider(job.weight(name), moments, settings.candidates, settings.ratios == "uniform")
            layers[name].hard = settings.hard
            block.set_submodule(job.path(name), layers[name])
    every = layers.values()
    if settings.steps:
        groups = [
            Group([l.codebook for l in every], settings.rate),
            Group([l.gain for l in every if l.gain.requires_grad], settings.gain_rate),
            Group([l.bias for l in every if l.bias is not None], settings.bias_rate),
            Group([l.logits for l in every if l.logits.numel()], settings.ratio_rate),
        ]
        groups = [g for g in groups if g.parameters]
        def penalty(done):
            if not settings.penalty or settings.candidates == 1: return 0.0
            return settings.penalty * torch.stack([l.indecision() for l in every]).mean()
        state = {"next": 0.0}
        def after(done):
            if settings.candidates > 1 and done >= settings.freeze_from + state["next"]*(settings.freeze_to-settings.freeze_from) and state["next"] <= 1:
                for l in every: l.freeze(state["next"])
                state["next"] = round(state["next"] + 0.05, 6)
        rows = Reconstruction.of_block(job.step, job.exact)
        L = []
        def lossf(m, done):
            x = m.loss(block(*m.args, **m.kwargs)); L.append(float(x.detach()))
            return x + penalty(done)
        train(lossf, rows, groups, Schedule(settings.steps, settings.batch, job.seed_of(900)), after)
        f = max(len(L)//10,1)
        print(job.name, "loss dB", " ".join("%.1f" % (-10*torch.tensor(L[i:i+f]).mean().log10().item()) for i in range(0,len(L),f)), flush=True)
    for l in every:
        if l.candidates.shape[1] > 1: l.freeze(1.0)
    for group in job.groups:
        spec = job.rules[group[0]].activation
        stage = None if spec is None else InputStage(activation=Dynamic(spec))
        for name in group:
            linear = job.linear(name)
            bias = None if linear.bias is None else layers[name].bias.detach().to(linear.bias.dtype)
            job.replace(name, QLinear(layers[name].packed(), bias, stage), job.weight(name), plain[name])
