"""Every example runs, on a demo or a tiny model."""

import pytest
from documents import ROOT, script

pytest.importorskip("diffusers")

ARGUMENTS = {
    "quantize_a_pipeline": ["--pictures", "2", "--steps", "2", "--output"],
    "own_model": None,
    "compare_recipes": ["--recipes", "rtn", "--count", "2", "--steps", "2", "--output"],
    "load_with_diffusers": ["--steps", "2", "--output"],
    "lora_on_quantized": ["--steps", "2", "--output"],
}


def test_every_example_is_run_and_listed():
    found = {path.stem for path in (ROOT / "examples").glob("*.py")}
    assert found == ARGUMENTS.keys()
    listed = (ROOT / "examples" / "README.md").read_text()
    assert all(f"examples/{name}.py" in listed for name in found)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_an_example_runs(name, tmp_path, capsys, one_thread):
    if name == "lora_on_quantized":
        pytest.importorskip("peft")
    options = ARGUMENTS[name]
    script(f"examples/{name}.py")["main"]([] if options is None else [*options, str(tmp_path)])
    assert capsys.readouterr().out
    if name == "compare_recipes":
        assert (tmp_path / "compare.png").exists()
