import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.torch import load_file, save_file

import fewbit
from fewbit.cli import main

WEIGHTS = Path("tiny/transformer/diffusion_pytorch_model.safetensors")
VERBS = ("quantize", "generate", "evaluate", "compare", "bench", "inspect", "recipes", "doctor")
VERBS += ("export", "push")


@pytest.fixture(autouse=True)
def demos(monkeypatch):
    monkeypatch.setattr("fewbit.demo.names", lambda: ["shapes"])


def fewbit_says(*arguments: str) -> Result:
    """The outcome of a command that must not break down."""
    result = CliRunner().invoke(main, arguments)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def printed(*arguments: str) -> str:
    result = fewbit_says(*arguments)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def files() -> dict[str, int]:
    """What lies in the working folder, with the time of its last change."""
    return {str(file): file.stat().st_mtime_ns for file in Path().rglob("*")}


def refuses(*arguments: str) -> str:
    """One sentence, exit code 2, nothing printed, nothing written."""
    before = files()
    result = fewbit_says(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert files() == before
    *plan, sentence = result.stderr.splitlines()
    assert not any(line.startswith("error") or "Traceback" in line for line in plan)
    assert sentence.startswith("error: ")
    return sentence


def test_progress_is_that_of_the_whole_job(pipeline_folder, monkeypatch):
    monkeypatch.setattr("fewbit.progress.QUIET_SECONDS", 0)
    monkeypatch.setattr("fewbit.progress.LINE_SECONDS", 0)
    words = ("tiny", "--recipe", "hq-dit", "--set", "gptq=false", "--samples", "8")
    result = fewbit_says("quantize", *words, "--output", "out")
    lines = [line for line in result.stderr.splitlines() if line.startswith("hq-dit:w4a4, ")]
    phases = [line.removeprefix("hq-dit:w4a4, ").partition(":")[0] for line in lines]
    assert list(dict.fromkeys(phases)) == ["calibration", "blocks", "measuring", "saving"]
    assert phases.count("calibration") > 40  # once for each of the scheduler's steps
    assert all(line.endswith(" left") for line in lines[1:-1])
    assert " saving: 1/1 in " in lines[-1]


def test_help_waits_for_nothing_heavy():
    code = f"""
import sys
from fewbit.cli import main
for words in [["--help"], *([verb, "--help"] for verb in {VERBS})]:
    try:
        main(words)
    except SystemExit as end:
        assert end.code == 0, words
heavy = {{"torch", "numpy", "diffusers", "transformers", "PIL"}} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for verb in VERBS:
        assert f"Usage: -c {verb} " in done.stdout


@pytest.mark.parametrize("verb", VERBS)
def test_help_fits_eighty_columns(verb):
    assert max(map(len, printed(verb, "--help").splitlines())) <= 80


def test_without_a_name_the_recipe_is_best_and_balanced():
    plan = printed("quantize", "shapes", "--dry-run")
    assert "best:w4a8" in plan
    assert "a budget of 4.50 bits a weight" in plan
    plan = printed("quantize", "shapes", "--dry-run", "--bits", "w3a8")
    assert "best:w3a8" in plan
    assert "budget" not in plan


def test_a_budget_is_given_in_megabytes_or_bits():
    plan = printed("quantize", "shapes", "--dry-run", "--size", "9MB")
    assert "9.0 MB in all" in plan
    assert max(map(len, plan.splitlines())) <= 80
    assert "3.30 bits" in printed("quantize", "shapes", "--dry-run", "--bits-per-weight", "3.3")


def test_a_real_process_refuses_in_one_line(tmp_path):
    command = [sys.executable, "-m", "fewbit", "generate", "nowhere"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: Missing option '--output'. Try `python -m fewbit generate --help`.\n"
    )
    assert not list(tmp_path.iterdir())


def test_quantize_writes_a_folder_that_stock_diffusers_loads(pipeline_folder):
    text = printed("quantize", "tiny", "--recipe", "rtn", "--output", "small", "--seed", "3")
    assert text.startswith("dit quantized with rtn:w4a4")
    assert text.endswith("written to small\n")
    assert max(map(len, text.splitlines())) <= 80
    recipe = json.loads(Path("small/fewbit_recipe.json").read_text())
    report = json.loads(Path("small/fewbit_report.json").read_text())
    assert recipe["bits"] == "w4a4"
    assert report["recipe"] == recipe
    assert report["seed"] == 3
    from diffusers import DiTPipeline

    assert DiTPipeline.from_pretrained("small").transformer.fewbit.recipe == recipe


def test_quantize_as_json_prints_the_report_and_nothing_else(pipeline_folder):
    words = ["--recipe", "rtn", "--bits", "w2", "--set", "group_size=8", "--json"]
    report = json.loads(printed("quantize", "tiny", *words, "--output", "small"))
    assert report == json.loads(Path("small/fewbit_report.json").read_text())
    assert report["recipe"]["bits"] == "w2a16"
    assert report["recipe"]["settings"]["group_size"] == 8


def test_bits_after_a_colon_and_what_short_bits_were_taken_as(pipeline_folder):
    result = fewbit_says("quantize", "tiny", "--recipe", "rtn:W4", "--output", "small")
    assert result.exit_code == 0
    warning = "warning: rtn takes bits 'W4' as w4a16: weights only; with inputs: w4a4, w4a8, w4a6"
    assert [line for line in result.stderr.splitlines() if "warning" in line] == [warning]
    assert "quantized with rtn:w4a16" in result.stdout


def test_a_recipe_file_does_what_the_recipe_did(pipeline_folder):
    words = ["--recipe", "rtn", "--bits", "w6a6", "--set", "adaln=keep"]
    printed("quantize", "tiny", *words, "--output", "first")
    printed("quantize", "tiny", "--recipe", "first/fewbit_recipe.json", "--output", "second")
    first, second = (
        load_file(Path(name) / WEIGHTS.relative_to("tiny")) for name in ("first", "second")
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_export_writes_a_file_for_another_runtime(pipeline_folder):
    printed("quantize", "tiny", "--recipe", "rtn:w8a8", "--output", "small", "--quiet")
    said = printed("export", "small", "--format", "comfy-int8", "-o", "x.safetensors")
    assert said.startswith("x.safetensors: comfy-int8, ")
    again = fewbit.load("x.safetensors", like=Path("tiny/transformer"))
    assert torch.equal(
        again.transformer_blocks[0].attn1.to_q.codes,
        fewbit.load("small").transformer.transformer_blocks[0].attn1.to_q.codes,
    )
    words = ("export", "small", "--format", "gguf-q4_0", "-o", "x.gguf")
    assert "portable:gguf-q4_0" in refuses(*words)


def test_quiet_is_silent(pipeline_folder):
    result = fewbit_says("quantize", "tiny", "--recipe", "rtn", "--output", "small", "--quiet")
    assert (result.exit_code, result.output) == (0, "")


def test_dry_run_prints_the_plan_and_writes_nothing(pipeline_folder):
    before = files()
    plan = printed("quantize", "tiny", "--recipe", "rtn", "--bits", "w8a8", "--dry-run")
    assert plan.startswith("plan: rtn:w8a8 for dit, 2 blocks")
    words = ["--recipe", "rtn", "--dry-run", "--json", "--output", "small"]
    data = json.loads(printed("quantize", "tiny", *words))
    layer = data["layers"]["transformer_blocks.0.attn1.to_q"]
    assert layer == {"weight": "e2m1/row/fp32", "activation": "e2m1/row/fp32"}
    assert data["bytes"] < data["bytes_before"]
    assert data["seconds"] > 0
    assert data["peak_bytes"] > 10**8
    assert files() == before


def test_overwrite_replaces_what_was_there(pipeline_folder):
    Path("small").mkdir()
    Path("small/stale").write_text("")
    words = ["quantize", "tiny", "--recipe", "rtn", "--output", "small"]
    assert "small already holds something" in refuses(*words)
    printed(*words, "--overwrite")
    assert not Path("small/stale").exists()
    assert Path("small/model_index.json").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("nowhere --recipe rtn --output out", "nowhere does not exist; a model is a folder"),
        ("tiny/scheduler --recipe rtn --output out", "tiny/scheduler holds no transformer"),
        ("tiny/model_index.json --recipe rtn --output out", "a checkpoint ends in one of"),
        ("tiny --recipe nope --output out", "unknown recipe 'nope'; recipes: "),
        ("tiny --recipe no.json --output out", "cannot read the recipe file no.json"),
        ("tiny --recipe rtn --bits w9a9 --output out", "no bits 'w9a9'; allowed: w4a4, w8a8"),
        ("tiny --recipe rtn --set depth=3 --output out", "no setting 'depth'; its settings: "),
        (
            "tiny --recipe rtn --set adaln=no --output out",
            "adaln cannot be 'no'; allowed: same, int8",
        ),
        ("tiny --recipe rtn --set adaln --output out", "--set takes NAME=VALUE, got 'adaln'"),
        ("tiny --recipe rtn --set group_size=7 --output out", "transformer_blocks.0."),
        (
            "tiny --recipe hq-dit --call hight=3 --output out",
            "DiTPipeline takes no hight; it takes",
        ),
        (
            "tiny --recipe hq-dit --call height --output out",
            "--call takes NAME=VALUE, got 'height'",
        ),
        ("tiny --recipe rtn --samples 8 --output out", "looks at no data"),
        ("tiny --recipe rtn", "Missing option '--output' (or '--dry-run')"),
        ("tiny --size 9kB --output out", "--size takes megabytes such as 300MB or 1.5GB, got"),
        ("tiny --recipe rtn --size 9 --output out", "rtn has no setting 'size'"),
        ("tiny --recipe rtn --output .", "holds something"),
        ("tiny --recipe rtn --output . --overwrite", ". is the folder you are in or above it"),
        ("tiny --recipe rtn --output tiny", "tiny already holds something; choose another"),
        ("tiny --recipe rtn --output tiny/model_index.json", "is a file; choose a folder"),
        ("tiny --recipe rtn --output tiny/model_index.json/x", "cannot write to tiny/model_index"),
        ("tiny --recipe rtn --output out --device tpu", "'tpu' is not one of 'auto', 'cpu'"),
    ],
)
def test_quantize_refuses(pipeline_folder, words, sentence):
    assert sentence in refuses("quantize", *words.split())


def test_the_place_is_looked_at_before_the_model(pipeline_folder):
    Path("tiny/model_index.json").unlink()
    words = ["--recipe", "rtn", "--output", "tiny"]
    assert "tiny already holds something" in refuses("quantize", "tiny", *words)


def test_an_unusable_weight_is_named(pipeline_folder):
    tensors = load_file(WEIGHTS)
    tensors["transformer_blocks.1.attn1.to_k.weight"][0, 0] = torch.nan
    save_file(tensors, WEIGHTS)
    sentence = refuses("quantize", "tiny", "--recipe", "rtn", "--output", "out")
    assert "transformer_blocks.1.attn1.to_k holds NaN" in sentence


def test_a_truncated_file_is_named(pipeline_folder):
    WEIGHTS.write_bytes(WEIGHTS.read_bytes()[:-1])
    for verb in (["inspect"], ["quantize", "--recipe", "rtn", "--output", "out"]):
        assert f"{WEIGHTS} is truncated" in refuses(*verb, "tiny")


def test_a_quantized_model_is_not_quantized_again(pipeline_folder):
    printed("quantize", "tiny", "--recipe", "rtn", "--output", "small")
    sentence = refuses("quantize", "small", "--recipe", "rtn", "--output", "smaller")
    assert "already quantized" in sentence


def test_interruption_leaves_nothing_and_exits_with_130(pipeline_folder, monkeypatch):
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fewbit, "quantize", interrupt)
    before = files()
    result = fewbit_says("quantize", "tiny", "--recipe", "rtn", "--output", "out")
    assert (result.exit_code, result.output) == (130, "stopped\n")
    assert files() == before


def test_a_bug_keeps_its_traceback_and_a_bad_path_does_not(pipeline_folder, monkeypatch):
    def fail_with(error: Exception) -> None:
        def fail(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr(fewbit, "inspect", fail)

    fail_with(RuntimeError("a bug"))
    with pytest.raises(RuntimeError, match="a bug"):
        fewbit_says("inspect", "tiny")
    fail_with(PermissionError(13, "Permission denied", "somewhere"))
    assert refuses("inspect", "tiny") == "error: cannot use somewhere: Permission denied"


def test_inspect_shows_roles_first_then_layers(pipeline_folder):
    printed("quantize", "tiny", "--recipe", "rtn", "--output", "small")
    plain, packed = printed("inspect", "tiny"), printed("inspect", "small", "--layers")
    assert "quantizable" in plain
    assert max(map(len, plain.splitlines())) <= 80
    assert "rtn:w4a4" in packed
    assert "transformer_blocks.1.attn1.to_v" in packed
    assert "transformer_blocks.1.attn1.to_v" not in plain
    data = json.loads(printed("inspect", "small", "--json"))
    statuses = {layer["name"]: layer["status"] for layer in data["layers"]}
    assert statuses["transformer_blocks.0.attn1.to_q"] == "quantized"
    assert statuses["proj_out_1"] == "keep"


def test_inspect_reads_headers_only(pipeline_folder, monkeypatch):
    monkeypatch.setattr("fewbit.pipelines.opening.open_model", None)
    assert "to_q" not in printed("inspect", "tiny")


def test_no_picture_is_written_of_a_model_that_gives_nan(pipeline_folder):
    pipe = pytest.importorskip("diffusers").DiTPipeline.from_pretrained("tiny")
    pipe.transformer.transformer_blocks[0].ff.net[2].bias.data[3] = torch.nan
    pipe.save_pretrained("broken")
    said = refuses("generate", "broken", "--output", "nan.png", "--label", "1", "--steps", "2")
    assert "no picture of broken: the output of transformer.transformer_blocks.0 is not" in said
    assert not Path("nan.png").exists()


def test_generate_one_picture_that_says_how_it_was_made(pipeline_folder):
    words = ["--label", "star", "--seed", "9", "--steps", "2", "--guidance", "3"]
    printed("generate", "tiny", "--output", "star.png", *words)
    with Image.open("star.png") as picture:
        assert picture.size == (16, 16)
        assert picture.info == {
            "seed": "9",
            "class_labels": "2",
            "num_inference_steps": "2",
            "guidance_scale": "3.0",
            "recipe": "full precision",
            "pipeline": "DiTPipeline",
            "fewbit": fewbit.__version__,
            "model": "tiny",
        }


def test_generate_a_file_for_each_seed_or_a_grid_of_the_same(pipeline_folder):
    text = printed(
        "generate", "tiny", "--output", "a.png", "-n", "2", "--seed", "5", "--steps", "2"
    )
    assert text == "written to a-5.png\nwritten to a-6.png\n"
    printed(
        "generate", "tiny", "--output", "g.png", "-n", "2", "--seed", "5", "--steps", "2", "--grid"
    )
    with Image.open("g.png") as sheet, Image.open("a-6.png") as second:
        assert sheet.crop((24, 4, 40, 20)).tobytes() == second.tobytes()
        assert sheet.info["seed"] == "5, 6"


def test_generate_compares_two_models_in_two_rows(pipeline_folder):
    printed("quantize", "tiny", "--recipe", "rtn", "--output", "small")
    words = ["--output", "two.png", "-n", "2", "--steps", "2", "--compare", "tiny"]
    words += ["--label", "star"]  # the names of the classes have travelled with the model
    text = printed("generate", "small", *words)
    assert "PSNR to tiny: " in text
    with Image.open("two.png") as sheet:
        assert sheet.info["recipe"] == "full precision, full precision, rtn:w4a4, rtn:w4a4"
        assert sheet.info["model"] == "tiny, tiny, small, small"
        assert sheet.info["class_labels"] == "2"
        assert sheet.height == 4 + 2 * 20


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("tiny --output a.jpg", "a.jpg must end in .png"),
        ("tiny --output tiny/scheduler/scheduler_config.json/a.png", "cannot write to"),
        ("tiny --output a.png --prompt cat", "reads no prompts"),
        ("tiny --output a.png --label 17", "no class is called '17'"),
        ("tiny --output a.png --steps 0", "steps must be a positive number"),
        ("tiny --output a.png --guidance nan", "guidance must be a number from 0 on, got nan"),
        ("tiny --output a.png -n 0", "0 is not in the range x>=1"),
        ("tiny/transformer --output a.png", "a VAE and a scheduler"),
        ("nowhere --output a.png", "nowhere does not exist"),
    ],
)
def test_generate_refuses(pipeline_folder, words, sentence):
    assert sentence in refuses("generate", *words.split())


def test_recipes_lists_names_bits_and_settings():
    text = printed("recipes")
    assert "rtn" in text
    assert "w4a4, w8a8" in text
    assert max(map(len, text.splitlines())) <= 80
    listed = {recipe["name"]: recipe for recipe in json.loads(printed("recipes", "--json"))}
    assert listed["rtn"]["bits"][0] == "w4a4"
    assert listed["rtn"]["calibrated"] is False


@pytest.mark.parametrize("name", [recipe.name for recipe in fewbit.recipes()])
def test_a_recipe_is_told_in_lines_that_a_terminal_holds(name):
    lines = printed("recipes", name).splitlines()
    assert lines[0].startswith(f"{name}  ")
    assert max(map(len, lines)) <= 80


def test_doctor_says_what_there_is_and_which_path_is_taken():
    text = printed("doctor")
    assert max(map(len, text.splitlines())) <= 80
    found = json.loads(printed("doctor", "--json"))
    assert found["versions"]["torch"] == torch.__version__
    assert found["diffusers"] == "fewbit is registered"
    paths = {path["name"]: path for path in found["paths"]}
    assert list(paths) == ["cuda", "native", "torch", "reference"]
    assert any(path["taken"] for path in paths.values())
    assert all(path["why"] for path in paths.values())
    assert found["threads"] == torch.get_num_threads()
