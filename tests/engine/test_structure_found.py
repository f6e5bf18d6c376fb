"""Structure is found where nobody gives it, told in the plan, and taken from a file."""

import json
import re

import own_transformer
import pytest
import tiny_transformers
import torch
from click.testing import CliRunner
from torch import nn
from torch.nn.utils import weight_norm as old_weight_norm
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

import fewbit
from fewbit.calibration import Calibration, manner_of
from fewbit.cli import main
from fewbit.engine.plan import make_plan
from fewbit.engine.recipe import Recipe
from fewbit.errors import BadModel
from fewbit.models import SPEC, recognise
from fewbit.models.discover import discover
from fewbit.pipelines.first_call import first_call

RTN = Recipe.make("rtn", "w4a4", {})


def plan(model, spec=None, **how):
    return make_plan(model, RTN, spec, False, **how)


def test_the_plan_tells_what_was_found_and_what_stays():
    lines = str(plan(own_transformer.loom(), see=own_transformer.call)).splitlines()
    assert max(map(len, lines)) <= 80
    text = re.sub(r"\n {4,}", " ", "\n".join(lines)).splitlines()  # wrapped lines in one
    found = "structure found by one forward: blocks in meetings.0, alone.0, meetings.1, alone.1"
    assert f"  {found}" in text
    assert any("linears outside of the blocks (takes, clock, gives)" in line for line in text)
    assert any("matrices of experts (alone.*.table)" in line for line in text)


def test_strict_refuses_what_nobody_said():
    model, call = own_transformer.loom(), own_transformer.call
    with pytest.raises(BadModel, match=r"% of the weights of Loom .*alone\.0\.table.*keep"):
        plan(model, strict=True, see=call)
    spec = discover(model, call()).to_dict()
    told = fewbit.ModelSpec.from_dict({**spec, "keep": [*spec["keep"], "alone.*.table"]})
    assert plan(model, told, strict=True).rules


def test_a_model_that_is_known_is_not_run():
    def see():
        raise AssertionError("it was run")

    assert plan(tiny_transformers.make(), see=see).rules
    model = own_transformer.loom()
    assert plan(model, discover(model, own_transformer.call()), see=see).rules


def test_the_first_item_of_the_calibration_shows_the_structure():
    model = own_transformer.loom()
    for block in model.alone:
        del block.experts[2]  # which no token chooses
    calls = [own_transformer.call()]
    found = discover(model, calls[0])
    fewbit.quantize(model, "hq-dit", calibration=calls, progress=False)
    assert getattr(model, SPEC) == found
    assert model(**calls[0]).isfinite().all()


def test_a_pipeline_shows_the_structure_of_its_transformer():
    model = tiny_transformers.make()
    pipe = tiny_transformers.pipeline(model)
    state = torch.get_rng_state()
    call = first_call(pipe, manner_of(pipe, Calibration()))
    assert torch.equal(torch.get_rng_state(), state)
    assert {"timestep", "class_labels"} <= call.keys()
    assert discover(model, call).blocks == ("transformer_blocks",)
    assert not model._forward_pre_hooks


def test_the_printed_spec_can_be_edited_and_given_back(tmp_path):
    tiny_transformers.make().save_pretrained(tmp_path / "plain")
    printed = CliRunner().invoke(main, ["inspect", str(tmp_path / "plain"), "--spec"])
    assert printed.exit_code == 0, printed.output
    spec = json.loads(printed.output)
    spec["roles"] = {path: role for path, role in spec["roles"].items() if role != "fc1"}
    spec["keep"].append("*.ff.net.0.proj")
    file = tmp_path / "spec.json"
    file.write_text(json.dumps(spec))
    words = ["quantize", str(tmp_path / "plain"), "--recipe", "rtn", "--spec", str(file)]
    done = CliRunner().invoke(main, [*words, "--output", str(tmp_path / "small"), "--quiet"])
    assert done.exit_code == 0, done.output
    layers = fewbit.inspect(tmp_path / "small").layers
    assert {la.status for la in layers if la.name.endswith("ff.net.0.proj")} == {"keep"}
    config = fewbit.FewbitConfig("rtn", spec=file)
    loaded = type(tiny_transformers.make()).from_pretrained(
        tmp_path / "plain", quantization_config=config
    )
    assert type(loaded.transformer_blocks[0].ff.net[0].proj) is nn.Linear
    assert getattr(loaded, SPEC) == fewbit.ModelSpec.from_dict(spec)


def test_one_module_under_two_names_is_named():
    model = own_transformer.loom()
    model.alone[1].merge = model.alone[0].merge
    message = r"alone\.0\.merge and alone\.1\.merge are one module; .*deepcopy"
    with pytest.raises(BadModel, match=message):
        plan(model)


@pytest.mark.parametrize("how", [spectral_norm, weight_norm, old_weight_norm])
def test_a_weight_that_is_computed_is_named(how):
    model = own_transformer.loom()
    how(model.meetings[1].text_say)
    with pytest.raises(BadModel, match=r"weight of meetings\.1\.text_say is computed .*remove_"):
        plan(model)


def test_a_linear_without_weights_is_named():
    model = own_transformer.loom()
    model.meetings[0].shift = nn.Linear(32, 1)
    model.meetings[0].shift.out_features = 0
    with pytest.raises(BadModel, match=r"meetings\.0\.shift has no weights, .*\[0, 32\]; keep it"):
        plan(model)


def test_a_pipeline_of_a_class_nobody_knows_is_run_once(monkeypatch):
    monkeypatch.setattr(recognise, "family_of", lambda model: None)
    model = tiny_transformers.make()
    pipe = tiny_transformers.pipeline(model)
    runs = []
    model.register_forward_hook(lambda *_: runs.append(1))
    fewbit.quantize(pipe, "rtn", bits="w4a4", progress=False)
    assert len(runs) == 1
    assert getattr(model, SPEC).heads == 2  # which names alone do not tell
    assert tiny_transformers.picture(pipe).isfinite().all()
