"""Other libraries' parts that need none of them: graphs and their inputs, names, reasons."""

from typing import Any

import torch
from torch import Tensor, nn

from fewbit.bench.peers.graph import Graph
from fewbit.bench.peers.layers import Layers
from fewbit.calibration.flat import Flat
from fewbit.calibration.tree import tensors
from fewbit.registry import missing


class Gated(nn.Module):
    """Takes a nested argument and one that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor, gates: dict[str, Tensor], times: int = 1) -> tuple[Tensor, str]:
        return times * self.linear(x) * gates["gate"], "and more"


def call() -> dict[str, Any]:
    return {"x": torch.randn(3, 4), "gates": {"gate": torch.randn(3, 1)}, "times": 2}


class Sum(Graph):
    def compute(self, inputs: list[Tensor]) -> Tensor:
        return sum(index * x for index, x in enumerate(inputs, 1))


def test_a_graph_takes_tensors_by_their_paths_in_any_order_and_an_only_one_without() -> None:
    first = call()
    x, gate = first["x"], first["gates"]["gate"]
    graph = Sum(["x", "gates.gate"])
    assert torch.equal(graph(**first), x + 2 * gate)
    assert torch.equal(graph(gates={"gate": gate}, times=3, x=x), x + 2 * gate)
    assert torch.equal(Sum(["x"])(x), x)


def test_the_tensors_of_a_nested_call_can_be_given_one_by_one() -> None:
    module, first, second = Gated(), call(), call()
    flat = Flat(module, first, [*tensors(first)])
    assert flat.names == ["x", "gates.gate"]
    assert torch.equal(flat(*tensors(second).values()), module(**second)[0])


def test_what_is_not_installed_is_named() -> None:
    assert missing(["torch", "json"]) is None
    assert missing(["torch", "no_such"]) == "no_such is not installed"
    assert missing(["no_such", "nor_this"]) == "no_such and nor_this are not installed"


def test_layers_are_known_by_their_names_inside_of_a_block() -> None:
    layers = Layers([["blocks.1.q", "blocks.1.k"], ["blocks.10.q"]], ["blocks.1.norm"])
    assert layers.inside("blocks.1") == ["q", "k", "norm"]
    assert layers.inside("") == layers.all
