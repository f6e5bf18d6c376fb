"""Recipes by name and by file; what is refused says what is allowed."""

import json
import subprocess
import sys
import warnings

import pytest

import fewbit
from fewbit import registry
from fewbit.engine.recipe import Recipe
from fewbit.errors import BadArgument
from fewbit.methods import rtn


def test_the_default_is_the_first_variant_and_w2_is_short():
    assert str(Recipe.make("rtn", None, {})) == "rtn:w4a4"
    assert str(Recipe.make("rtn", "w2", {})) == "rtn:w2a16"
    assert str(Recipe.make("rtn", "mxfp4", {})) == "rtn:mxfp4"


def test_presets_stand_where_bits_do():
    wanted = Recipe.make("best", None, {"preset": "tiny+fast"})
    assert Recipe.resolve("best:tiny+fast", None, {}) == wanted
    assert wanted.bits == "w2a8"
    assert fewbit.FewbitConfig("best:tiny").bits == "w2a8"
    with pytest.raises(
        BadArgument, match=r"best has no bits 'tiny\+slow'; allowed: w4a8.* or a pre"
    ):
        Recipe.resolve("best:tiny+slow", None, {})


@pytest.mark.filterwarnings("error")
def test_bits_in_any_case_and_after_a_colon(tmp_path):
    wanted = Recipe.make("rtn", "w8a8", {})
    assert Recipe.resolve("rtn", "W8A8", {}) == wanted
    assert Recipe.resolve("rtn:w8a8", None, {}) == wanted
    assert str(Recipe.resolve("rtn:MXFP4", None, {})) == "rtn:mxfp4"
    assert fewbit.FewbitConfig("rtn:W8A8").bits == "w8a8"
    path = tmp_path / "mine:own.json"
    path.write_text(json.dumps(Recipe.make("rtn", "w4a4", {"adaln": "keep"}).to_dict()))
    assert Recipe.resolve(path, None, {}).bits == "w4a4"
    assert Recipe.resolve(f"{path}:w8a8", None, {}) == Recipe.make("rtn", "w8a8", {"adaln": "keep"})
    with pytest.raises(BadArgument, match="'rtn:w8a8' names its bits, so bits='w4a4' is one too"):
        Recipe.resolve("rtn:w8a8", "w4a4", {})
    with pytest.raises(BadArgument, match="rtn has no bits ''; allowed"):
        Recipe.resolve("rtn:", None, {})


def test_bits_that_may_have_meant_the_inputs_too_say_what_they_took():
    message = "rtn takes bits 'W4' as w4a16: weights only; with inputs: w4a4, w4a8, w4a6"
    with pytest.warns(UserWarning, match=message):
        assert Recipe.make("rtn", "W4", {}).bits == "w4a16"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Recipe.make("rtn", "w2", {}).bits == "w2a16"  # nothing else it could mean


def test_samples_have_one_name_in_all_recipes():
    for info in fewbit.recipes():
        recipe = Recipe.make(info.name, None, {})
        names = [name for name in recipe.to_dict()["settings"] if "samples" in name]
        assert names == (["samples"] if info.calibrated else [])
        if info.calibrated:
            assert Recipe.make(info.name, None, {"samples": 16}).settings.samples == 16
            for wrong in (0, -2, 1.5, True, "many"):
                with pytest.raises(
                    BadArgument, match=r"samples cannot be .*; allowed: a whole number"
                ):
                    Recipe.make(info.name, None, {"samples": wrong})


def test_the_list_of_recipes_tells_bits_and_one_line():
    info = next(one for one in fewbit.recipes() if one.name == "rtn")
    assert info.bits[:2] == ("w4a4", "w8a8")
    assert "plain rounding" in info.summary
    assert not info.calibrated
    names = [one.name for one in fewbit.recipes()]
    assert names == sorted(names)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("rnt", None, {}), "unknown recipe 'rnt'; recipes: .*rtn"),
        ((None, None, {}), "unknown recipe 'None'"),
        (("rtn", "w5a5", {}), "rtn has no bits 'w5a5'; allowed: w4a4, w8a8"),
        (("rtn", "", {}), "rtn has no bits ''"),
        (("rtn", 4, {}), "rtn has no bits 4; allowed"),
        (
            ("rtn", None, {"groups": 8}),
            "no setting 'groups'; its settings: adaln, group_size",
        ),
    ],
)
def test_bad_names_say_what_is_allowed(arguments, message):
    with pytest.raises(BadArgument, match=message):
        Recipe.resolve(*arguments)


def test_a_file_there_and_back_and_arguments_override_it(tmp_path):
    path = tmp_path / "mine.json"
    recipe = Recipe.make("rtn", "w8a8", {"group_size": 16, "adaln": "keep"})
    path.write_text(json.dumps(recipe.to_dict()))
    assert Recipe.resolve(path, None, {}) == recipe
    changed = Recipe.resolve(str(path), "w2", {"group_size": 32})
    assert changed == Recipe.make("rtn", "w2a16", {"group_size": 32, "adaln": "keep"})


GOOD = {"method": "rtn", "bits": "w8a8", "settings": {}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "cannot read the recipe file .*mine.json"),
        ("[" * 100_000, "cannot read the recipe file"),
        ("[]", "must hold exactly the keys method, bits, settings"),
        (json.dumps({**GOOD, "note": 1}), "must hold exactly the keys"),
        (json.dumps({**GOOD, "bits": 4}), "bits must be a str, got 4"),
        (json.dumps({**GOOD, "settings": []}), r"settings must be a dict, got \[\]"),
        (json.dumps({**GOOD, "method": "x"}), "unknown recipe 'x'"),
        (json.dumps({**GOOD, "settings": {"x": 1}}), "no setting 'x'"),
    ],
)
def test_bad_files_are_named(tmp_path, content, message):
    path = tmp_path / "mine.json"
    path.write_text(content)
    with pytest.raises(BadArgument, match=message):
        Recipe.resolve(path, None, {})


def test_a_missing_file_and_one_that_is_no_text(tmp_path):
    with pytest.raises(BadArgument, match="cannot read the recipe file"):
        Recipe.resolve(tmp_path / "none.json", None, {})
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadArgument, match="cannot read the recipe file"):
        Recipe.resolve(tmp_path / "binary.json", None, {})


def test_one_recipe_is_made_without_importing_the_other_methods():
    script = (
        "import sys; from fewbit.engine.recipe import Recipe; Recipe.make('rtn', None, {});"
        "print(*(name for name in sys.modules if name.startswith('fewbit.methods.')))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert set(run.stdout.split()) == {
        "fewbit.methods.method",
        "fewbit.methods.rtn",
        "fewbit.methods.settings",
    }


def test_a_recipe_whose_file_is_called_otherwise_is_found():
    assert registry.find("methods", "METHOD.summary", rtn.METHOD.summary) is rtn
    assert registry.find("methods", "METHOD.name", "method") is None
