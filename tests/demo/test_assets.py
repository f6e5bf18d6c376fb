"""Shipped files are handed out only as they were made."""

import json
import shutil

import pytest

from demos.ship import ship
from fewbit import demo
from fewbit.demo import assets
from fewbit.errors import BadArgument, BrokenFile


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """The assets in a place where they may be spoiled."""
    folder = tmp_path / "assets"
    shutil.copytree(assets.ASSETS, folder)
    monkeypatch.setattr(assets, "ASSETS", folder)
    monkeypatch.setattr(assets, "MANIFEST", folder / "manifest.json")
    return folder / "shapes"


def test_names_and_path():
    assert "shapes" in demo.names()
    assert (demo.path("shapes") / "model_index.json").is_file()


def test_an_unknown_demo_is_refused_with_what_there_is():
    with pytest.raises(BadArgument, match=r"'circles'.*shapes"):
        demo.path("circles")


@pytest.mark.parametrize(
    "name", ["transformer/diffusion_pytorch_model.safetensors", "scheduler/scheduler_config.json"]
)
def test_one_flipped_bit_is_noticed(copied, name):
    demo.path("shapes")
    file = copied / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(BrokenFile, match=name):
        demo.path("shapes")


def test_a_missing_file_is_noticed(copied):
    (copied / "classifier.safetensors").unlink()
    with pytest.raises(BrokenFile, match=r"classifier.safetensors is missing"):
        demo.classifier()


def test_the_manifest_lists_every_shipped_file():
    manifest = json.loads(assets.MANIFEST.read_text())
    assert set(manifest) == {entry.name for entry in assets.ASSETS.iterdir() if entry.is_dir()}
    for name, expected in manifest.items():
        assert assets.digests(assets.ASSETS / name) == expected


def test_the_shapes_demo_is_small():
    files = [file for file in demo.path("shapes").rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 15e6


def test_shipping_copies_and_notes_hashes(tmp_path, copied, monkeypatch):
    monkeypatch.setattr("demos.ship.ASSETS", copied.parent)
    monkeypatch.setattr("demos.ship.MANIFEST", copied.parent / "manifest.json")
    before = demo.names()
    (tmp_path / "dots").mkdir()
    (tmp_path / "dots" / "a.json").write_text("{}")
    ship(tmp_path / "dots")
    assert demo.names() == sorted({"dots", *before})
    assert (demo.path("dots") / "a.json").read_text() == "{}"
