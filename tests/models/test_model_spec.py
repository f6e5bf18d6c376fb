"""A spec is checked when it is made, and survives JSON."""

import json
from dataclasses import asdict

import pytest

from fewbit.errors import BadArgument
from fewbit.models import ModelSpec, Role


def test_strings_become_tuples_and_names_become_roles():
    spec = ModelSpec(blocks="layers", roles={"fc1": "fc1"}, keep="head")
    assert spec.blocks == ("layers",)
    assert spec.keep == ("head",)
    assert spec.role("fc1") is Role.FC1
    assert spec.role("fc2") is None


def test_a_spec_survives_json():
    spec = ModelSpec("layers", {"*.q": "q", "*.v": Role.V}, ["head"], 4, [["a.q", "b.q"]])
    assert ModelSpec(**json.loads(json.dumps(asdict(spec)))) == spec


def test_the_first_matching_pattern_gives_the_role():
    spec = ModelSpec("layers", {"mlp.last": "fc2", "mlp.*": "fc1"})
    assert spec.role("mlp.last") is Role.FC2
    assert spec.role("mlp.first") is Role.FC1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"roles": {"a": "fc3"}}, "unknown role 'fc3'; allowed: q, k, v, qkv, "),
        ({"roles": {}}, "at least one"),
        ({"roles": ["a"]}, "got list"),
        ({"blocks": ()}, "at least one"),
        ({"blocks": ""}, r"ModelSpec.blocks .* got ''"),
        ({"keep": (3,)}, r"ModelSpec.keep .* got 3"),
        ({"shared": (("",),)}, r"ModelSpec.shared .* got ''"),
        ({"heads": 0}, "positive integer, got 0"),
        ({"heads": 1.5}, "positive integer, got 1.5"),
    ],
)
def test_each_bad_field_is_named(fields, message):
    with pytest.raises(BadArgument, match=message):
        ModelSpec(**{"blocks": "layers", "roles": {"a": "q"}, **fields})


def test_what_reads_one_tensor_has_one_source():
    roles = {f"{at}.{name}": name for at in ("near", "far") for name in ("q", "k", "v")}
    spec = ModelSpec("layers", {**roles, "up": "fc1", "gate": "fc1"}, shared=[["up", "gate"]])
    assert spec.source("near.q") == spec.source("near.k") == spec.source("near.v")
    assert spec.source("near.q") != spec.source("far.q")
    assert spec.source("up") == spec.source("gate") != spec.source("near.q")
