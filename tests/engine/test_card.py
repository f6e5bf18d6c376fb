"""What lies beside the weights: the card, the recipe, the report."""

import json

import pytest
import tiny_transformers as tiny
import torch
from pages import sound

import fewbit


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    model = tiny.make()
    first, second = model.transformer_blocks
    second.norm1.emb.load_state_dict(first.norm1.emb.state_dict())
    report = fewbit.quantize(model, "rtn", bits="w4a4", seed=7, progress=False)
    model.register_to_config(_name_or_path="somebody/tiny-dit")
    folder = tmp_path_factory.mktemp("card") / "dit"
    fewbit.save(model, folder, report=report)
    return folder, model, report


def test_the_card_says_what_one_needs_to_know(saved):
    folder, model, report = saved
    card = (folder / "README.md").read_text()
    for said in (
        "base_model: somebody/tiny-dit",
        "base_model_relation: quantized",
        "library_name: diffusers",
        "rtn:w4a4",
        "seed 7",
        model.fewbit.source_sha256,
        "import fewbit  # registers fewbit with diffusers",
        str(report),
    ):
        assert said in card
    assert str(folder.parent) not in card


def test_it_says_what_sharing_identical_tensors_saves(saved):
    """Both blocks hold the same embedders: four tensors and a table, each stored once."""
    folder, model, _ = saved
    emb = model.transformer_blocks[0].norm1.emb.state_dict().values()
    saving = sum(tensor.nbytes for tensor in emb)
    assert f"{len(emb)} tensors are copies of others" in (folder / "README.md").read_text()
    assert f"which saves {saving / 1e6:.1f} MB" in (folder / "README.md").read_text()


def test_how_to_load_is_what_works(saved):
    folder, model, _ = saved
    code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    names = {}
    exec(code.replace("PATH", str(folder)), names)
    assert torch.equal(tiny.run(names["model"]), tiny.run(model))


def test_recipe_and_report_are_json(saved):
    folder, model, report = saved
    assert json.loads((folder / "fewbit_recipe.json").read_text()) == model.fewbit.recipe
    assert json.loads((folder / "fewbit_report.json").read_text())["bytes"] == report.bytes
    again = tiny.make()
    fewbit.quantize(again, folder / "fewbit_recipe.json", progress=False)
    assert again.fewbit.recipe == model.fewbit.recipe


def test_the_report_has_a_page_for_the_eye(saved):
    folder, _, report = saved
    page = sound((folder / "fewbit_report.html").read_text())
    assert all(layer.name in page.words for layer in report.layers)
