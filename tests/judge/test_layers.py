"""Errors of single layers, held against a network simple enough to reckon with by hand."""

import copy
import math

import pytest
import torch

import fewbit
from fewbit.calibration import RowSet
from fewbit.engine.decibel import sqnr
from fewbit.judge.layers import LayerErrors, turned_layers
from fewbit.judge.trajectory import trajectory_fidelity
from fewbit.layers.linear import QLinear

FIRST = "transformer_blocks.0.attn1.to_q"


@pytest.fixture
def reference(small):
    return small()


@pytest.fixture
def rows():
    random = torch.Generator().manual_seed(0)
    return RowSet.from_items(
        [
            {
                "hidden_states": torch.randn(6, 4, 8, 8, generator=random),
                "timestep": torch.tensor([1, 500, 900] * 2),
                "class_labels": torch.arange(6),
            }
        ]
    )


def quantized(reference, bits="w4a4", recipe="rtn"):
    network = copy.deepcopy(reference)
    fewbit.quantize(network, recipe, bits=bits, progress=False)
    return network


def layers(reference, network, rows, batch=4):
    found = trajectory_fidelity(reference, network, rows, batch, LayerErrors(reference, network))
    return {layer.name: layer for layer in found.layers}


def outputs(network, name, rows):
    heard = []
    hook = network.get_submodule(name).register_forward_hook(lambda *a: heard.append(a[2]))
    with torch.no_grad():
        network(**rows.take(range(len(rows))))
    hook.remove()
    return heard[0]


def test_a_layers_error_is_that_of_its_output(reference, rows):
    network = quantized(reference)
    found = layers(reference, network, rows)
    assert len(found) == sum(isinstance(m, QLinear) for m in network.modules())
    for name in (FIRST, "transformer_blocks.1.ff.net.2"):
        exact, actual = outputs(reference, name, rows), outputs(network, name, rows)
        # a batch of another size sums in another order
        assert found[name].sqnr == pytest.approx(sqnr(exact, actual), abs=1e-3)
        at = [1, 4]
        assert found[name].by_timestep[500] == pytest.approx(sqnr(exact[at], actual[at]), abs=1e-3)
        assert list(found[name].by_timestep) == [1, 500, 900]
    assert found[FIRST].role == "q"


def test_the_same_weights_lose_nothing_and_no_hook_stays(reference, rows):
    network = quantized(reference)
    again = copy.deepcopy(network)
    found = layers(network, again, rows)
    assert {layer.sqnr for layer in found.values()} == {math.inf}
    assert not any(m._forward_hooks for one in (network, again) for m in one.modules())


def test_a_layer_that_gives_turned_values_is_left_out(reference, rows):
    network = copy.deepcopy(reference)
    fewbit.quantize(network, "hq-dit", calibration=rows, progress=False)
    values = {f"transformer_blocks.{block}.attn1.to_v" for block in (0, 1)}
    assert turned_layers(network) == values
    found = layers(reference, network, rows)
    assert not values & found.keys()
    assert min(layer.sqnr for layer in found.values()) > 3  # each stands in full precision's basis
    assert found[FIRST].transformed is not None
    assert sum(found[FIRST].inputs.counts) == sum(found[FIRST].transformed.counts)


def test_a_full_precision_network_has_no_layers_to_blame(reference, rows):
    assert layers(reference, copy.deepcopy(reference), rows) == {}
    assert turned_layers(reference) == set()
