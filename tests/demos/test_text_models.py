"""The scenes demo's models: what they read, what they are taught, and the folder they make."""

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from demos import assemble_scenes, language, text_denoiser
from demos.language import QUESTIONS
from demos.sampling import SCENES as MANNER
from demos.text_denoiser import BETAS, STEPS, _divergence
from fewbit.demo.scenes import LENGTH, OPPOSITE, scenes

SCENES = scenes(5, range(40))
CAPTIONS = [scene.caption for scene in SCENES]


@pytest.fixture(scope="module")
def tokenizer():
    return language.tokenizer()


@pytest.fixture(scope="module")
def pipeline(tokenizer):
    from diffusers import AutoencoderKL

    from fewbit.demo import path

    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = language.encoder(len(tokenizer)).eval()
        transformer = text_denoiser.build()
    text_denoiser.initialise(transformer, torch.Generator().manual_seed(0))
    with torch.no_grad():  # it would start as zero
        transformer.proj_out.weight.normal_(std=0.05, generator=torch.Generator().manual_seed(1))
        for block in transformer.transformer_blocks:
            block.attn2.to_out[0].weight.copy_(torch.eye(192))
    vae = AutoencoderKL.from_pretrained(path("shapes") / "vae", dtype=torch.float32)
    pipeline = assemble_scenes.pipeline(tokenizer, encoder, vae, transformer)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_captions_become_words_and_back(tokenizer):
    ids = language.tokens(tokenizer, [*CAPTIONS, ""])
    assert ids.shape == (41, LENGTH)
    assert tokenizer.batch_decode(ids, skip_special_tokens=True) == [*CAPTIONS, ""]
    assert ids[-1].tolist() == [1] + [0] * (LENGTH - 1)
    assert not (ids == tokenizer.unk_token_id).any()
    assert max((ids != 0).sum(1)) == LENGTH


def test_every_word_of_a_thing_is_asked_for_that_thing(tokenizer):
    right = language.answers(SCENES)
    for scene, caption, rows in zip(SCENES, CAPTIONS, right, strict=True):
        words = caption.split()
        asked = [i for i, row in enumerate(rows.tolist()) if row[0] >= 0]
        assert [words[i] for i in asked] == str(scene.first).split() + str(scene.second).split()
        for rows_of, thing, side in (
            (asked[:4], scene.first, scene.relation),
            (asked[4:], scene.second, OPPOSITE[scene.relation]),
        ):
            for i in rows_of:
                said = [q[a] for q, a in zip(QUESTIONS, rows[i].tolist(), strict=True)]
                assert said == [thing.size, thing.colour, thing.shape, side]


def test_padding_changes_nothing(pipeline):
    def noise(length: int) -> torch.Tensor:
        ids = torch.zeros(2, length, dtype=torch.long)
        ids[:, :LENGTH] = language.tokens(pipeline.tokenizer, CAPTIONS[:2])
        latent = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            step = torch.tensor([900, 100])
            return torch.cat(
                text_denoiser.predict(
                    pipeline.transformer, pipeline.text_encoder, latent, step, ids
                )
            )

    # Softmax over more terms, all of the rest zero: fp32 sums in another order.
    assert (noise(LENGTH) - noise(120)).abs().max() < 1e-4 * noise(LENGTH).abs().max()


def test_the_caption_is_heard(pipeline):
    latent = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    ids = language.tokens(
        pipeline.tokenizer,
        ["a small red ring above a large blue cross", "a large blue cross above a small red ring"],
    )
    with torch.no_grad():
        one, other = text_denoiser.predict(
            pipeline.transformer,
            pipeline.text_encoder,
            latent.expand(2, -1, -1, -1),
            torch.tensor([500, 500]),
            ids,
        )[0]
    assert (one - other).abs().max() > 1e-3


def test_the_divergence_is_the_one_between_the_two_steps_backwards():
    random = torch.Generator().manual_seed(0)
    step = torch.tensor([1, 30, 500, 999])
    clean, noise, error = torch.randn(3, 4, 1, 2, 2, generator=random).double()
    place = 2 * torch.rand(4, 1, 2, 2, generator=random).double() - 1
    betas = torch.linspace(*BETAS, STEPS, dtype=torch.float64)
    signal = (1 - betas).cumprod(0)
    s, before, beta = (
        x[..., None, None, None] for x in (signal[step], signal[step - 1], betas[step])
    )
    noisy = s.sqrt() * clean + (1 - s).sqrt() * noise

    def back(clean: torch.Tensor) -> torch.Tensor:
        return (before.sqrt() * beta * clean + (1 - beta).sqrt() * (1 - before) * noisy) / (1 - s)

    guessed = (noisy - (1 - s).sqrt() * (noise + error)) / s.sqrt()
    variance = beta * (1 - before) / (1 - s)
    spread = (variance.log().lerp(beta.log(), (place + 1) / 2) / 2).exp()
    true = Normal(back(clean), variance.sqrt())
    expected = kl_divergence(true, Normal(back(guessed), spread)).mean()
    assert torch.isclose(_divergence(error, place, step), expected, rtol=1e-9)


def test_the_divergence_teaches_the_variance_alone():
    error = torch.randn(2, 4, 2, 2, requires_grad=True)
    place = torch.zeros(2, 4, 2, 2, requires_grad=True)
    _divergence(error, place, torch.tensor([0, 700])).backward()
    assert error.grad is None
    assert place.grad.abs().min() > 0


def test_the_denoiser_starts_at_zero_and_learns(pipeline):
    model = text_denoiser.build()
    text_denoiser.initialise(model, torch.Generator().manual_seed(0))
    latent = torch.randn(8, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    ids = language.tokens(pipeline.tokenizer, CAPTIONS[:8])
    empty = language.tokens(pipeline.tokenizer, [""])
    step = torch.full((8,), 400)
    with torch.no_grad():
        output = text_denoiser.predict(model, pipeline.text_encoder, latent, step, ids)
    assert not torch.cat(output).any()
    text_denoiser.loss(
        model, pipeline.text_encoder, latent, ids, empty, torch.Generator().manual_seed(1)
    ).backward()
    assert model.proj_out.weight.grad.any()
    assert all(parameter.grad is None for parameter in pipeline.text_encoder.parameters())


def test_the_stock_class_loads_the_folder_and_draws_the_same(pipeline, tmp_path, monkeypatch):
    from diffusers import PixArtAlphaPipeline

    from demos.sampling import sample

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assemble_scenes.assemble(tmp_path / "scenes", pipeline)
    stock = PixArtAlphaPipeline.from_pretrained(tmp_path / "scenes")
    stock.set_progress_bar_config(disable=True)
    assert stock.transformer.dtype == stock.text_encoder.dtype == torch.float32
    assert pipeline.transformer.dtype == torch.float32
    assert '"PreTrainedTokenizerFast"' in (tmp_path / "scenes" / "model_index.json").read_text()
    assert sum(f.stat().st_size for f in (tmp_path / "scenes").rglob("*") if f.is_file()) < 20e6
    ours = sample(stock, CAPTIONS[:2], [0, 1], {**MANNER, "num_inference_steps": 2})
    # What users call: caption cleaning without its optional libraries, 120 tokens, prompt "".
    theirs = stock(
        CAPTIONS[:2],
        num_inference_steps=2,
        generator=[torch.Generator().manual_seed(seed) for seed in (0, 1)],
        use_resolution_binning=False,
        output_type="pt",
    ).images
    assert (ours - (2 * theirs - 1)).abs().max() < 1e-3


def test_the_pipeline_says_what_to_ask_it(pipeline, tmp_path):
    from transformers import PreTrainedTokenizerFast

    from fewbit.calibration import sample
    from fewbit.demo.scenes import parse
    from fewbit.pipelines.generate import generate
    from fewbit.pipelines.prompting import own_prompts

    prompts = own_prompts(pipeline)
    assert len(prompts) == 64
    assert all(parse(prompt) for prompt in prompts)
    pipeline.tokenizer.save_pretrained(tmp_path)
    pipeline.tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert own_prompts(pipeline) == prompts
    picture = generate(pipeline, seeds=[3], steps=2)[0]
    assert picture.size == (64, 64)
    assert picture.info["prompt"] == prompts[0]
    data = sample(pipeline, samples=4, steps=2)
    assert len(data) == 4
