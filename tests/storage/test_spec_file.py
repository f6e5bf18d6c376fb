"""The spec of a model in files: edited by people, or beside the weights."""

import json

import own_transformer
import pytest
import torch

import fewbit
from fewbit.errors import BadArgument, BrokenFile
from fewbit.models import SPEC, ModelSpec
from fewbit.models.discover import discover
from fewbit.storage.spec_file import as_stored, spec_from

SPECIFIED = ModelSpec(
    "blocks", {"a.*": "q", "*": "fc1"}, keep="head", heads={"a": 2}, shared=[["a.q", "a.k"]]
)


def test_a_spec_comes_back_from_every_way_of_giving_it(tmp_path):
    file = tmp_path / "spec.json"
    file.write_text(json.dumps(SPECIFIED.to_dict()))
    stored = json.loads(json.dumps(as_stored(SPECIFIED), sort_keys=True))
    for given in (SPECIFIED, SPECIFIED.to_dict(), file, str(file), stored):
        assert spec_from(given) == SPECIFIED
    assert list(spec_from(stored).roles) == ["a.*", "*"]
    assert spec_from(None) is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (3, "ModelSpec, a table of its fields or the path of a JSON file, got int"),
        (
            {"blocks": "a", "rolls": {}},
            "a table of blocks, roles, keep, heads, shared, outside, got",
        ),
        ({"blocks": "a"}, "needs blocks and roles"),
        ({"blocks": "a", "roles": [["a"]]}, "needs blocks and roles"),
        ({"blocks": 7, "roles": {"a": "q"}}, "ModelSpec.blocks"),
    ],
)
def test_what_is_no_spec_is_refused_in_a_sentence(given, message):
    with pytest.raises(BadArgument, match=message):
        spec_from(given)


def test_a_file_is_named_in_the_error(tmp_path):
    file = tmp_path / "mine.json"
    file.write_text('{"blocks": "a", "roles": {"a": "fc3"}}')
    with pytest.raises(BadArgument, match=r"mine\.json: .*unknown role 'fc3'"):
        spec_from(file)


@pytest.fixture
def folder(tmp_path):
    model = own_transformer.loom()
    spec = discover(model, own_transformer.call())
    fewbit.quantize(model, "rtn", bits="w4a4", spec=spec, progress=False)
    fewbit.save(model, tmp_path / "loom")
    return tmp_path / "loom"


def test_the_spec_travels_with_the_weights(folder):
    model = fewbit.load(folder, like=own_transformer.loom())
    assert getattr(model, SPEC) == discover(own_transformer.loom(), own_transformer.call())
    found = fewbit.inspect(model)
    assert found.origin == "as stored with it"
    assert {layer.role for layer in found.layers if layer.name.startswith("alone.0.experts.2")} == {
        "gate",
        "fc1",
        "fc2",
    }
    fewbit.dequantize(model)
    assert model(**own_transformer.call()).isfinite().all()


def test_the_bits_come_back(folder):
    one, other = (fewbit.load(folder, like=own_transformer.loom()) for _ in range(2))
    fresh = own_transformer.loom()
    spec = discover(fresh, own_transformer.call())
    fewbit.quantize(fresh, "rtn", bits="w4a4", spec=spec, progress=False)
    with torch.no_grad():
        outputs = [model(**own_transformer.call()) for model in (one, other, fresh)]
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


def test_a_folder_without_a_spec_still_loads(folder):
    edit(folder, lambda said: said.pop("spec"))
    model = fewbit.load(folder, like=own_transformer.loom())
    assert not hasattr(model, SPEC)
    spec = discover(own_transformer.loom(), own_transformer.call())
    assert fewbit.inspect(model, spec).origin == "as given"


@pytest.mark.parametrize(
    "spec",
    [
        3,
        {"blocks": ["nowhere"], "roles": {"a": "q"}},
        {"blocks": ["alone"], "roles": [[["a"], "q"]]},
        {"blocks": ["alone"], "roles": {"a": []}},
        {"blocks": ["alone"], "roles": {str(number): "q" for number in range(20_000)}},
    ],
)
def test_a_forged_spec_is_refused(folder, spec):
    edit(folder, lambda said: said.update(spec=spec))
    with pytest.raises(BrokenFile, match=r"config\.json: the spec does not suit the model"):
        fewbit.load(folder, like=own_transformer.loom())


def edit(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config["quantization_config"])
    (folder / "config.json").write_text(json.dumps(config))
