"""Training that was stopped goes on as if it had not been."""

from pathlib import Path

import pytest
import torch
from torch import nn

from demos import autoencoder, denoiser
from demos.loop import Minutes, Steps, Training
from fewbit.demo import shapes

LATENT = torch.randn(4, 4, 16, 16, generator=torch.Generator().manual_seed(0))


def _weights(model: nn.Module) -> torch.Tensor:
    return nn.utils.parameters_to_vector(model.parameters()).detach()


class Killed(Exception):
    pass


def _training(folder: Path, killed_at: int = -1) -> Training:
    model = denoiser.build()
    model.transformer_blocks = model.transformer_blocks[:1]
    denoiser.initialise(model, 12, torch.Generator().manual_seed(0))

    def loss(step: int, random: torch.Generator) -> torch.Tensor:
        if step == killed_at:
            raise Killed
        return denoiser.loss(model, LATENT, torch.arange(4), random)

    return Training("denoiser", model, loss, Steps(5), rate=1e-3, folder=folder, save_every=2)


def test_a_killed_training_ends_with_the_same_bits(tmp_path):
    straight = _weights(_training(tmp_path / "straight").run())
    with pytest.raises(Killed):
        _training(tmp_path / "killed", killed_at=3).run()
    resumed = _training(tmp_path / "killed")
    assert resumed.step == 2
    assert torch.equal(_weights(resumed.run()), straight)
    assert not torch.equal(_weights(_training(tmp_path / "fresh").model), straight)


def test_a_look_sees_the_averages_and_changes_nothing(tmp_path):
    straight = _training(tmp_path / "straight")
    seen: dict[int, torch.Tensor] = {}
    looked = _training(tmp_path / "looked")
    looked.look, looked.look_every = lambda step: seen.update({step: _weights(looked.model)}), 2
    raw: dict[int, torch.Tensor] = {}
    while straight.step < 5:
        straight.advance()
        raw[straight.step] = torch.nn.utils.parameters_to_vector(straight.average).detach()
    looked.run()
    assert list(seen) == [2, 4]
    assert all(torch.equal(weights, raw[step]) for step, weights in seen.items())
    assert torch.equal(_weights(looked.model), raw[5])


def test_training_lowers_the_loss(tmp_path):
    model = nn.Linear(1, 1)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)

    def loss(step: int, random: torch.Generator) -> torch.Tensor:
        x = torch.randn(64, 1, generator=random)
        return (model(x).float() - 2 * x - 1).square().mean()

    Training("line", model, loss, Steps(300), rate=0.1, folder=tmp_path, warmup=10).run()
    # bfloat16 products round at 2^-9.
    assert abs(model.weight.item() - 2) < 0.02
    assert abs(model.bias.item() - 1) < 0.02


def test_every_step_draws_its_own_numbers(tmp_path):
    model = nn.Linear(1, 1)
    drawn = []

    def loss(step: int, random: torch.Generator) -> torch.Tensor:
        drawn.append(torch.rand((), generator=random).item())
        return model(torch.ones(1)).float().sum()

    Training("line", model, loss, Steps(20), rate=0.1, folder=tmp_path).run()
    assert len(set(drawn)) == 20


def test_minutes_count_time_and_not_steps():
    assert Minutes(2).progress(step=1000, seconds=60) == 0.5
    assert Steps(4).progress(step=1, seconds=1e9) == 0.25


def test_blocks_that_start_as_the_identity_predict_zero():
    model = denoiser.build()
    denoiser.tie(model)
    denoiser.initialise(model, 12, torch.Generator().manual_seed(0))
    step, label = torch.tensor([5]), torch.tensor([0])
    assert not model(LATENT[:1], timestep=step, class_labels=label).sample.any()


def test_standardised_latents_leave_the_autoencoder_as_it_was():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = autoencoder.build().double()
    image = shapes.as_float(shapes.pictures(5, range(6))).double()
    with torch.no_grad():
        before = model.encode(image).latent_dist
        decoded = model.decode(before.mean).sample
        autoencoder.standardise(model, image)
        after = model.encode(image).latent_dist
        # An exact identity: what remains is double rounding.
        assert torch.allclose(model.decode(after.mean).sample, decoded, atol=1e-12)
    assert torch.allclose(after.mean.mean((0, 2, 3)), torch.zeros(4).double(), atol=1e-12)
    assert torch.allclose(after.mean.std((0, 2, 3)), torch.ones(4).double(), atol=1e-12)
    ratio = (after.std / before.std).flatten(2) * before.mean.std((0, 2, 3))[:, None]
    assert torch.allclose(ratio, torch.ones_like(ratio), atol=1e-12)
