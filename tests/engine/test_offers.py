"""What a model in full precision would weigh by each recipe: the arithmetic that a run confirms."""

import json

import pytest
import tiny_transformers as tiny

import fewbit
from fewbit.engine.offers import Offer, offered
from fewbit.engine.recipe import recipes


def of(inspection):
    return {(one.recipe, one.bits): one for one in inspection.offers}


@pytest.mark.parametrize("name", tiny.NAMES)
def test_it_is_what_a_plan_says(name):
    model = tiny.make(name)
    offers = of(fewbit.inspect(model))
    report = fewbit.quantize(model, "rtn:w8a8", progress=False)
    assert offers["rtn", "w8a8"].bytes == report.bytes
    assert offers["rtn", "w8a8"].smaller == report.smaller
    assert fewbit.inspect(model).offers == ()


def test_every_recipe_and_budget_is_there_the_largest_first():
    offers = fewbit.inspect(tiny.make()).offers
    assert {one.recipe for one in offers} == {recipe.name for recipe in recipes()}
    assert ("best", "balanced") in of(fewbit.inspect(tiny.make()))
    sizes = [one.bytes for one in offers]
    assert sizes == sorted(sizes, reverse=True)


def test_a_configuration_alone_will_do(tmp_path):
    model = tiny.make()
    model.save_config(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["config.json"]
    assert fewbit.inspect(tmp_path) == fewbit.inspect(tmp_path / "config.json")
    assert of(fewbit.inspect(tmp_path)).keys() == of(fewbit.inspect(model)).keys()


def test_equal_tensors_of_a_folder_are_found_in_its_files(tmp_path):
    model = tiny.make()
    first, second = model.transformer_blocks
    second.norm1.emb.load_state_dict(first.norm1.emb.state_dict())
    model.save_pretrained(tmp_path)
    assert fewbit.inspect(tmp_path).offers == fewbit.inspect(model).offers
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    alone = of(fewbit.inspect(tmp_path))["rtn", "w8a8"].bytes
    saved = sum(tensor.nbytes for tensor in first.norm1.emb.state_dict().values())
    assert alone - of(fewbit.inspect(model))["rtn", "w8a8"].bytes == saved


def test_one_row_for_each_size():
    offers = [Offer("rtn", "w8a8", 5_560_000, 2.07), Offer("best", "w8a8", 5_561_000, 2.07)]
    many = [Offer("best", f"bits-{number}", 1_000_000, 4.0) for number in range(12)]
    assert list(offered([*offers, *many])) == [
        "         MB  bf16/  if quantized with recipe: bits",
        "       5.56   2.07  rtn: w8a8; best: w8a8",
        "       1.00   4.00  best: bits-0, bits-1, bits-2, bits-3, bits-4, bits-5,",
        "                    bits-6, bits-7, bits-8, bits-9, bits-10, bits-11",
    ]
    assert list(offered([])) == []


def test_json_tells_them_too(tmp_path):
    found = fewbit.inspect(tiny.make()).to_dict()
    assert json.loads(json.dumps(found))["offers"][0].keys() == {
        "recipe", "bits", "bytes", "smaller"
    }  # fmt: skip
