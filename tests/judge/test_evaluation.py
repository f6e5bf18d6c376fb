import math

import numpy as np
import pytest
import torch

import fewbit
from fewbit.errors import BadArgument, BadModel
from fewbit.judge.alike import Named
from fewbit.judge.evaluation import Judges, Setting, evaluate
from fewbit.judge.frechet import frechet_distance
from fewbit.judge.moments import FeatureMoments
from fewbit.judge.reading import read_picture
from fewbit.judge.reference import open_real

EIGHT = Setting(count=8, steps=1)


@pytest.fixture
def both(pipe, other_pipe):
    """The model to be quantized or broken, and the reference."""
    return Named(pipe, "small"), Named(other_pipe, "whole")


def by_name(evaluation):
    return {score.name: score for score in evaluation.scores}


def test_a_model_beside_itself_is_perfect(both, tmp_path, colours):
    found = evaluate(*both, EIGHT, tmp_path, Judges(colours, networks=False))
    scores = by_name(found)
    assert list(scores) == [
        "PSNR", "SQNR", "SSIM", "distance", "distance, spatial", "precision", "recall",
        "inception score",
    ]  # fmt: skip
    assert scores["PSNR"].value == scores["SQNR"].value == math.inf
    assert scores["SSIM"].value == scores["precision"].value == scores["recall"].value == 1
    assert scores["distance"].value == pytest.approx(0, abs=1e-9)
    assert found.passed


def test_quantization_is_seen_and_the_scores_say_where_they_come_from(both, tmp_path, colours):
    fewbit.quantize(both[0].pipe, "rtn", bits="w4a4", progress=False)
    found = evaluate(*both, EIGHT, tmp_path, Judges(colours, networks=False))
    scores = by_name(found)
    assert found.recipe == "rtn:w4a4"
    assert math.isfinite(scores["PSNR"].value)
    assert len(scores["PSNR"].each) == 8
    assert scores["PSNR"].value == pytest.approx(np.mean(scores["PSNR"].each))
    assert scores["distance"].value > 0
    assert scores["distance"].bias > 0
    basis = scores["distance"].basis
    assert (basis.samples, basis.seed, basis.features_sha256) == (8, 0, "c0104a5")
    assert basis.reference == scores["PSNR"].basis.reference == "the same seeds in full precision"
    assert basis.reference_sha256 == scores["PSNR"].basis.reference_sha256
    assert scores["distance"].full_precision is None


def test_real_pictures_take_the_references_place_and_judge_it_too(
    both, tmp_path, colours, pictures, save
):
    for number, picture in enumerate(pictures(12)):
        save(picture, tmp_path / "real" / f"{number}.png")
    (tmp_path / "real" / "x.png").write_bytes(b"nonsense")
    fewbit.quantize(both[0].pipe, "rtn", progress=False)
    real = open_real(tmp_path / "real")
    found = evaluate(*both, EIGHT, tmp_path / "out", Judges(colours, real, networks=False))
    scores = by_name(found)
    gaussians = {}
    for name in ("model", "reference"):
        moments = FeatureMoments(3)
        for file in sorted((tmp_path / "out" / name).iterdir()):
            moments.add(colours.see(read_picture(file)[None]).pooled)
        gaussians[name] = moments.gaussian()
    moments = FeatureMoments(3)
    moments.add(colours.see(pictures(12)).pooled)
    ideal = moments.gaussian()
    distance = scores["distance"]
    assert distance.value == pytest.approx(frechet_distance(ideal, gaussians["model"]))
    assert distance.full_precision == pytest.approx(frechet_distance(ideal, gaussians["reference"]))
    assert distance.basis.reference == real.name
    assert scores["precision"].basis.samples == 8
    count, named = found.notes
    assert count == "1 real pictures were passed over"
    assert "x.png" in named


def test_statistics_alone_give_the_distances_alone(both, tmp_path, colours):
    np.savez(
        tmp_path / "adm.npz", mu=np.zeros(3), sigma=np.eye(3), mu_s=np.zeros(6), sigma_s=np.eye(6)
    )
    real = open_real(tmp_path / "adm.npz")
    scores = by_name(
        evaluate(*both, EIGHT, tmp_path / "out", Judges(colours, real, networks=False))
    )
    assert {"distance", "inception score"} <= scores.keys()
    assert "precision" not in scores
    assert scores["distance"].value == scores["distance"].full_precision
    assert scores["distance"].basis.reference_sha256 == real.sha256()


def test_accuracy_is_the_share_of_pictures_taken_for_what_was_asked(both, tmp_path, colours):
    colours.judges = True
    score = by_name(evaluate(*both, EIGHT, tmp_path, Judges(colours, networks=False)))["accuracy"]
    files = sorted((tmp_path / "model").iterdir())
    seen = [int(colours.see(read_picture(file)[None]).probabilities.argmax()) for file in files]
    right = sum(kind == number % 3 for number, kind in enumerate(seen))
    assert score.value == score.full_precision == right / 8
    assert 0 < right < 8


def test_without_a_net_there_are_scores_of_pairs(both, tmp_path):
    found = evaluate(*both, Setting(count=2, steps=1), tmp_path, Judges(networks=False))
    assert list(by_name(found)) == ["PSNR", "SQNR", "SSIM"]
    [note] = found.notes
    assert "--inception" in note


def test_a_broken_model_fails_the_gate_and_its_first_bad_layer_is_named(both, tmp_path, colours):
    layer = "transformer_blocks.1.ff.net.2"
    both[0].pipe.transformer.get_submodule(layer).weight.data[0, 0] = torch.nan
    found = evaluate(*both, EIGHT, tmp_path, Judges(colours, networks=False))
    assert not found.passed
    assert found.first_bad_layer == f"transformer.{layer}"
    assert found.scores == ()


def test_a_broken_reference_is_not_the_models_fault(both, tmp_path):
    both[1].pipe.transformer.proj_out_2.bias.data[0] = torch.inf
    sentence = r"the reference is broken itself: the output of transformer\.proj_out_2 is not"
    with pytest.raises(BadModel, match=sentence):
        evaluate(*both, EIGHT, tmp_path, Judges())


def test_a_model_that_draws_black_fails_with_all_scores(both, tmp_path, colours):
    both[0].pipe.vae.decoder.conv_out.weight.data.zero_()
    both[0].pipe.vae.decoder.conv_out.bias.data.fill_(-1)
    found = evaluate(*both, EIGHT, tmp_path, Judges(colours, networks=False))
    assert found.findings[0] == "8 of 8 pictures are black"
    assert found.first_bad_layer == "vae.decoder.conv_out"
    assert "PSNR" in by_name(found)


def no_files(folder) -> bool:
    return not folder.exists() or not list(folder.iterdir())


def test_too_few_pictures_are_refused_before_any_is_drawn(both, tmp_path, colours):
    with pytest.raises(BadArgument, match=r"at least 7 pictures, got 6.*--fidelity-only"):
        evaluate(*both, Setting(count=6), tmp_path, Judges(colours, networks=False))
    assert no_files(tmp_path)


def test_other_schedulers_are_refused(both, tmp_path):
    both[1].pipe.scheduler.register_to_config(beta_start=0.001)
    with pytest.raises(BadArgument, match="schedulers of small and whole differ in beta_start;"):
        evaluate(*both, EIGHT, tmp_path, Judges())
    from diffusers import DDPMScheduler

    both[1].pipe.scheduler = DDPMScheduler()
    with pytest.raises(BadArgument, match=r"differ in .*class"):
        evaluate(*both, EIGHT, tmp_path, Judges())
    assert no_files(tmp_path)


@pytest.mark.parametrize("which", [0, 1])
def test_a_transformer_alone_is_no_pipeline(both, tmp_path, which):
    pair = list(both)
    pair[which] = Named(pair[which].pipe.transformer, "bare")
    with pytest.raises(BadModel, match="bare is no pipeline but a transformer alone"):
        evaluate(*pair, EIGHT, tmp_path, Judges())


def test_another_kind_of_pipeline_is_refused(both, tmp_path):
    class Other:
        pass

    with pytest.raises(BadArgument, match="small is a DiTPipeline and odd a Other"):
        evaluate(both[0], Named(Other(), "odd"), EIGHT, tmp_path, Judges())


def test_a_reference_of_another_resolution_is_refused_after_one_picture(both, tmp_path):
    from diffusers import AutoencoderKL

    config = {**both[1].pipe.vae.config, "block_out_channels": (8,)}
    config |= {
        "down_block_types": ("DownEncoderBlock2D",),
        "up_block_types": ("UpDecoderBlock2D",),
    }
    with torch.random.fork_rng():
        both[1].pipe.vae = AutoencoderKL.from_config(config)
    with pytest.raises(BadArgument, match="the model draws 16x16 pixels, the reference 8x8"):
        evaluate(*both, EIGHT, tmp_path, Judges())
    assert len(list(tmp_path.rglob("*.png"))) == 2


def test_real_pictures_of_another_resolution_are_refused_after_one(
    both, tmp_path, colours, pictures, save
):
    save(pictures(1, 12, 12)[0], tmp_path / "real" / "a.png")
    real = open_real(tmp_path / "real")
    with pytest.raises(BadArgument, match="have 12x12 pixels, those drawn 16x16"):
        evaluate(*both, EIGHT, tmp_path / "out", Judges(colours, real, networks=False))
    assert len(list((tmp_path / "out").rglob("*.png"))) == 2


def test_too_few_real_pictures_are_refused(both, tmp_path, colours, pictures, save):
    for number, picture in enumerate(pictures(6)):
        save(picture, tmp_path / "real" / f"{number}.png")
    real = open_real(tmp_path / "real")
    with pytest.raises(BadArgument, match=r"at least 7 pictures, got 6.*add to those of .*real"):
        evaluate(*both, EIGHT, tmp_path / "out", Judges(colours, real, networks=False))


def test_statistics_of_another_net_are_refused(both, tmp_path, colours):
    np.savez(
        tmp_path / "a.npz", mu=np.zeros(4), sigma=np.eye(4), mu_s=np.zeros(6), sigma_s=np.eye(6)
    )
    real = open_real(tmp_path / "a.npz")
    sentence = r"are of 4 and 6 features, colours has 3 and 6; ADM's are Inception's: give"
    with pytest.raises(BadArgument, match=sentence):
        evaluate(*both, EIGHT, tmp_path / "out", Judges(colours, real, networks=False))


def test_the_second_time_nothing_is_drawn(both, tmp_path, colours, monkeypatch):
    first = evaluate(*both, EIGHT, tmp_path, Judges(colours, networks=False))
    monkeypatch.setattr("fewbit.judge.folder.Series.draw", lambda *_: pytest.fail("drawn"))
    assert evaluate(*both, EIGHT, tmp_path, Judges(colours, networks=False)) == first
