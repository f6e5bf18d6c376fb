"""A method is one value: what it is made of, and that a new one needs no old file."""

from dataclasses import dataclass, fields

import pytest
import torch
from small_dit import rows, run

import fewbit
from fewbit.engine.plan import make_plan
from fewbit.engine.recipe import Recipe
from fewbit.errors import BadArgument
from fewbit.formats import FORMATS, QTensor, Spec
from fewbit.layers.linear import QLinear
from fewbit.methods.method import Method, Rule
from fewbit.methods.settings import Calibrated, Common, modulation, products_in, setting


@dataclass(frozen=True)
class Settings(Calibrated):
    shrink: float = setting(0.9, above=0, below=2, help="factor of every weight")
    rounds: int = setting(2, least=1, help="how often")
    word: str = setting("a", allowed=("a", "b"), help="one of two")
    limit: int | None = setting(None, number=int, least=4, allowed=(None,), help="or none")
    adaln: str = modulation("keep")

    def check(self):
        if self.word == "b" and self.rounds == 1:
            raise BadArgument("word b needs two rounds")


def rule(layer, variant, settings):
    return variant


def solve(job, settings):
    """Reads its input's moments and its own settings, so that all of the engine is used."""
    seen = job.observe()
    for group in job.groups:
        assert seen[group[0]].rms.isfinite().all()
        for name in group:
            weight = job.weight(name) * settings.shrink
            packed = QTensor.quantize(weight, job.rules[name].weight)
            job.replace(name, QLinear(packed, job.linear(name).bias, None), target=weight)


def finish(job, settings):
    return False


SHRINKING = Method(
    "shrinking",
    "weights made smaller",
    {"w8a16": Rule(Spec(FORMATS["int8"]))},
    Settings,
    rule,
    solve,
    finish=finish,
    presets={"same": {"shrink": 1.0}},
)


def test_a_method_defined_here_quantizes_saves_loads_and_is_told_its_settings(small, tmp_path):
    model, plain = small(), small()
    report = fewbit.quantize(model, SHRINKING, calibration=rows(), shrink=0.5, progress=False)
    assert report.recipe["method"] == "shrinking"
    assert report.recipe["settings"]["shrink"] == 0.5
    half = plain.transformer_blocks[0].ff.net[2].weight / 2
    found = model.transformer_blocks[0].ff.net[2].effective_weight()
    torch.testing.assert_close(found, half, atol=float(half.detach().abs().max()) / 127, rtol=0)
    fewbit.save(model, tmp_path / "m")
    for load in (fewbit.load, type(model).from_pretrained):
        assert torch.equal(run(load(tmp_path / "m")), run(model))
    (warning,) = fewbit.inspect(tmp_path / "m").warnings
    assert warning.startswith("made by a recipe of another fewbit: unknown recipe 'shrinking'")
    assert warning in str(fewbit.inspect(tmp_path / "m"))


def test_presets_and_the_modulation_are_not_the_methods_business(small):
    recipe = Recipe.resolve(SHRINKING, None, {"preset": "same"})
    assert recipe.settings.shrink == 1.0
    for adaln, expected in (("keep", None), ("int8", "int8"), ("same", "e2m1")):
        model = small()
        four = Method("four", "", {"w4a8": FOUR}, Settings, rule, solve)
        plan = make_plan(model, Recipe.resolve(four, None, {"adaln": adaln}), None, False)
        found = plan.rules.get("transformer_blocks.0.norm1.linear")
        assert (found and str(found.weight.format)) == expected
        assert found is None or found.activation is None
        assert plan.rules["transformer_blocks.0.attn1.to_q"] == FOUR


FOUR = Rule(Spec(FORMATS["e2m1"]), Spec(FORMATS["int8"]))


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("shrink", 2, "a number between 0 and 2"),
        ("shrink", "1", "a number between 0 and 2"),
        ("shrink", float("nan"), "a number between 0 and 2"),
        ("shrink", True, "a number between 0 and 2"),
        ("shrink", None, "a number between 0 and 2"),
        ("rounds", 0, "a whole number of 1 or more"),
        ("rounds", 1.0, "a whole number of 1 or more"),
        ("word", "c", "a, b"),
        ("word", ["a"], "a, b"),
        ("limit", 3, r"a whole number of 4 or more, None \(null on the command line\)"),
        ("samples", 0, "a whole number of 1 or more"),
        ("propagate", 1, "True, False"),
        ("adaln", "int4", "same, int8, keep"),
    ],
)
def test_a_setting_out_of_bounds_says_what_is_allowed(name, value, allowed):
    with pytest.raises(BadArgument, match=f"setting {name} cannot be .*; allowed: {allowed}$"):
        Settings(**{name: value})


def test_settings_that_fit_are_taken():
    Settings(shrink=1, rounds=7, word="b", limit=None)
    assert Settings(limit=4).limit == 4
    with pytest.raises(BadArgument, match="word b needs two rounds"):
        Settings(word="b", rounds=1)


def test_every_setting_of_every_recipe_is_declared_and_explained():
    for recipe in fewbit.recipes():
        assert {"adaln"} <= {one.name for one in recipe.settings}
        assert all(one.help and one.allowed for one in recipe.settings)


def test_a_method_without_data_asks_for_none():
    @dataclass(frozen=True)
    class Plain(Common):
        pass

    assert not Method("plain", "", {}, Plain, rule, solve).calibrated
    assert SHRINKING.calibrated
    assert [one.name for one in fields(Plain)] == ["adaln"]


@pytest.mark.parametrize("flag", ["avx512_bf16", "amx_bf16", "bf16", None])
def test_training_multiplies_in_bf16_where_the_processor_has_it(monkeypatch, flag):
    cpu = torch.device("cpu")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {flag: True})
    assert products_in("auto", cpu) is (torch.bfloat16 if flag else torch.float32)
    assert products_in("auto", torch.device("cuda")) is torch.bfloat16
    assert products_in("bf16", cpu) is torch.bfloat16
    assert products_in("fp32", torch.device("cuda")) is torch.float32
