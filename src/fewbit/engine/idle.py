"""Plain rounding of layers that no calibration data reach, or that no block holds."""

from __future__ import annotations

from fewbit.activations.dynamic import Dynamic
from fewbit.formats import QTensor
from fewbit.layers.linear import QLinear
from fewbit.layers.stage import InputStage
from fewbit.methods.method import BlockJob
from fewbit.rounding.vector import vector_quantize


def round_plainly(job: BlockJob) -> None:
    """Weights by their rule, inputs at run time. Steps that would have to be known beforehand are
    not: such inputs stay as they come."""
    for group in job.groups:
        spec = job.rules[group[0]].activation
        at_run_time = spec if spec is not None and spec.span != "tensor" else None
        stage = None if at_run_time is None else InputStage(activation=Dynamic(at_run_time))
        for number, name in enumerate(group):
            weight, rule = job.weight(name), job.rules[name].weight
            learned = rule.format.learned
            packed = (
                vector_quantize(weight, rule, job.seed_of(number), None)
                if learned
                else QTensor.quantize(weight, rule)
            )
            job.replace(name, QLinear(packed, job.linear(name).bias, stage), weight, packed)
