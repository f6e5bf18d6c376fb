"""Structure from one forward: equal to what family files say, and right where there are none."""

import any_transformers
import own_transformer
import pytest
import torch
from torch import nn

from fewbit.errors import BadCalibration, BadModel
from fewbit.models import ModelSpec, Role, describe
from fewbit.models.discover import discover
from fewbit.models.guess import guess
from fewbit.models.recognise import Origin
from tests.models.test_families import FAMILY, FORWARD, ROLES, paths
from tests.models.test_families import model as model  # a fixture

LOOM = {
    "text_ask": "q",
    "text_find": "k",
    "text_say": "v",
    "image_ask": "q",
    "image_find": "k",
    "image_say": "v",
    "text_merge": "attn_out",
    "image_merge": "attn_out",
    "shift": "adaln",
    "all_three": "qkv",
    "merge": "attn_out",
    **{f"experts.{number}.opens": "gate" for number in range(3)},
    **{f"experts.{number}.brings": "fc1" for number in range(3)},
    **{f"experts.{number}.closes": "fc2" for number in range(3)},
}


def relative(structure, group):
    block = next(at for at in structure.blocks if group[0].startswith(f"{at}."))
    return paths(group, block)


def found(structure):
    """Path inside a block -> role, of all blocks."""
    return {relative(structure, [la.name])[0]: la.role for la in structure.layers if la.role}


def groups(structure):
    return {
        relative(structure, group)
        for block in range(len(structure.blocks))
        for group in structure.shared_inputs(block)
        if len(group) > 1
    }


def test_it_equals_the_family_where_that_speaks(model):
    known = describe(model)
    seen = describe(model, discover(model, FORWARD[type(model).__name__]))
    assert seen.blocks == known.blocks
    roles = {layer.name: layer.role for layer in seen.layers}
    for layer in known.layers:
        if layer.status == "quantize":
            assert roles[layer.name] is layer.role, layer.name
        elif layer.block is None:
            assert roles[layer.name] in (None, Role.ADALN)  # a shared one, which PixArt's keeps
    for block in range(len(known.blocks)):
        assert set(known.shared_inputs(block)) <= set(seen.shared_inputs(block))
        assert set(known.attentions(block)) == set(seen.attentions(block))
    assert type(model).__name__ in FAMILY
    assert ROLES


def test_a_class_of_ones_own_costs_no_line():
    model = own_transformer.loom()
    structure = describe(model, call=own_transformer.call())
    assert structure.origin is Origin.FORWARD
    assert structure.blocks == ("meetings.0", "alone.0", "meetings.1", "alone.1")
    assert found(structure) == LOOM
    assert groups(structure) == {
        ("image_ask", "image_find", "image_say"),
        ("text_ask", "text_find", "text_say"),
        ("experts.0.brings", "experts.0.opens"),
        ("experts.1.brings", "experts.1.opens"),
    }
    outside = [layer.name for layer in structure.layers if layer.block is None]
    assert outside == ["takes", "clock", "gives"]
    assert [la.status for la in structure.layers if la.block is None] == ["keep"] * 3


def test_what_stays_out_is_told_with_its_share():
    model = own_transformer.loom()
    structure = describe(model, call=own_transformer.call())
    told = {one.what: (one.names, one.intended) for one in structure.left_out}
    assert told == {
        "linears outside of the blocks": (("takes", "clock", "gives"), False),
        "matrices of experts": (("alone.0.table", "alone.1.table"), False),
    }
    outside = 4 * 32 + 32 + 2 * 32 + 32 * 4 + 4
    tables = 2 * 3 * 32 * 32
    every = sum(parameter.numel() for parameter in model.parameters())
    assert structure.unknown_share == pytest.approx((outside + tables) / every)
    given = describe(model, structure.spec)
    assert given.unknown_share == pytest.approx(tables / every)


@pytest.mark.parametrize(
    ("name", "roles"),
    [
        ("Flux2Transformer2DModel", {"attn.to_qkv_mlp_proj": "linear", "attn.to_out": "fused_out"}),
        ("ZImageTransformer2DModel", {"feed_forward.w1": "gate", "feed_forward.w3": "fc1"}),
        ("SanaTransformer2DModel", {"attn1.to_q": "linear", "attn2.to_q": "cross_q"}),
        ("PRXTransformer2DModel", {"attention.img_qkv_proj": "qkv", "modulation.lin": "adaln"}),
        ("Krea2Transformer2DModel", {"attn.to_gate": "linear", "attn.to_out.0": "attn_out"}),
        ("QwenImageTransformer2DModel", {"img_mod.1": "adaln", "attn.to_add_out": "attn_out"}),
    ],
)
def test_roles_of_classes_of_the_day(name, roles):
    spec = discover(any_transformers.make(name), any_transformers.call(name))
    assert {path: spec.role(path) for path in roles} == roles


def test_blocks_that_take_turns_are_named_one_by_one():
    name = "LatteTransformer3DModel"
    spec = discover(any_transformers.make(name), any_transformers.call(name))
    turns = [(f"transformer_blocks.{i}", f"temporal_transformer_blocks.{i}") for i in range(2)]
    assert spec.blocks == tuple(block for turn in turns for block in turn)


def test_values_are_turned_only_where_that_can_be_undone():
    """PRX mixes values of another linear, Krea 2 multiplies them with a gate on their way."""
    for name in ("PRXTransformer2DModel", "Krea2Transformer2DModel"):
        model = any_transformers.make(name)
        structure = describe(model, discover(model, any_transformers.call(name)))
        assert all(not structure.attentions(b) for b in range(len(structure.blocks)))


@pytest.mark.parametrize("name", any_transformers.NAMES)
def test_names_alone_tell_the_modulation_and_the_blocks(name):
    model = any_transformers.make(name)
    seen, guessed = discover(model, any_transformers.call(name)), guess(model)
    known, told = describe(model, seen), describe(model, guessed)
    assert set(told.blocks) == set(known.blocks)
    assert _modulations(told) == _modulations(known)
    assert {la.name for la in told.layers if la.role} == {la.name for la in known.layers if la.role}


def _modulations(structure):
    return {layer.name for layer in structure.layers if layer.role is Role.ADALN}


def test_names_serve_a_model_on_meta():
    model = any_transformers.make("WanTransformer3DModel").to("meta")
    assert describe(model).origin is Origin.NAMES


def test_the_model_is_as_it_was():
    model = own_transformer.loom().train()
    model.meetings[0].eval()
    model.gives.weight.requires_grad_(False)
    before = _state(model)
    torch.manual_seed(5)
    discover(model, own_transformer.call())
    assert _state(model) == before
    assert torch.initial_seed() == 5
    assert torch.is_grad_enabled()


def _state(model):
    parts = [
        (m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()
    ]
    return parts, [p.requires_grad for p in model.parameters()]


def test_it_sees_through_no_grad():
    with torch.no_grad():
        spec = discover(own_transformer.loom(), own_transformer.call())
    assert spec.role("experts.0.closes") is Role.FC2


def test_a_linear_with_two_uses_is_a_plain_one():
    model = own_transformer.loom()
    for block in model.meetings:
        block.image_find = block.image_ask
    spec = discover(model, own_transformer.call())
    assert spec.role("image_ask") is Role.LINEAR


def test_a_forward_that_cannot_run_is_named():
    wrong = {**own_transformer.call(), "text": torch.zeros(2, 6, 5)}
    with pytest.raises(BadCalibration, match=r"forward of Loom cannot run .*image, text, timestep"):
        discover(own_transformer.loom(), wrong)


def test_a_hook_that_changes_a_shape_is_named():
    model = own_transformer.loom()
    model.alone[1].merge.register_forward_hook(lambda *seen: seen[2][..., :5])
    with pytest.raises(BadModel, match=r"alone\.1\.merge gives 5 channels.*remove the hook"):
        discover(model, own_transformer.call())


def test_a_model_without_blocks_is_named():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.steps = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))

        def forward(self, x):
            return self.steps[1](self.steps[0](x))

    with pytest.raises(BadModel, match=r"no list of Plain holds blocks.*its lists: steps"):
        discover(Plain(), {"x": torch.zeros(2, 4)})


def test_lists_that_disagree_about_a_path_have_a_role_each():
    class Queries(nn.Module):
        def __init__(self, turned):
            super().__init__()
            self.a, self.b, self.c, self.d = (nn.Linear(8, 8) for _ in range(4))
            self.turned = turned

        def forward(self, x):
            first, second = (self.b, self.a) if self.turned else (self.a, self.b)
            heads = (part(x)[:, None] for part in (first, second, self.c))
            return x + self.d(nn.functional.scaled_dot_product_attention(*heads)[:, 0])

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.ModuleList([Queries(False)])
            self.two = nn.ModuleList([Queries(True)])

        def forward(self, x):
            return self.two[0](self.one[0](x))

    model = Model()
    structure = describe(model, discover(model, {"x": torch.randn(2, 5, 8)}))
    roles = {layer.name: layer.role for layer in structure.layers}
    assert (roles["one.0.a"], roles["one.0.b"]) == ("q", "k")
    assert (roles["two.0.a"], roles["two.0.b"]) == ("k", "q")
    assert isinstance(structure.spec, ModelSpec)


def test_a_text_of_one_axis_is_of_one_image():
    """Cosmos 3 takes its prompt first, and as many numbers as that has tokens."""

    class Texts(own_transformer.Loom):
        def forward(self, ids, image, text, timestep):
            return super().forward(image, text, timestep)

    model = Texts().eval()
    spec = discover(model, {"ids": torch.arange(16), **own_transformer.call()})
    assert spec.role("experts.0.opens") is Role.GATE
    assert spec.role("shift") is Role.ADALN
