"""Every family says what each of its linears is; the tables below are the contract."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from fewbit.models import describe
from fewbit.models.families import families
from fewbit.models.families.original_dit import DiTConfig, OriginalDiT

FAMILY = {
    "DiTTransformer2DModel": "dit",
    "PixArtTransformer2DModel": "pixart",
    "HunyuanDiT2DModel": "hunyuan_dit",
    "SD3Transformer2DModel": "sd3",
    "FluxTransformer2DModel": "flux",
    "OriginalDiT": "original_dit",
}
BLOCKS = {
    "DiTTransformer2DModel": ("transformer_blocks.0", "transformer_blocks.1"),
    "PixArtTransformer2DModel": ("transformer_blocks.0", "transformer_blocks.1"),
    "HunyuanDiT2DModel": ("blocks.0", "blocks.1", "blocks.2", "blocks.3"),
    "SD3Transformer2DModel": ("transformer_blocks.0", "transformer_blocks.1"),
    "FluxTransformer2DModel": ("transformer_blocks.0", "single_transformer_blocks.0"),
    "OriginalDiT": ("blocks.0", "blocks.1"),
}
SELF = {"attn1.to_q": "q", "attn1.to_k": "k", "attn1.to_v": "v", "attn1.to_out.0": "attn_out"}
CROSS = {
    "attn2.to_q": "cross_q",
    "attn2.to_k": "cross_k",
    "attn2.to_v": "cross_v",
    "attn2.to_out.0": "cross_out",
}
MLP = {"ff.net.0.proj": "fc1", "ff.net.2": "fc2"}
ADALN = {"norm1.linear": "adaln"}
JOINT = {
    **ADALN,
    "norm1_context.linear": "adaln",
    "attn.to_q": "q",
    "attn.to_k": "k",
    "attn.to_v": "v",
    "attn.to_out.0": "attn_out",
    "attn.add_q_proj": "q",
    "attn.add_k_proj": "k",
    "attn.add_v_proj": "v",
    "attn.to_add_out": "attn_out",
    **MLP,
    "ff_context.net.0.proj": "fc1",
    "ff_context.net.2": "fc2",
}
DUAL = {"attn2.to_q": "q", "attn2.to_k": "k", "attn2.to_v": "v", "attn2.to_out.0": "attn_out"}
LAST_JOINT = {
    path: role
    for path, role in JOINT.items()
    if path != "attn.to_add_out" and not path.startswith("ff_context")
}
SINGLE = {
    "norm.linear": "adaln",
    "proj_mlp": "fc1",
    "proj_out": "fused_out",
    "attn.to_q": "q",
    "attn.to_k": "k",
    "attn.to_v": "v",
}
ORIGINAL = {
    "attn.qkv": "qkv",
    "attn.proj": "attn_out",
    "mlp.fc1": "fc1",
    "mlp.fc2": "fc2",
    "adaLN_modulation.1": "adaln",
}
ROLES = {
    "DiTTransformer2DModel": [{**ADALN, **SELF, **MLP}] * 2,
    "PixArtTransformer2DModel": [{**SELF, **CROSS, **MLP}] * 2,
    "HunyuanDiT2DModel": [{**ADALN, **SELF, **CROSS, **MLP}] * 3
    + [{**ADALN, **SELF, **CROSS, **MLP, "skip_linear": "skip"}],
    "SD3Transformer2DModel": [{**JOINT, **DUAL}, LAST_JOINT],
    "FluxTransformer2DModel": [JOINT, SINGLE],
    "OriginalDiT": [ORIGINAL] * 2,
}
TRIPLE = ("attn1.to_q", "attn1.to_k", "attn1.to_v")
PAIR = ("attn2.to_k", "attn2.to_v")
MODULATIONS = ("norm1.linear", "norm1_context.linear")
IMAGE = ("attn.to_q", "attn.to_k", "attn.to_v")
TEXT = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")
SHARED = {
    "DiTTransformer2DModel": [{TRIPLE}] * 2,
    "PixArtTransformer2DModel": [{TRIPLE, PAIR}] * 2,
    "HunyuanDiT2DModel": [{TRIPLE, PAIR}] * 4,
    "SD3Transformer2DModel": [
        {MODULATIONS, IMAGE, TEXT, ("attn2.to_q", "attn2.to_k", "attn2.to_v")},
        {MODULATIONS, IMAGE, TEXT},
    ],
    "FluxTransformer2DModel": [{MODULATIONS, IMAGE, TEXT}, {(*IMAGE, "proj_mlp")}],
    "OriginalDiT": [set()] * 2,
}
OWN = (("attn1.to_v",), ("attn1.to_out.0",))
CAPTION = (("attn2.to_v",), ("attn2.to_out.0",))
MEETING = (("attn.to_v", "attn.add_v_proj"), ("attn.to_out.0", "attn.to_add_out"))
ATTENTIONS = {
    "DiTTransformer2DModel": [[OWN]] * 2,
    "PixArtTransformer2DModel": [[OWN, CAPTION]] * 2,
    "HunyuanDiT2DModel": [[OWN, CAPTION]] * 4,
    "SD3Transformer2DModel": [[MEETING, CAPTION], [(MEETING[0], ("attn.to_out.0",))]],
    "FluxTransformer2DModel": [[MEETING], []],
    "OriginalDiT": [[(("attn.qkv",), ("attn.proj",))]] * 2,
}


@pytest.fixture(params=FAMILY)
def model(request, tiny):
    if request.param != "OriginalDiT":
        return tiny(request.param)
    return OriginalDiT(DiTConfig(8, 2, 4, 16, 64, depth=2, heads=2, classes=11, learn_sigma=True))


def paths(names, block):
    return tuple(sorted(name.removeprefix(f"{block}.") for name in names))


def test_the_table_above_covers_every_adapter():
    assert {known: module.__name__ for known, module in families().items()} == {
        known: f"fewbit.models.families.{family}" for known, family in FAMILY.items()
    }


def test_family_and_blocks(model):
    structure = describe(model)
    assert structure.family == FAMILY[type(model).__name__]
    assert structure.blocks == BLOCKS[type(model).__name__]


def test_every_linear_is_quantized_or_kept(model):
    structure = describe(model)
    linears = [n for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    assert [layer.name for layer in structure.layers] == linears
    assert structure.unknown == ()
    assert all(layer.block is not None for layer in structure.layers if layer.role)


def test_roles_are_exactly_these(model):
    structure = describe(model)
    for index, expected in enumerate(ROLES[type(model).__name__]):
        prefix = f"{structure.blocks[index]}."
        found = {la.name.removeprefix(prefix): la.role for la in structure.quantizable(index)}
        assert found == expected


def test_shared_inputs_are_exactly_these(model):
    structure = describe(model)
    for index, expected in enumerate(SHARED[type(model).__name__]):
        groups = structure.shared_inputs(index)
        inside = [layer.name for layer in structure.layers if layer.block == index and layer.role]
        assert sorted(name for group in groups for name in group) == sorted(inside)
        together = {paths(group, structure.blocks[index]) for group in groups if len(group) > 1}
        assert together == {tuple(sorted(group)) for group in expected}


def test_attentions_are_exactly_these(model):
    structure = describe(model)
    for index, expected in enumerate(ATTENTIONS[type(model).__name__]):
        block = structure.blocks[index]
        assert sorted(
            (paths(a.values, block), paths(a.outs, block)) for a in structure.attentions(index)
        ) == sorted((tuple(sorted(v)), tuple(sorted(o))) for v, o in expected)
        assert {a.head_width for a in structure.attentions(index)} <= {8}


def test_sizes_add_up_to_the_model(model):
    structure = describe(model)
    tensors = [*model.parameters(), *model.buffers()]
    assert structure.parameters == sum(p.numel() for p in model.parameters())
    assert structure.bytes == sum(t.numel() * t.element_size() for t in tensors)


_NOISE = torch.Generator().manual_seed(0)


def noise(*shape):
    return torch.randn(*shape, generator=_NOISE)


FORWARD = {
    "DiTTransformer2DModel": {
        "hidden_states": noise(2, 4, 8, 8),
        "timestep": torch.tensor([1, 500]),
        "class_labels": torch.tensor([3, 10]),
    },
    "PixArtTransformer2DModel": {
        "hidden_states": noise(2, 4, 8, 8),
        "encoder_hidden_states": noise(2, 5, 12),
        "timestep": torch.tensor([1, 500]),
        "added_cond_kwargs": {"resolution": torch.ones(2, 2), "aspect_ratio": torch.ones(2, 1)},
    },
    "HunyuanDiT2DModel": {
        "hidden_states": noise(2, 4, 8, 8),
        "timestep": torch.tensor([1.0, 500.0]),
        "encoder_hidden_states": noise(2, 77, 12),
        "text_embedding_mask": torch.ones(2, 77),
        "encoder_hidden_states_t5": noise(2, 256, 16),
        "text_embedding_mask_t5": torch.ones(2, 256),
        "image_meta_size": torch.ones(2, 6),
        "style": torch.zeros(2, dtype=torch.long),
    },
    "SD3Transformer2DModel": {
        "hidden_states": noise(2, 16, 8, 8),
        "encoder_hidden_states": noise(2, 5, 12),
        "pooled_projections": noise(2, 10),
        "timestep": torch.tensor([1, 500]),
    },
    "FluxTransformer2DModel": {
        "hidden_states": noise(2, 16, 64),
        "encoder_hidden_states": noise(2, 5, 12),
        "pooled_projections": noise(2, 10),
        "timestep": torch.tensor([0.1, 0.5]),
        "img_ids": torch.zeros(16, 3),
        "txt_ids": torch.zeros(5, 3),
        "guidance": torch.tensor([3.5, 3.5]),
    },
    "OriginalDiT": {
        "x": noise(2, 4, 8, 8),
        "t": torch.tensor([1, 500]),
        "y": torch.tensor([3, 10]),
    },
}


@torch.no_grad()
def test_a_run_of_the_model_agrees(model):
    """Blocks run in the order told, and two linears read equal inputs exactly if grouped."""
    structure = describe(model)
    inputs, order = {}, []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(lambda _, a, n=name: inputs.update({n: a[0].clone()}))
        if name in structure.blocks:
            module.register_forward_pre_hook(lambda _, a, n=name: order.append(n))
    model(**FORWARD[type(model).__name__])
    assert tuple(order) == structure.blocks
    for index in range(len(structure.blocks)):
        groups = structure.shared_inputs(index)
        for group in groups:
            assert all(torch.equal(inputs[group[0]], inputs[name]) for name in group)
        heads = [inputs[group[0]] for group in groups]
        for i, one in enumerate(heads):
            assert not any(torch.equal(one, other) for other in heads[i + 1 :])


@torch.no_grad()
def test_values_turned_before_are_turned_back_after(model):
    """The law of `attentions`: rotate a head's values, undo it in what reads them, same output."""
    structure = describe(model)
    arguments = FORWARD[type(model).__name__]
    before = model(**arguments)
    turn = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(1)))[0]
    turned = torch.block_diag(*[turn] * structure.spec.heads)
    for index in range(len(structure.blocks)):
        for attention in structure.attentions(index):
            for name in attention.values:
                value = model.get_submodule(name)
                rows = slice(-len(turned), None)
                value.weight[rows] = turned @ value.weight[rows]
                value.bias[rows] = turned @ value.bias[rows]
            turned_values = model(**arguments)
            assert not torch.allclose(first(before), first(turned_values), atol=1e-5)
            for name in attention.outs:
                out = model.get_submodule(name)
                out.weight.copy_(out.weight @ turned.T)
            assert torch.allclose(first(before), first(model(**arguments)), atol=1e-5)


def first(output):
    return output if isinstance(output, torch.Tensor) else output[0]


def test_matching_imports_no_model_library():
    code = (
        "import sys; from fewbit.models.families import families; families();"
        "print('diffusers' in sys.modules or 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
