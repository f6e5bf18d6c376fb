"""Squared gradients: what a calculation by hand gives, for every kind of layer."""

import pytest
import small_models
import torch
from torch import nn

from fewbit.calibration import RowSet
from fewbit.calibration.gradients import squared_gradients
from fewbit.errors import BadCalibration
from fewbit.models.families.original_dit import DiTConfig, OriginalDiT


class Chain(nn.Module):
    """Two linears; channels beyond those of the input are a learned variance."""

    def __init__(self) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(0)
        self.first = nn.Linear(4, 6, bias=False)
        self.second = nn.Linear(6, 4, bias=False)
        for linear in (self.first, self.second):
            linear.weight.data = torch.randn(linear.weight.shape, generator=random)

    def forward(self, hidden_states, timestep):
        return self.second(self.first(hidden_states))


def rows(count=6):
    random = torch.Generator().manual_seed(1)
    items = [
        {
            "hidden_states": torch.randn(1, 3, 4, generator=random),
            "timestep": torch.tensor([10 * i]),
        }
        for i in range(count)
    ]
    return RowSet.from_items(items)


def noise_of(data, seed, batch=4):
    """The same that is drawn for the loss, one minibatch after the other."""
    random = torch.Generator().manual_seed(seed)
    return torch.cat([torch.randn(len(part), 3, 4, generator=random) for part in data.parts(batch)])


def test_a_linear_chain_gives_what_is_written_on_paper():
    model, data = Chain(), rows()
    groups = torch.tensor([0, 0, 1, 1, 1, 0])
    linears = {"first": model.first, "second": model.second}
    found = squared_gradients(model, linears, {}, (), data, groups, seed=3)
    last = noise_of(data, 3)
    for name, gradient in (("second", last), ("first", last @ model.second.weight)):
        squares = gradient.square()
        for group in (0, 1):
            mean = squares[groups == group].mean((0, 1))
            assert torch.allclose(found[name][group], mean)


def test_over_many_draws_it_is_the_diagonal_of_jacobian_squared():
    model, data = Chain(), rows(2)
    found = sum(
        squared_gradients(model, {"first": model.first}, {}, (), data, torch.tensor([0, 0]), seed)[
            "first"
        ][0]
        for seed in range(400)
    )
    exact = model.second.weight.square().sum(0)
    # 2,400 draws of a squared normal: a standard error of sqrt(2 / 2400) = 2.9 %
    assert ((found / 400 / exact) - 1).abs().max() < 5 * 0.029


def original(learn_sigma=False):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return OriginalDiT(DiTConfig(8, 2, 4, 16, 32, 2, 2, 5, learn_sigma)).eval()


def original_rows(count=5):
    random = torch.Generator().manual_seed(1)
    items = [
        {
            "x": torch.randn(1, 4, 8, 8, generator=random),
            "t": torch.tensor([100.0 * i]),
            "y": torch.tensor([i % 5]),
        }
        for i in range(count)
    ]
    return RowSet.from_items(items)


def of_original(model, groups=None, **changes):
    data = original_rows()
    groups = torch.zeros(len(data), dtype=torch.int64) if groups is None else groups
    linears = {n: m for n, m in model.blocks.named_modules() if isinstance(m, nn.Linear)}
    attentions = {f"{i}.attn": block.attn for i, block in enumerate(model.blocks)}
    return squared_gradients(model, linears, attentions, (), data, groups, **{"seed": 0, **changes})


def test_attention_shows_gradients_of_its_scores_and_its_products():
    model = original()
    found = of_original(model)
    scores, products = found["0.attn.scores"], found["0.attn.products"]
    assert scores.shape == (1, 2)
    assert products.shape == (1, 16)
    # What the out projection reads is the products, so their gradients are its own, turned back.
    weight = model.blocks[0].attn.proj.weight
    assert products.sum() < found["0.attn.proj"].sum() * weight.square().sum()


def test_a_learned_variance_has_no_say():
    model = original(learn_sigma=True)
    plain = original()
    plain.load_state_dict(
        {k: v for k, v in model.state_dict().items() if "final_layer.linear" not in k}, strict=False
    )
    # Rows of the last linear are ordered [patch, patch, channel]; keep those of the noise.
    weight = model.final_layer.linear.weight.unflatten(0, (4, 8))[:, :4].flatten(0, 1)
    bias = model.final_layer.linear.bias.unflatten(0, (4, 8))[:, :4].flatten(0, 1)
    plain.final_layer.linear.weight.data, plain.final_layer.linear.bias.data = weight, bias
    one, two = of_original(model), of_original(plain)
    for name in one:
        assert torch.allclose(one[name], two[name], rtol=1e-4, atol=1e-9), name


def test_the_model_is_left_as_it_was():
    model = original().train()
    model.pos_embed.requires_grad_(False)
    flags = [parameter.requires_grad for parameter in model.parameters()]
    of_original(model)
    assert model.training
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    assert not any("forward" in vars(module) for module in model.modules())


def test_the_same_seed_gives_the_same_numbers():
    one, two, other = (of_original(original(), seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["0.mlp.fc1"], other["0.mlp.fc1"])


def test_a_layer_that_the_model_runs_without_gradients_is_left_out():
    class Routed(Chain):
        def forward(self, hidden_states, timestep):
            with torch.no_grad():
                routed = self.first(hidden_states)
            return self.second(routed)

    model, data = Routed(), rows()
    linears = {"first": model.first, "second": model.second}
    groups = torch.zeros(len(data), dtype=torch.int64)
    assert squared_gradients(model, linears, {}, (), data, groups, seed=0).keys() == {"second"}


def test_a_layer_without_effect_has_zeros():
    model = original()
    model.blocks[1].mlp.fc2.weight.data.zero_()
    found = of_original(model)
    assert not found["1.mlp.fc1"].any()
    assert found["1.mlp.fc2"].all()


def test_a_model_that_no_layer_has_an_effect_on_is_refused():
    model = original()
    model.final_layer.linear.weight.data.zero_()
    with pytest.raises(BadCalibration, match=r"of 0\.attn\.qkv: .* zero .* ho=False"):
        of_original(model)


def test_a_layer_whose_gradient_is_no_number_is_named():
    model = original()
    model.final_layer.linear.weight.data[0, 0] = torch.inf
    with pytest.raises(BadCalibration, match="NaN or infinite"):
        of_original(model)


def test_a_layer_that_is_never_run_is_named():
    model, data = Chain(), rows()
    with pytest.raises(BadCalibration, match="of idle: no gradient reached it"):
        squared_gradients(
            model, {"idle": nn.Linear(2, 2)}, {}, (), data, torch.zeros(6, dtype=torch.int64), 0
        )


@pytest.mark.parametrize("family", small_models.FAMILIES)
def test_every_family_has_gradients_everywhere(family):
    from fewbit.models import describe

    model = small_models.make(family)
    structure = describe(model)
    blocks = range(len(structure.blocks))
    names = [layer.name for block in blocks for layer in structure.quantizable(block)]
    attending = [name for block in blocks for name in structure.attending(block)]
    data = RowSet.from_items([small_models.arguments(family, 3)])
    found = squared_gradients(
        model,
        {name: model.get_submodule(name) for name in names},
        {name: model.get_submodule(name) for name in attending},
        (),
        data,
        torch.zeros(3, dtype=torch.int64),
        seed=0,
    )
    assert len(found) == len(names) + 2 * len(attending)


def padded(tokens):
    """The same captions, of 1 to 5 words, padded to so many."""
    inputs = small_models.arguments("PixArtTransformer2DModel", 5)
    text, mask = inputs["encoder_hidden_states"], torch.arange(5) < torch.arange(1, 6)[:, None]
    inputs["encoder_hidden_states"] = nn.functional.pad(text, (0, 0, 0, tokens - 5), value=3.0)
    inputs["encoder_attention_mask"] = nn.functional.pad(mask.long(), (0, tokens - 5))
    return RowSet.from_items([inputs])


class Joined(nn.Module):
    """Attention whose padded tokens neither see nor are seen, as in a text refiner."""

    def __init__(self) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(0)
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=random)

    def forward(self, x, real):
        q, k, v = self.qkv(x).chunk(3, -1)
        pairs = real[:, None, :, None] & real[:, None, None]
        heads = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in (q, k, v))
        mixed = nn.functional.scaled_dot_product_attention(*heads, attn_mask=pairs)
        return x + self.out(mixed.transpose(1, 2).flatten(2))


class Refined(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Joined(), Joined()])

    def forward(self, hidden_states, timestep, real):
        for block in self.blocks:
            hidden_states = block(hidden_states, real)
        return hidden_states * real[..., None]


def test_tokens_that_see_nothing_leave_no_nan():
    model = Refined()
    layers = {name: one for name, one in model.named_modules() if isinstance(one, nn.Linear)}
    attentions = {f"blocks.{i}": block for i, block in enumerate(model.blocks)}
    x, groups = torch.randn(4, 3, 8), torch.zeros(4, dtype=torch.int64)

    def found(x, real):
        data = RowSet.from_items([{"hidden_states": x, "timestep": torch.arange(4), "real": real}])
        return squared_gradients(model, layers, attentions, (), data, groups, seed=0)

    seen = found(nn.functional.pad(x, (0, 0, 0, 2), value=3.0), (torch.arange(5) < 3).expand(4, 5))
    assert all(one.isfinite().all() for one in seen.values())
    assert len(seen) == len(layers) + 2 * len(attentions)


def test_padding_has_no_say():
    from fewbit.models import describe

    model = small_models.make("PixArtTransformer2DModel")
    structure, groups = describe(model), torch.tensor([0, 0, 1, 1, 1])
    modules = dict(model.named_modules())
    layers = {one.name: modules[one.name] for one in structure.quantizable(0)}
    attentions = {name: modules[name] for name in structure.attending(0)}
    blocks = [modules[name] for name in structure.blocks]
    short, long = (
        squared_gradients(model, layers, attentions, blocks, padded(tokens), groups, seed=0)
        for tokens in (5, 20)
    )
    assert any("attn2.to_k" in name for name in short)
    for name, found in short.items():
        assert torch.allclose(found, long[name], rtol=1e-4), name
