"""What quantization does to a layer's output, on inputs that the layer really sees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.functional import linear

from fewbit.calibration import LayerInput, Step
from fewbit.engine.decibel import energies, ratio_db
from fewbit.methods.method import BlockJob, Rule

ROWS = 16  # of the calibration: the error of a layer is an average over its tokens


@dataclass
class OutputError:
    """Summed squares over all that was seen."""

    signal: float = 0.0
    noise: float = 0.0
    plain_noise: float = 0.0  # of plain rounding by the same rule

    @property
    def actual_db(self) -> float:
        return ratio_db(self.signal, self.noise)

    @property
    def plain_db(self) -> float:
        return ratio_db(self.signal, self.plain_noise)


def output_errors(
    step: Step, job: BlockJob, originals: Mapping[str, nn.Linear]
) -> dict[str, OutputError]:
    """By name, of the layers that run: on the inputs that the quantized block gives them."""
    errors: dict[str, OutputError] = {}
    plain = {
        name: solved.plainly(originals[name].weight.detach().float(), job.rules[name])
        for name, solved in job.solved.items()
    }

    def receive(given: LayerInput) -> None:
        name = f"{job.name}.{given.name}"
        real = slice(None) if given.mask is None else given.mask > 0
        exact = originals[name](given.x)[real]
        signal, noise = energies(exact, job.solved[name].layer.forward(given.x)[real])
        rounded = _plainly(given.x[real], plain[name], originals[name].bias, job.rules[name])
        error = errors.setdefault(name, OutputError())
        error.signal += signal
        error.noise += noise
        error.plain_noise += energies(exact, rounded)[1]

    minibatches = -(-ROWS * step.minibatches // step.rows)
    step.layer_inputs([job.path(name) for name in job.solved], receive, minibatches)
    return errors


def _plainly(x: Tensor, weight: Tensor, bias: Tensor | None, rule: Rule) -> Tensor:
    rows = x.float().flatten(0, -2)
    if rule.activation is not None:
        rows = rule.activation.round(rows)
    y = linear(rows, weight, None if bias is None else bias.float())
    return y.view(*x.shape[:-1], len(weight))
