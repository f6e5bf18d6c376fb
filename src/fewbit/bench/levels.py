"""What is called at each level: a layer, a block, one step, or all steps of an image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fewbit.bench.subject import Call, Subject, calls
from fewbit.calibration.flat import output
from fewbit.calibration.tree import tensors
from fewbit.errors import BadModel
from fewbit.kernels.values import NOTHING
from fewbit.layers.linear import QLinear

SETS = 4  # of weights in turn: what one arm reads has left the caches when its turn comes again
STEPS = 50
PRODUCT = " product"  # after an arm's name: without the rounding of the input


@dataclass(frozen=True)
class Case:
    """One table: the same call for every arm, on several sets of weights."""

    title: str
    call: Call
    modules: dict[str, list[nn.Module]]
    operations: float | None = None  # of one call's product
    residual: str | None = None  # the argument that the output is added to, and errors hide in


Networks = Mapping[str, nn.Module]
Level = Callable[[Subject, Networks], Iterator[Case]]


def gemm(subject: Subject, networks: Networks) -> Iterator[Case]:
    """One case for each shape among the layers of a block."""
    shapes = {layer.shape: layer.name for layer in reversed(subject.layers)}
    seen = calls(subject, list(shapes.values()))
    block = subject.blocks(1)[0]
    for (rows, columns), name in reversed(shapes.items()):
        path = name.removeprefix(f"{block}.")
        names = [f"{one}.{path}" for one in subject.blocks(SETS)]
        modules = {
            arm: [network.get_submodule(n) for n in names] for arm, network in networks.items()
        }
        call = seen[name]
        (x,) = call.arguments.values()
        tokens = x.numel() // columns
        title = f"{path}: {tokens} x {columns} x {rows}"
        yield Case(title, call, modules, operations=2.0 * tokens * rows * columns)


def block(subject: Subject, networks: Networks) -> Iterator[Case]:
    names, (call, *_) = zip(*called("block", subject).items(), strict=True)
    modules = {arm: [network.get_submodule(n) for n in names] for arm, network in networks.items()}
    residual = "hidden_states" if "hidden_states" in call.arguments else None
    yield Case(f"one block, {_sizes(call)}", call, modules, residual=residual)


def step(subject: Subject, networks: Networks) -> Iterator[Case]:
    call = Call(subject.inputs)
    yield Case(f"one step, {_sizes(call)}", call, {arm: [n] for arm, n in networks.items()})


def image(subject: Subject, networks: Networks) -> Iterator[Case]:
    call = Call(subject.inputs)
    if not {"hidden_states", "timestep"} <= call.arguments.keys():
        raise BadModel(f"{subject.name} has no timestep and latent to draw an image with")
    modules: dict[str, list[nn.Module]] = {
        arm: [_Denoising(network)] for arm, network in networks.items()
    }
    yield Case(f"{STEPS} steps without encoder and decoder, {_sizes(call)}", call, modules)


LEVELS: dict[str, Level] = {"gemm": gemm, "block": block, "step": step, "image": image}


def blocks_needed(level: str, subject: Subject) -> int:
    return SETS if level in ("gemm", "block") else subject.repeats


def called(level: str, subject: Subject) -> dict[str, Call]:
    """The largest modules that are called, by their paths; an image calls the whole network."""
    if level not in ("gemm", "block"):
        return {"": Call(subject.inputs)}
    names = subject.blocks(SETS)
    return dict.fromkeys(names, calls(subject, names[:1])[names[0]])


class ProductAlone(nn.Module):
    """A layer with its input rounded beforehand."""

    def __init__(self, layer: QLinear, x: Tensor) -> None:
        super().__init__()
        self.bound, self.dtype = layer.bound(), x.dtype
        self.codes = self.bound.code(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.bound.multiply(self.codes, self.dtype, NOTHING).view(*x.shape[:-1], -1)


class _Denoising(nn.Module):
    """What a pipeline does between its encoders and its decoder, but for adding up guidance."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, **inputs: Any) -> Tensor:
        from diffusers import DDIMScheduler

        scheduler = DDIMScheduler()
        scheduler.set_timesteps(STEPS)
        latent, time = inputs["hidden_states"], inputs["timestep"]
        for t in scheduler.timesteps:
            now = {"hidden_states": latent, "timestep": torch.full_like(time, int(t))}
            noise = output(self.network, {**inputs, **now})[:, : latent.shape[1]]
            latent = scheduler.step(noise, int(t), latent).prev_sample
        return latent


def _sizes(call: Call) -> str:
    first = next(iter(tensors(call.arguments).values()))
    return " x ".join(map(str, first.shape))
