"""`describe` on modules it was not made for: homemade, half replaced, or not models at all."""

import pytest
import torch
from torch import nn

from fewbit.errors import BadModel
from fewbit.models import Attention, Layer, ModelSpec, describe, transformer_of


class HomemadeBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.attn = nn.ModuleDict({name: nn.Linear(8, 8) for name in "qkvo"})
        self.up = nn.Linear(8, 32)
        self.down = nn.Linear(32, 8, bias=False)


class Homemade(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 2)
        self.layers = nn.ModuleList(HomemadeBlock() for _ in range(2))
        self.head = nn.Linear(8, 3)
        self.register_buffer("table", torch.zeros(5, dtype=torch.float64))


ROLES = {"attn.q": "q", "attn.k": "k", "attn.v": "v", "attn.o": "attn_out"}
MLP = {"up": "fc1", "down": "fc2"}
SPEC = ModelSpec("layers", {**ROLES, **MLP}, keep="head", heads=2)


class Packed(nn.Module):
    """What may stand where a linear stood: no weight, its own size, modules of its own inside."""

    def __init__(self, linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        self.codes = nn.Buffer(torch.zeros(4, dtype=torch.uint8))
        self.branch = nn.Linear(2, 2)

    def nbytes(self):
        return 7


def test_a_homemade_module_with_a_spec():
    structure = describe(Homemade(), SPEC)
    assert structure.family == "Homemade"
    assert structure.blocks == ("layers.0", "layers.1")
    assert structure.layers[0] == Layer("stem", None, "keep", None, (8, 3, 2, 2), 104, 416)
    assert structure.layers[-1] == Layer("head", None, "keep", None, (3, 8), 27, 108)
    down = Layer("layers.1.down", "fc2", "quantize", 1, (8, 32), 256, 1024)
    assert structure.quantizable(1)[-1] == down
    assert structure.other_parameters == 2 * 16
    assert structure.other_bytes == 2 * 16 * 4 + 5 * 8
    assert structure.shared_inputs(1) == (
        ("layers.1.attn.q", "layers.1.attn.k", "layers.1.attn.v"),
        ("layers.1.attn.o",),
        ("layers.1.up",),
        ("layers.1.down",),
    )
    assert structure.attentions(0) == (Attention(("layers.0.attn.v",), ("layers.0.attn.o",), 4),)


def test_linears_nobody_mapped_are_unknown_inside_and_outside_the_blocks():
    model = Homemade()
    model.layers[1].extra = nn.Linear(8, 8)
    model.side = nn.Linear(8, 8)
    unknown = describe(model, SPEC).unknown
    assert [layer.name for layer in unknown] == ["layers.1.extra", "side"]
    assert "layers.1.extra" not in {layer.name for layer in describe(model, SPEC).quantizable(1)}


def test_an_extra_linear_in_a_known_family_is_unknown(tiny):
    model = tiny("DiTTransformer2DModel")
    model.transformer_blocks[1].adapter = nn.Linear(16, 16)
    assert [la.name for la in describe(model).unknown] == ["transformer_blocks.1.adapter"]


def test_keep_is_stronger_than_a_role():
    spec = ModelSpec("layers", {**ROLES, **MLP}, keep=("head", "layers.0.*"))
    structure = describe(Homemade(), spec)
    assert structure.quantizable(0) == ()
    assert len(structure.quantizable(1)) == 6
    assert len(structure.shared_inputs(0)[0]) == 3


def test_without_heads_no_attention_is_promised():
    assert describe(Homemade(), ModelSpec("layers", ROLES)).attentions(0) == ()


def test_a_replaced_linear_keeps_its_place_and_tells_its_own_bytes():
    model = Homemade()
    before = describe(model, SPEC)
    model.layers[0].up = Packed(model.layers[0].up)
    after = describe(model, SPEC)
    assert [la.name for la in after.layers] == [la.name for la in before.layers]
    assert after.quantizable(0)[4] == Layer("layers.0.up", "fc1", "quantize", 0, (32, 8), 288, 7)
    assert after.parameters == before.parameters
    assert after.bytes == before.bytes - 288 * 4 + 7


def test_a_pipeline_is_seen_through():
    class Pipeline:
        transformer = Homemade()

    assert transformer_of(Pipeline()) is Pipeline.transformer
    assert transformer_of(Pipeline.transformer) is Pipeline.transformer
    assert describe(Pipeline(), SPEC) == describe(Pipeline.transformer, SPEC)


def test_a_subclass_belongs_to_its_parents_family(tiny):
    model = tiny("DiTTransformer2DModel")
    model.__class__ = type("Finetuned", (type(model),), {})
    assert describe(model).family == "dit"


def test_a_model_on_meta_is_described_alike(tiny):
    model = tiny("DiTTransformer2DModel")
    real = describe(model)
    assert describe(model.to("meta")) == real


@pytest.mark.parametrize("model", ["a-path", 3, object()])
def test_what_is_not_a_model_is_refused(model):
    with pytest.raises(BadModel, match=f"{type(model).__name__} is not a model"):
        describe(model)


def test_a_model_without_blocks_needs_a_spec():
    model = nn.Module()
    model.head = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    message = r"no list of Module holds blocks, .*give spec=fewbit\.ModelSpec\(.*lists: head"
    with pytest.raises(BadModel, match=message):
        describe(model)


@pytest.mark.parametrize("blocks", ["layrs", "head"])
def test_blocks_must_name_a_list(blocks):
    message = f"'{blocks}', which is neither a list .* in Homemade; its lists: layers"
    with pytest.raises(BadModel, match=message):
        describe(Homemade(), ModelSpec(blocks, ROLES))


def test_heads_must_divide_the_width():
    with pytest.raises(BadModel, match=r"attn\.o reads 8 channels, not divisible by 3 heads"):
        describe(Homemade(), ModelSpec("layers", ROLES, heads=3))


def test_two_streams_under_one_parent_must_be_told_apart():
    model = Homemade()
    for block in model.layers:
        block.attn.update({f"text_{name}": nn.Linear(8, 8) for name in "qkv"})
    roles = {**ROLES, "attn.text_q": "q", "attn.text_k": "k", "attn.text_v": "v"}
    with pytest.raises(BadModel, match=r"a role occurs twice.*ModelSpec\.shared"):
        describe(model, ModelSpec("layers", roles))
    groups = describe(model, ModelSpec("layers", roles, shared=[["attn.text_*"]])).shared_inputs(0)
    assert [len(group) for group in groups] == [3, 1, 3]


def test_linears_of_different_width_cannot_read_one_tensor():
    with pytest.raises(BadModel, match=r"read one tensor but read widths 8, 32"):
        describe(Homemade(), ModelSpec("layers", MLP, shared=[["up", "down"]]))
