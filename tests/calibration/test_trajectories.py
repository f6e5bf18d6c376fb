"""Rows come from the pipeline's own run: all timesteps, both halves, nothing else disturbed."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from small_models import make
from torch.testing import assert_close

from fewbit.calibration import Calibration, Sampling, manner_of
from fewbit.calibration.drawing import Choice, generator_of
from fewbit.calibration.trajectories import _Recording, sample
from fewbit.errors import BadArgument, BadCalibration, BadModel
from fewbit.storage.entries import Entries

diffusers = pytest.importorskip("diffusers")

NULL = 1000
STEPS = 5


def stochastic():
    return diffusers.DDPMScheduler(num_train_timesteps=1000)


def multistep():
    return diffusers.DPMSolverMultistepScheduler(num_train_timesteps=1000)


@pytest.fixture
def labelled(pipe):
    """The class pipeline of all tests, its scheduler as it was loaded."""
    return pipe


def rows(data):
    return data.columns["hidden_states"], data.columns["class_labels"], data.timesteps()


def test_pairs_halves_and_timesteps(labelled):
    data = sample(labelled, samples=40, steps=STEPS)
    latent, label, time = rows(data)
    assert len(data) == 40
    assert data.conditional.tolist() == [True, False] * 20
    assert data.pair.tolist() == [pair for pair in range(20) for _ in range(2)]
    assert torch.equal(latent[::2], latent[1::2])
    assert torch.equal(time[::2], time[1::2])
    assert set(label[::2].tolist()) == {0, 1, 2}
    assert set(label[1::2].tolist()) == {NULL}
    scheduler = diffusers.DDIMScheduler()
    scheduler.set_timesteps(STEPS)
    values, counts = time.unique(return_counts=True)
    assert sorted(values.tolist()) == sorted(scheduler.timesteps.tolist())
    assert set(counts.tolist()) == {8}
    assert not torch.equal(time, time.sort().values)


@pytest.mark.parametrize("scheduler", [None, multistep])
def test_rows_are_those_of_the_ordinary_pipeline(labelled, scheduler):
    if scheduler:
        labelled.scheduler = scheduler()
    data = sample(labelled, samples=8, steps=4, guidance=3.0)
    latent, label, time = rows(data)
    recorded = []
    labelled.transformer.register_forward_pre_hook(
        lambda _, args, kwargs: recorded.append((args[0].clone(), kwargs)), with_kwargs=True
    )
    labelled.set_progress_bar_config(disable=True)
    labelled(
        class_labels=[int(label[0])],
        generator=[generator_of(0, 0)],
        guidance_scale=3.0,
        num_inference_steps=4,
    )
    assert len(recorded) == 4
    for hidden, kwargs in recorded:
        row = int((time == kwargs["timestep"][0]).nonzero()[0])
        assert torch.equal(latent[row : row + 2], hidden)
        assert torch.equal(label[row : row + 2], kwargs["class_labels"])


@pytest.mark.parametrize("scheduler", [None, stochastic, multistep])
def test_an_image_does_not_depend_on_its_batch(labelled, scheduler):
    if scheduler:
        labelled.scheduler = scheduler()
    alone = sample(labelled, samples=24, steps=STEPS, batch=1)
    together = sample(labelled, samples=24, steps=STEPS, batch=5)
    for one, other in zip(rows(alone)[1:], rows(together)[1:], strict=True):
        assert torch.equal(one, other)
    one, other = rows(alone)[0], rows(together)[0]
    # matmuls of other sizes sum in another order: float32 noise, amplified by guidance and steps
    assert_close(one, other, rtol=1e-3, atol=1e-3)
    first = rows(alone)[2] == rows(alone)[2].max()
    assert torch.equal(one[first], other[first])


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(labelled):
    first, again, other = (
        sample(labelled, samples=8, steps=STEPS, seed=seed).fingerprint() for seed in (1, 1, 2)
    )
    assert first == again != other


@contextmanager
def ended_after(monkeypatch, recordings):
    """The run ends when so many batches of images were drawn."""
    whole, left = _Recording.of, iter(range(recordings))

    def ending(*arguments):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return whole(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(_Recording, "of", ending)
        with pytest.raises(KeyboardInterrupt):
            yield


@pytest.mark.parametrize("scheduler", [None, stochastic, multistep])
@pytest.mark.parametrize("family", ["labelled", "text_pipe"])
def test_batches_that_were_drawn_are_kept(request, tmp_path, monkeypatch, family, scheduler):
    pipe = request.getfixturevalue(family)
    if scheduler:
        pipe.scheduler = scheduler()
    sampling = Sampling.of(manner_of(pipe, Calibration(steps=STEPS)), 40, batch=2)
    whole = sampling.draw(pipe)
    with ended_after(monkeypatch, 1):
        sampling.draw(pipe, Entries(tmp_path))
    with monkeypatch.context() as patch:
        starts = recorded_by(patch)
        resumed = sampling.draw(pipe, Entries(tmp_path))
    assert starts == [2, 4]
    assert resumed.fingerprint() == whole.fingerprint()


def recorded_by(patch):
    """Grows with the first image of each batch that is drawn."""
    starts, whole = [], _Recording.of
    patch.setattr(
        _Recording, "of", lambda one, *rest: starts.append(one.images.start) or whole(one, *rest)
    )
    return starts


def test_noise_of_the_global_generator_does_not_depend_on_the_batches_before(
    labelled, tmp_path, monkeypatch
):
    """Not every pipeline hands its generators on."""

    def noisy(_, args, kwargs):
        return (args[0] + torch.randn(args[0].shape), *args[1:]), kwargs

    labelled.transformer.register_forward_pre_hook(noisy, with_kwargs=True)
    sampling = Sampling.of(manner_of(labelled, Calibration(steps=STEPS, guidance=1.0)), 16, batch=1)
    whole = sampling.draw(labelled)
    with ended_after(monkeypatch, 2):
        sampling.draw(labelled, Entries(tmp_path))
    assert sampling.draw(labelled, Entries(tmp_path)).fingerprint() == whole.fingerprint()


def test_what_is_drawn_has_an_identity(labelled):
    def print_of(seed=0, samples=8, batch=8, **asked):
        manner = manner_of(labelled, Calibration(**asked))
        return Sampling.of(manner, samples, seed, batch).fingerprint()

    prints = [
        print_of(),
        print_of(seed=1),
        print_of(samples=16),
        print_of(batch=4),
        print_of(steps=4),
        print_of(guidance=2.0),
    ]
    assert len(set(prints)) == len(prints)
    assert print_of() == prints[0]


def test_without_guidance_there_is_one_half(labelled):
    data = sample(labelled, samples=7, steps=STEPS, guidance=1.0)
    assert len(data) == 7
    assert data.conditional.all()
    assert data.pair.tolist() == list(range(7))
    assert NULL not in data.columns["class_labels"]


def test_a_scheduler_with_two_forwards_a_step(labelled):
    labelled.scheduler = diffusers.HeunDiscreteScheduler()
    data = sample(labelled, samples=36, steps=STEPS)
    labelled.scheduler.set_timesteps(STEPS)
    values, counts = labelled.scheduler.timesteps.unique(return_counts=True)
    mine, times = data.timesteps().unique(return_counts=True)
    assert torch.equal(mine, values.float())
    assert torch.equal(times, counts * 4)


@pytest.mark.parametrize("moments", [1, 2, 3, 7, 16, 50, 101])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 10, 50])
def test_the_choice_is_even_and_without_repetition(moments, steps):
    choice = Choice.spread(moments, steps)
    chosen = choice.of(range(choice.images), range(steps))
    assert sorted(m for at in chosen.values() for m in at) == list(range(moments))
    counts = [len(chosen.get(step, ())) for step in range(steps)]
    assert max(counts) - min(counts) <= 1
    assert all(len(set(at.values())) == len(at) for at in chosen.values())
    parts = (choice.of([image], range(steps)) for image in range(choice.images))
    assert sorted(m for part in parts for at in part.values() for m in at) == list(range(moments))


def state_of(pipe):
    return (
        pipe.scheduler,
        dict(vars(pipe.scheduler)),
        dict(pipe.config),
        vars(pipe).get("_progress_bar_config"),
        [module.training for module in pipe.transformer.modules()],
        len(pipe.transformer._forward_pre_hooks),
        torch.random.get_rng_state().tolist(),
    )


def test_the_pipeline_is_left_as_it_was(labelled):
    labelled.scheduler = stochastic()  # draws noise at every step
    labelled.set_progress_bar_config(desc="mine")
    labelled.transformer.train()
    before = state_of(labelled)
    sample(labelled, samples=4, steps=STEPS)
    assert state_of(labelled) == before
    torch.rand(())
    assert state_of(labelled) != before


def test_the_pipeline_is_left_as_it_was_after_a_failure(labelled):
    before = state_of(labelled)
    calls = []

    def fail(*_):
        calls.append(None)
        if len(calls) == 3:
            raise RuntimeError("out of memory")

    hook = labelled.transformer.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        sample(labelled, samples=4, steps=STEPS)
    hook.remove()
    assert state_of(labelled) == before


def test_the_decoder_never_runs(labelled):
    labelled.vae = None
    assert len(sample(labelled, samples=4, steps=STEPS)) == 4


def test_only_the_chosen_rows_are_kept(labelled):
    data = sample(labelled, samples=8, steps=STEPS, batch=4)
    assert all(len(column) == 8 for column in data.columns.values())
    assert all(
        column.untyped_storage().nbytes() == column.nbytes for column in data.columns.values()
    )


class Tokenizer:
    model_max_length = 120

    def __call__(self, text, max_length=120, **_):
        texts = [text] if isinstance(text, str) else text
        mask = torch.zeros(len(texts), max_length, dtype=torch.int64)
        for row, words in enumerate(texts):
            mask[row, : 1 + len(words.split())] = 1
        ids = mask * torch.arange(1, max_length + 1)
        return SimpleNamespace(input_ids=ids, attention_mask=mask)

    def batch_decode(self, ids):
        return ["" for _ in ids]


@pytest.fixture
def text_pipe():
    from transformers import T5Config, T5EncoderModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = T5Config(vocab_size=200, d_model=12, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
        encoder = T5EncoderModel(config).eval()
        transformer = diffusers.PixArtTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=1,
            sample_size=32,
            patch_size=8,
            cross_attention_dim=16,
            caption_channels=12,
            use_additional_conditions=False,
        ).eval()
        vae = diffusers.AutoencoderKL(block_out_channels=(4,), norm_num_groups=2)
    return diffusers.PixArtAlphaPipeline(
        Tokenizer(), encoder, vae, transformer, diffusers.DPMSolverMultistepScheduler()
    )


def test_prompts_keep_their_padding_mask(text_pipe):
    prompts = ["a cat", "three words here"]
    data = sample(text_pipe, samples=12, steps=3, prompts=prompts)
    mask = data.columns["encoder_attention_mask"]
    assert data.conditional.tolist() == [True, False] * 6
    assert set(mask[1::2].sum(1).tolist()) == {1}  # the empty prompt
    assert set(mask[::2].sum(1).tolist()) == {3, 4}
    assert torch.equal(data.columns["hidden_states"][::2], data.columns["hidden_states"][1::2])
    arguments = data.take([0, 5, 7])
    assert arguments["added_cond_kwargs"] == {"resolution": None, "aspect_ratio": None}
    with torch.no_grad():
        assert len(text_pipe.transformer(**arguments)[0]) == 3


def test_there_are_prompts_for_who_has_none(text_pipe):
    data = sample(text_pipe, samples=4, steps=2)
    assert data.columns["encoder_attention_mask"][0].sum() > 4


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        ({"samples": 0}, BadArgument, "samples must be a positive integer, got 0"),
        ({"samples": 7}, BadArgument, "samples must be even, for guidance has two halves, got 7"),
        ({"samples": 2.0}, BadArgument, "got 2.0"),
        ({"samples": -2, "guidance": 1}, BadArgument, "a positive integer, got -2"),
        ({"batch": 0}, BadArgument, "batch must be a positive number of images, got 0"),
        (
            {"times": 3},
            BadCalibration,
            "need 6 samples and 3 steps .* 4 samples of 2 steps allow 2",
        ),
        ({"steps": 0}, BadArgument, "steps must be a positive integer, got 0"),
        ({"guidance": -1.0}, BadArgument, "guidance must be a number from 0 on, got -1.0"),
        ({"prompts": ["a cat"]}, BadArgument, "DiTPipeline draws classes; leave prompts out"),
    ],
)
def test_what_cannot_be_sampled_is_named(labelled, asked, error, message):
    with pytest.raises(error, match=message):
        sample(labelled, **{"samples": 4, "steps": 2} | asked)


@pytest.mark.parametrize("prompts", [[], "a cat", [3]])
def test_prompts_are_strings(text_pipe, prompts):
    with pytest.raises(BadCalibration, match="prompts must be one string or more in a list"):
        sample(text_pipe, samples=4, steps=2, prompts=prompts)


def test_a_pipeline_that_draws_neither_classes_nor_prompts():
    with pytest.raises(BadModel, match="SimpleNamespace takes neither class labels nor prompts"):
        sample(SimpleNamespace(transformer=make("DiTTransformer2DModel")), samples=4)


def test_a_transformer_that_gives_nonsense(labelled):
    with torch.no_grad():
        labelled.transformer.proj_out_2.bias[0] = torch.nan
    with pytest.raises(BadCalibration, match="'hidden_states', holds NaN or infinity"):
        sample(labelled, samples=8, steps=STEPS)
