"""The original DiT against the diffusers one, which computes the same network but for two numbers.

diffusers spaces its frequencies by i/127 and runs one norm at eps 1e-5 unless told otherwise; with
both made equal, the two must agree to float32 rounding.
"""

import math

import pytest
import torch

from fewbit.models.families import original_dit
from fewbit.models.families.original_dit import (
    DiTConfig,
    OriginalDiT,
    position_table,
    timestep_frequencies,
)

CONFIG = DiTConfig(8, 2, 4, 16, 64, depth=2, heads=2, classes=11, learn_sigma=False)
X = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
T = torch.tensor([0, 417, 999])
Y = torch.tensor([0, 7, 10])


def transplant(source, target):
    """Weights of a diffusers DiT, whose blocks share one conditioning, into an OriginalDiT."""
    embedders = source.transformer_blocks[0].norm1.emb
    for block in source.transformer_blocks:
        block.norm1.emb = embedders
    pairs = {
        "x_embedder.proj": source.pos_embed.proj,
        "t_embedder.mlp.0": embedders.timestep_embedder.linear_1,
        "t_embedder.mlp.2": embedders.timestep_embedder.linear_2,
        "final_layer.adaLN_modulation.1": source.proj_out_1,
        "final_layer.linear": source.proj_out_2,
    }
    for i, block in enumerate(source.transformer_blocks):
        pairs[f"blocks.{i}.adaLN_modulation.1"] = block.norm1.linear
        pairs[f"blocks.{i}.attn.proj"] = block.attn1.to_out[0]
        pairs[f"blocks.{i}.mlp.fc1"] = block.ff.net[0].proj
        pairs[f"blocks.{i}.mlp.fc2"] = block.ff.net[2]
    state = {
        f"{name}.{part}": getattr(module, part)
        for name, module in pairs.items()
        for part in ("weight", "bias")
    }
    for i, block in enumerate(source.transformer_blocks):
        three = (block.attn1.to_q, block.attn1.to_k, block.attn1.to_v)
        for part in ("weight", "bias"):
            state[f"blocks.{i}.attn.qkv.{part}"] = torch.cat([getattr(m, part) for m in three])
    state["y_embedder.embedding_table.weight"] = embedders.class_embedder.embedding_table.weight
    state["pos_embed"] = source.pos_embed.pos_embed
    target.load_state_dict(state)


@pytest.fixture
def pair(tiny):
    theirs, ours = tiny("DiTTransformer2DModel"), OriginalDiT(CONFIG)
    transplant(theirs, ours)
    return theirs, ours


@torch.no_grad()
def test_it_computes_what_diffusers_computes_at_equal_frequencies(pair, monkeypatch):
    theirs, ours = pair
    expected = theirs(X, timestep=T, class_labels=Y).sample
    assert not torch.allclose(ours(X, T, Y), expected, atol=1e-4)
    spaced = torch.exp(-math.log(10000) * torch.arange(128) / 127)
    monkeypatch.setattr(original_dit, "timestep_frequencies", lambda: spaced)
    torch.testing.assert_close(ours(X, T, Y), expected, atol=1e-5, rtol=0)


def test_the_position_table_is_the_one_diffusers_computes(tiny):
    theirs = tiny("DiTTransformer2DModel").pos_embed.pos_embed
    torch.testing.assert_close(position_table(4, 16), theirs, atol=1e-6, rtol=0)


def test_frequencies_fall_from_one_by_a_ten_thousandth_over_128_steps():
    frequencies = timestep_frequencies().double()
    assert frequencies[0] == 1
    assert frequencies[64].item() == pytest.approx(0.01, rel=1e-6)
    after_the_last = (frequencies[127] ** 2 / frequencies[126]).item()
    assert after_the_last == pytest.approx(1e-4, rel=1e-5)


@torch.no_grad()
def test_patches_return_to_their_places():
    """Pixel (r, c) of channel k sits in token (r//2, c//2) at (r%2, c%2, k)."""
    image = torch.arange(3 * 4 * 8 * 8.0).view(3, 4, 8, 8)
    tokens = torch.empty(3, 16, 16)
    for row in range(8):
        for column in range(8):
            token, place = row // 2 * 4 + column // 2, (row % 2 * 2 + column % 2) * 4
            tokens[:, token, place : place + 4] = image[:, :, row, column]
    assert torch.equal(OriginalDiT(CONFIG)._image(tokens), image)


@torch.no_grad()
def test_guidance_moves_three_channels_and_reads_the_first_half():
    model = OriginalDiT(DiTConfig(8, 2, 4, 16, 64, 2, 2, classes=11, learn_sigma=True)).eval()
    x, t, y = X[:2], T[:2][[0, 0]], torch.tensor([3, 10])
    conditional = model(x[:1], t[:1], y[:1])
    null = model(x[:1], t[:1], y[1:])
    out = model.forward_with_cfg(x, t, y, 4.0)
    assert out.shape == (2, 8, 8, 8)
    guided = null[:, :3] + 4 * (conditional[:, :3] - null[:, :3])
    torch.testing.assert_close(out[:, :3], torch.cat([guided, guided]), atol=1e-5, rtol=0)
    torch.testing.assert_close(out[:, 3:], torch.cat([conditional, null])[:, 3:], atol=1e-5, rtol=0)


@torch.no_grad()
def test_it_runs_in_half_precision():
    model = OriginalDiT(CONFIG).to(torch.bfloat16)
    assert model(X.bfloat16(), T, Y).dtype == torch.bfloat16


def test_parameter_names_are_those_of_the_published_checkpoints():
    outside = {
        "pos_embed",
        "x_embedder.proj.weight",
        "x_embedder.proj.bias",
        "t_embedder.mlp.0.weight",
        "t_embedder.mlp.0.bias",
        "t_embedder.mlp.2.weight",
        "t_embedder.mlp.2.bias",
        "y_embedder.embedding_table.weight",
        "final_layer.linear.weight",
        "final_layer.linear.bias",
        "final_layer.adaLN_modulation.1.weight",
        "final_layer.adaLN_modulation.1.bias",
    }
    inside = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "adaLN_modulation.1")
    blocks = {f"blocks.{i}.{n}.{p}" for i in (0, 1) for n in inside for p in ("weight", "bias")}
    assert OriginalDiT(CONFIG).state_dict().keys() == outside | blocks


def test_dit_xl_2_has_its_published_675_million_parameters():
    with torch.device("meta"):
        model = OriginalDiT(DiTConfig(32, 2, 4, 1152, 4608, 28, 16, classes=1001, learn_sigma=True))
    assert sum(p.numel() for p in model.parameters()) == 675_129_632
