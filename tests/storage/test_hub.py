"""To the hub and back through its cache; the hub is a server of this process."""

import json
import warnings

import pytest
import tiny_transformers as tiny
import torch
from click.testing import CliRunner
from fake_hub import FakeHub

import fewbit
from fewbit.cli import main
from fewbit.errors import BadArgument, BadModel, BadOutput, BrokenFile

pytest.importorskip("huggingface_hub")
REPO, BASE = "somebody/tiny-w4a4", "author/tiny"
BASE_CARD = b"---\nlicense: openrail++\nlicense_link: LICENSE.md\n---\n# Tiny\n"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """With the card of the base model in it."""
    hub = FakeHub()
    hub.repos[BASE] = {"README.md": BASE_CARD}
    with hub.serving() as address:
        for name, value in {
            "ENDPOINT": address,
            "HUGGINGFACE_CO_URL_TEMPLATE": address + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(tmp_path / "cache"),
            "HF_HUB_DISABLE_XET": True,
        }.items():
            monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
        monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
        monkeypatch.chdir(tmp_path)
        yield hub


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    model = tiny.make()
    report = fewbit.quantize(model, "rtn", bits="w4a4", progress=False)
    model.register_to_config(_name_or_path=BASE)
    folder = tmp_path_factory.mktemp("saved") / "tiny"
    fewbit.save(model, folder, report=report)
    return folder, model


def front(card: bytes) -> dict[str, str]:
    """The table at the head of a card."""
    lines = card.decode().split("---\n")[1].splitlines()
    return {key: value for key, _, value in (line.partition(": ") for line in lines)}


def test_what_was_pushed_is_loaded_bit_for_bit(hub, saved):
    folder, model = saved
    url = fewbit.push(folder, REPO)
    assert url.endswith(f"/{REPO}")
    pushed = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    assert hub.repos[REPO].keys() == pushed
    assert hub.messages == ["Add rtn:w4a4, made by fewbit"]
    again = fewbit.load(REPO)
    assert torch.equal(tiny.run(again), tiny.run(model))
    hub.sent.clear()
    fewbit.load(REPO)
    assert not hub.sent  # it lies in the cache


def test_the_card_names_the_base_its_licence_the_figures_and_the_repository(hub, saved):
    folder, _ = saved
    before = (folder / "README.md").read_bytes()
    fewbit.push(folder, REPO)
    card = hub.repos[REPO]["README.md"]
    told = front(card)
    assert told["base_model"] == BASE
    assert told["base_model_relation"] == "quantized"
    assert told["license"] == "openrail++"
    assert told["license_link"].endswith(f"/{BASE}/blob/main/LICENSE.md")
    assert b"quantized" in card.split(b"tags:")[1].split(b"---")[0]
    assert f'from_pretrained("{REPO}")'.encode() in card
    assert b"## Report" in card
    assert b"- transformer: " in card
    assert b"MB saved and loaded" in card
    assert (folder / "README.md").read_bytes() == before


def test_a_base_without_a_card_is_a_warning(hub, saved):
    del hub.repos[BASE]
    with pytest.warns(UserWarning, match=f"card of {BASE} cannot be read"):
        fewbit.push(saved[0], REPO)
    assert "license" not in front(hub.repos[REPO]["README.md"])


def test_a_base_on_a_disk_has_no_licence_to_look_for(hub, saved, tmp_path):
    folder = tmp_path / "own"
    model = tiny.make()
    fewbit.quantize(model, "rtn", bits="w4a4", progress=False)
    fewbit.save(model, folder)
    with warnings.catch_warnings(record=True) as told:
        fewbit.push(folder, REPO)
    assert not [one for one in told if "licence" in str(one.message)]
    assert "license" not in front(hub.repos[REPO]["README.md"])


def test_the_verb_pushes_and_can_hide(hub, saved):
    run = CliRunner().invoke(main, ["push", str(saved[0]), REPO, "--private"])
    assert run.exit_code == 0, run.stderr
    assert run.stdout.strip().endswith(f"/{REPO}")
    assert hub.private == {REPO}


def test_a_second_push_replaces_the_first(hub, saved):
    fewbit.push(saved[0], REPO)
    hub.repos[REPO]["config.json"] = b"{}"
    fewbit.push(saved[0], REPO)
    assert hub.repos[REPO]["config.json"] == (saved[0] / "config.json").read_bytes()


def test_what_is_not_quantized_is_neither_pushed_nor_downloaded(hub, tmp_path):
    tiny.make().save_pretrained(tmp_path / "plain")
    with pytest.raises(BadModel, match="plain holds no network that fewbit has quantized"):
        fewbit.push(tmp_path / "plain", REPO)
    assert REPO not in hub.repos
    hub.repos[REPO] = {
        file.name: file.read_bytes() for file in (tmp_path / "plain").iterdir() if file.is_file()
    }
    with pytest.raises(BrokenFile, match=f"{REPO} holds no network that fewbit has quantized"):
        fewbit.load(REPO)
    assert not [name for name in hub.sent if name.endswith(".safetensors")]


def test_nothing_that_could_be_a_pickle_is_downloaded(hub, saved):
    fewbit.push(saved[0], REPO)
    hub.repos[REPO]["pytorch_model.bin"] = b"\x80\x04"
    fewbit.load(REPO)
    assert f"{REPO}/pytorch_model.bin" not in hub.sent


@pytest.mark.parametrize("repo", ["nouser", "a/b/c", "-x/y", "x/y z", "x/.."])
def test_a_repository_has_a_user_and_a_name(hub, saved, repo):
    with pytest.raises(BadArgument, match="must be a hub id such as user/name"):
        fewbit.push(saved[0], repo)


def test_what_the_hub_refuses_is_one_sentence(hub, saved):
    hub.refuses_writing = True
    with pytest.raises(BadOutput, match=f"to {REPO} on the Hugging Face hub: .*no right"):
        fewbit.push(saved[0], REPO)
    with pytest.raises(BrokenFile, match=r"cannot get nobody/nothing from the Hugging Face hub"):
        fewbit.load("nobody/nothing")


def test_a_folder_that_is_missing_or_broken_is_not_pushed(hub, saved, tmp_path):
    with pytest.raises(BrokenFile, match="nowhere"):
        fewbit.push(tmp_path / "nowhere", REPO)
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": 1}))
    with pytest.raises(BadModel, match="holds no network that fewbit has quantized"):
        fewbit.push(tmp_path, REPO)
    assert REPO not in hub.repos
