"""The plan: said before any work, exact about bytes, and the place where everything is refused."""

import pytest
import torch
from torch import nn

from fewbit import ModelSpec
from fewbit.engine.plan import Plan, make_plan
from fewbit.engine.recipe import Recipe
from fewbit.engine.stored_size import size_of
from fewbit.errors import BadArgument, BadModel

FAMILIES = ("DiTTransformer2DModel", "PixArtTransformer2DModel", "HunyuanDiT2DModel")
SPEC = ModelSpec("blocks", {"up": "fc1", "down": "fc2"})


class Tower(nn.Module):
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"up": nn.Linear(width, 64), "down": nn.Linear(64, width)})
            for _ in range(2)
        )


def plan_for(
    model: nn.Module, bits: str = "w4a4", spec: ModelSpec | None = None, **settings: object
) -> Plan:
    return make_plan(model, Recipe.make("rtn", bits, settings), spec, allow_unknown=False)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_with_a_role_has_a_rule_and_one_job(small, family):
    model = small(family)
    plan = plan_for(model)
    wanted = [layer.name for layer in plan.structure.layers if layer.status == "quantize"]
    jobs = [plan.job(model, block, seed=3) for block in range(len(plan.structure.blocks))]
    assert sorted(plan.rules) == sorted(wanted)
    assert sorted(name for job in jobs for group in job.groups for name in group) == sorted(wanted)
    assert sorted(name for job in jobs for name in job.rules) == sorted(wanted)
    assert {job.seed for job in jobs} == {3}


def test_the_bytes_afterwards_by_hand():
    plan = plan_for(Tower(), "w4a16", SPEC)
    up, down = 64 * (32 // 2) + 64 * 4 + 64 * 4, 32 * (64 // 2) + 32 * 4 + 32 * 4
    assert plan.size_after.bytes == 2 * (up + down)
    assert plan.stored.bytes == size_of(Tower()).bytes == 2 * 4 * (2 * 32 * 64 + 32 + 64)


def test_it_reads_well():
    text = str(plan_for(Tower(), "w8a8", SPEC)).splitlines()
    assert text[0] == "plan: rtn:w8a8 for Tower, 2 blocks"
    assert text[3].strip() == "fc1          2 x weight int8/row/fp32, input int8/row/fp32"
    assert text[-1] == "  0 other layers stay in high precision"


def test_without_some_layers():
    plan = plan_for(Tower(), spec=SPEC).without(["blocks.0.*"])
    assert list(plan.rules) == ["blocks.1.up", "blocks.1.down"]
    assert plan.job(Tower(), 0, 0).groups == ()


def test_a_job_of_one_group(small):
    model = small()
    plan = plan_for(model)
    job = plan.job_of_group(model, "transformer_blocks.1.attn1.to_k")
    names = [f"transformer_blocks.1.attn1.to_{x}" for x in "qkv"]
    assert sorted(job.rules) == sorted(job.groups[0]) == sorted(names)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("part", ["weight", "bias"])
def test_a_weight_that_is_no_number_is_named(bad, part):
    model = Tower()
    getattr(model.blocks[1]["up"], part).data.view(-1)[5] = bad
    with pytest.raises(BadModel, match=f"the {part} of blocks.1.up holds NaN or infinite"):
        plan_for(model, spec=SPEC)


def test_large_finite_weights_whose_sum_overflows_are_fine():
    model = Tower().half()
    model.blocks[0]["up"].weight.data.fill_(60000)
    assert plan_for(model, spec=SPEC).rules


@pytest.mark.parametrize("bits", ["mxfp4", "nvfp4"])
def test_a_group_that_does_not_divide_names_the_layer(bits):
    with pytest.raises(BadArgument, match=r"blocks\.0\.up: a group of .* does not divide 40"):
        plan_for(Tower(40), bits, SPEC)


def test_what_has_no_role_is_unknown_until_allowed():
    model, spec = Tower(), ModelSpec("blocks", {"up": "fc1"})
    with pytest.raises(BadModel, match=r"2 layers of Tower .*blocks\.0\.down.*allow_unknown=True"):
        plan_for(model, spec=spec)
    recipe = Recipe.make("rtn", None, {})
    assert len(make_plan(model, recipe, spec, allow_unknown=True).rules) == 2


def test_a_model_without_blocks_is_told_about_model_spec():
    message = r"no list of Tower holds blocks, .*give spec=fewbit\.ModelSpec\(.*lists: blocks"
    with pytest.raises(BadModel, match=message):
        plan_for(Tower())


def test_a_model_on_meta_can_be_planned():
    with torch.device("meta"):
        model = Tower()
    assert plan_for(model, spec=SPEC).size_after == plan_for(Tower(), spec=SPEC).size_after


def own_forward(module):
    before = module.forward
    module.forward = lambda x: before(x) + 1


LISTENERS = {
    "own forward": own_forward,
    "hook": lambda module: module.register_forward_hook(lambda _m, _x, y: y + 1),
    "pre-hook": lambda module: module.register_forward_pre_hook(lambda _m, x: x[0] + 1),
}


@pytest.mark.parametrize("put", LISTENERS.values(), ids=LISTENERS)
def test_what_would_be_lost_with_a_layer_is_refused(put):
    model = Tower()
    put(model.blocks[1]["down"])
    with pytest.raises(BadModel, match=r"blocks\.1\.down has a hook or a forward .*allowed: take"):
        plan_for(model, spec=SPEC)


@pytest.mark.parametrize("place", ["", "blocks.0"])
def test_a_function_that_a_copy_would_share_is_refused_where_copies_are_trained(place):
    model = Tower()
    model.get_submodule(place).forward = lambda x: x
    recipe = Recipe.make("vq4dit", "w2a16", {})
    with pytest.raises(BadModel, match=f"{place or 'the model'} has a forward .*copy is trained"):
        make_plan(model, recipe, SPEC, allow_unknown=False)
    assert plan_for(model, spec=SPEC).rules


def test_weights_that_torch_does_not_compute_with_are_refused():
    with pytest.raises(
        BadModel, match=r"weight of blocks\.0\.up is torch\.float8_e4m3fn; allowed: "
    ):
        plan_for(Tower().to(torch.float8_e4m3fn), spec=SPEC)
