import pytest
import torch
from torch import nn

from fewbit.judge.finite import NotFinite, every_layer, finite_outputs, outermost


class Doubling(nn.Module):
    def forward(self, x):
        return {"hidden": (x * 2,)}


def network(bad: int | None) -> nn.Sequential:
    """Three blocks of two layers; the weights of one may be broken."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        blocks = [nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(3)]
    if bad is not None:
        blocks[bad][0].weight.data[1, 1] = torch.nan
    return nn.Sequential(*blocks)


class Pipe:
    def __init__(self, **components):
        self.components = components


def first_bad(pipe: Pipe, modules: dict) -> str:
    with pytest.raises(NotFinite) as found, finite_outputs(modules):
        pipe.components["transformer"](torch.ones(2, 4))
    return found.value.layer


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_the_innermost_layer_that_is_first_is_named(bad):
    pipe = Pipe(transformer=network(bad), scheduler=object())
    assert first_bad(pipe, every_layer(pipe)) == f"transformer.{bad}.0"
    assert first_bad(pipe, outermost(pipe)) == f"transformer.{bad}"


def test_what_goes_wrong_between_layers_is_the_networks_own():
    pipe = Pipe(transformer=Doubling())
    with pytest.raises(NotFinite) as found, finite_outputs(every_layer(pipe)):
        pipe.components["transformer"](torch.tensor([3e38]))
    assert found.value.layer == "transformer"


def test_an_infinity_counts_and_whole_numbers_never_do():
    layer = nn.Identity()
    with pytest.raises(NotFinite), finite_outputs({"it": layer}):
        layer(torch.tensor([1.0, -torch.inf]))
    with finite_outputs({"it": layer}):
        layer(torch.tensor([1, 2]))
        layer(None)
        layer(torch.tensor([1.0, 3e38]))


def test_nested_outputs_are_looked_into():
    layer = Doubling()
    with pytest.raises(NotFinite, match="the output of it is not finite"):  # noqa: SIM117
        with finite_outputs({"it": layer}):
            layer(torch.tensor([3e38]))


@pytest.mark.parametrize("bad", [None, 1])
def test_no_hook_stays(bad):
    model = network(bad)
    try:
        with finite_outputs({"it": model, "first": model[0]}):
            model(torch.ones(1, 4))
    except NotFinite:
        pass
    assert not any(module._forward_hooks for module in model.modules())


def test_blocks_in_a_list_are_outermost_too():
    model = nn.Module()
    model.blocks, model.head = nn.ModuleList([nn.Identity(), nn.Identity()]), nn.Identity()
    found = outermost(Pipe(transformer=model))
    assert list(found) == [
        "transformer", "transformer.blocks.0", "transformer.blocks.1", "transformer.head",
    ]  # fmt: skip
