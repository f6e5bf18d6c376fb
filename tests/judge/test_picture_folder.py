import os

import pytest
import torch
from PIL import Image

import fewbit
from fewbit.errors import BadOutput
from fewbit.judge import folder as module
from fewbit.judge.finite import NotFinite
from fewbit.judge.folder import Series, fill, fingerprint, picture_seed
from fewbit.layers.block import FusedBlock


def series(pipe, **changes) -> Series:
    return Series.of(pipe, **{"seed": 5, "steps": 1, **changes})


def contents(folder) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def times(folder) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}


def test_runs_of_any_length_and_order_end_with_the_same_files(pipe, tmp_path):
    fill(tmp_path / "whole", series(pipe), 4)
    whole = contents(tmp_path / "whole")
    assert list(whole) == ["000000.png", "000001.png", "000002.png", "000003.png"]
    assert len(set(whole.values())) == 4
    parts = tmp_path / "parts"
    fill(parts, series(pipe), 1)
    (parts / "000003.png").write_bytes(whole["000003.png"])
    before = times(parts)
    fill(parts, series(pipe), 4)
    assert contents(parts) == whole
    assert {name: times(parts)[name] for name in before} == before


def test_a_killed_run_leaves_whole_pictures_and_goes_on(pipe, tmp_path, monkeypatch):
    real_draw, drawn = Series.draw, []

    def dying(self, company):
        drawn.extend(company)
        if drawn == [0, 1, 2]:
            raise KeyboardInterrupt
        return real_draw(self, company)

    monkeypatch.setattr(Series, "draw", dying)
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path / "run", series(pipe), 4)
    assert sorted(os.listdir(tmp_path / "run")) == ["000000.png", "000001.png"]
    fill(tmp_path / "run", series(pipe), 4)
    assert drawn == [0, 1, 2, 2, 3]


def test_subjects_take_turns_and_files_say_how_they_were_made(pipe, tmp_path):
    filled = fill(tmp_path, series(pipe, guidance=1.5), 4)
    infos = []
    for file in filled.files:
        with Image.open(file) as picture:
            infos.append(dict(picture.info))
    assert [info["class_labels"] for info in infos] == ["0", "1", "2", "0"]
    assert infos[1]["number"] == "1 of seed 5"
    assert infos[1]["seed"] == str(picture_seed(5, 1))
    assert (infos[1]["asked_steps"], infos[1]["asked_guidance"]) == ("1", "1.5")
    assert infos[1]["fewbit"] == fewbit.__version__
    assert infos[1]["model_sha256"] == fingerprint(pipe)


def test_pictures_drawn_together_always_have_the_same_company(pipe, tmp_path):
    three = series(pipe, together=3)
    assert [three.company(number) for number in (0, 2, 3)] == [range(3), range(3), range(3, 6)]
    fill(tmp_path / "whole", series(pipe, together=3), 6)
    whole = contents(tmp_path / "whole")
    fill(tmp_path / "parts", series(pipe, together=3), 2)
    assert list(contents(tmp_path / "parts")) == ["000000.png", "000001.png"]
    fill(tmp_path / "parts", series(pipe, together=3), 6)
    assert contents(tmp_path / "parts") == whole


def test_what_cannot_be_read_is_named_and_drawn_again(pipe, tmp_path):
    fill(tmp_path, series(pipe), 2)
    whole = contents(tmp_path)
    (tmp_path / "000001.png").write_bytes(whole["000001.png"][:200])
    filled = fill(tmp_path, series(pipe), 2)
    [message] = filled.redrawn
    assert "000001.png" in message
    assert contents(tmp_path) == whole


@pytest.mark.parametrize(
    ("changes", "differs"),
    [
        ({"seed": 6}, "number"),
        ({"steps": 2}, "asked_steps"),
        ({"guidance": 2.0}, "asked_guidance"),
        ({"together": 2}, "drawn_together"),
    ],
)
def test_pictures_of_another_run_are_never_taken(pipe, tmp_path, changes, differs):
    fill(tmp_path, series(pipe), 1)
    before = contents(tmp_path)
    with pytest.raises(BadOutput, match=f"another run, which differs in: {differs}; choose"):
        fill(tmp_path, series(pipe, **changes), 2)
    assert contents(tmp_path) == before


def test_a_quantized_model_is_another_model(pipe, tmp_path):
    fill(tmp_path, series(pipe), 1)
    fewbit.quantize(pipe, "rtn", progress=False)
    with pytest.raises(BadOutput, match="differs in: model_sha256"):
        fill(tmp_path, series(pipe), 1)


def test_the_fingerprint_sees_weights_formats_and_scheduler(pipe, other_pipe):
    first = fingerprint(pipe)
    assert fingerprint(other_pipe) == first
    other_pipe.vae.decoder.conv_out.bias.data[0] += 1
    assert fingerprint(other_pipe) != first
    pipe.scheduler.register_to_config(beta_start=0.001)
    assert fingerprint(pipe) != first


def test_the_fingerprint_sees_a_format_whose_codes_are_the_same(pipe):
    fewbit.quantize(pipe, "rtn", progress=False)
    before = fingerprint(pipe)
    pipe.transformer.transformer_blocks[0].attn1.to_q.spec = "the same codes, another meaning"
    assert fingerprint(pipe) != before


def test_no_two_seeds_share_a_picture():
    seeds = {picture_seed(seed, number) for seed in range(30) for number in range(30)}
    assert len(seeds) == 900
    assert picture_seed(0, 1) == 141421816304931  # what is on people's disks stays valid


def test_the_global_generator_neither_matters_nor_moves(pipe, tmp_path):
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    fill(tmp_path / "one", series(pipe), 1)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    fill(tmp_path / "two", series(pipe), 1)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


@pytest.mark.parametrize(
    "layer", ["transformer.transformer_blocks.1.attn1.to_k", "vae.decoder.conv_in"]
)
def test_a_broken_layer_is_named_and_no_picture_kept(pipe, tmp_path, layer):
    name, _, path = layer.partition(".")
    getattr(pipe, name).get_submodule(path).weight.data.view(-1)[0] = torch.inf
    with pytest.raises(NotFinite) as broken:
        fill(tmp_path, series(pipe), 2)
    assert broken.value.layer == layer
    assert not list(tmp_path.iterdir())
    assert not any(hook for part in (pipe.transformer, pipe.vae)
                   for module in part.modules() for hook in module._forward_hooks)  # fmt: skip


def test_every_layer_is_looked_at_only_when_something_is_wrong(pipe, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "every_layer", lambda _: pytest.fail("looked"))
    fill(tmp_path, series(pipe), 1)


def test_what_only_the_fused_path_breaks_is_an_error_that_says_so(pipe, tmp_path, monkeypatch):
    """Watched layers are computed one by one, so the second drawing is finite."""
    fewbit.quantize(pipe, "rtn", progress=False)
    broken = lambda *given: feed_forward(*given) * torch.nan  # noqa: E731
    feed_forward = FusedBlock.feed_forward
    monkeypatch.setattr(FusedBlock, "feed_forward", broken)
    with pytest.raises(NotFinite, match="the fused path and the layers' own forwards") as found:
        fill(tmp_path, series(pipe), 1)
    assert found.value.layer == "transformer.transformer_blocks.0"
    assert not list(tmp_path.iterdir())
