"""Other libraries' parts that need none of them: graphs of a first call, names, reasons."""

from typing import Any

import torch
from torch import Tensor, nn

from fewbit.bench.footprint import resident_bytes
from fewbit.bench.peers.graph import Call, Flat, OfFirstCall
from fewbit.bench.peers.here import missing
from fewbit.bench.peers.layers import Layers
from fewbit.calibration.tree import tensors


class Gated(nn.Module):
    """Takes a nested argument and one that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor, gates: dict[str, Tensor], times: int = 1) -> tuple[Tensor, str]:
        return times * self.linear(x) * gates["gate"], "and more"


def call() -> dict[str, Any]:
    return {"x": torch.randn(3, 4), "gates": {"gate": torch.randn(3, 1)}, "times": 2}


class Doubled(nn.Module):
    """A library that keeps its weights to itself."""

    hidden_bytes = 100

    def __init__(self, module: nn.Module, calls: list[Call]) -> None:
        super().__init__()
        self.seen, self.run = calls, module.forward

    def forward(self, **arguments: Any) -> Tensor:
        return 2 * self.run(**arguments)[0]


def test_a_graph_is_made_once_of_the_first_call_and_the_module_is_let_go() -> None:
    module, first = Gated(), call()
    exact = module(**first)[0]
    graph = OfFirstCall(module, Doubled)
    with torch.no_grad():
        assert torch.equal(graph(first["x"], gates=first["gates"], times=2), 2 * exact)
        graph(**call())
    (seen,) = graph.graph.seen
    assert seen.keys() == first.keys()
    assert seen["x"] is first["x"]
    assert resident_bytes(graph) == Doubled.hidden_bytes


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
