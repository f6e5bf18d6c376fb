"""The house: lower floors never import upper ones, and the rest of what is promised of the tree."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "fewbit"
FILES = sorted(SOURCE.rglob("*.py"))

# From the ground up. A module imports its own package and what lies on a lower floor.
FLOORS = [
    {"printable"},
    {
        "errors",
        "version",
        "decibel",
        "progress",
        "provenance",
        "memory",
        "straight_through",
        "offload",
        "registration",
    },
    {"regular_file"},
    {"files", "strict_json", "registry", "fingerprint", "packed_weight", "adapters"},
    {"entries"},
    {"formats", "models", "header", "images", "report"},
    {"kernels"},
    {
        "transforms",
        "rounding",
        "activations",
        "calibration",
        "tensors",
        "quick_attention",
        "modulation",
        "activation_function",
    },
    {"input_stage"},
    {"linear", "attention"},
    {"methods", "blueprint", "quick_blocks"},
    {"recipe", "dequantization", "output_error", "generate"},
    {"plan", "checkpoint", "bounds", "diffusers_adapters", "flux_adapters", "peft_plugin"},
    {"artefact"},
    {"folder", "card"},
    {"diffusers_plugin", "inspection", "resume", "identity", "originals"},
    {"engine", "api"},
    {"fewbit"},
    {"demo"},
    {"source", "doctor", "evaluate"},
    {"bench"},
    {"cli", "__main__"},
]
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}


def unit(file: Path) -> str:
    """The part of the house a file belongs to."""
    first = file.relative_to(SOURCE).with_suffix("").parts[0]
    return "fewbit" if first == "__init__" else first


def imports(file: Path) -> Iterator[str]:
    """Full names of what a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports by dots"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def units_imported(file: Path) -> set[str]:
    """`from fewbit import x` is of the part x, or of the top if there is no such part."""
    names = [name.split(".") for name in imports(file) if name.split(".")[0] == "fewbit"]
    parts = [name[1] if len(name) > 1 else "fewbit" for name in names]
    exists = {part: (SOURCE / part).is_dir() or (SOURCE / f"{part}.py").exists() for part in parts}
    return {part if exists[part] else "fewbit" for part in parts}


def relative(file: Path) -> str:
    return str(file.relative_to(SOURCE))


def test_every_module_has_its_floor():
    homeless = {unit(file) for file in FILES} - FLOOR.keys()
    assert not homeless, f"say in {Path(__file__).name} on which floor these stand: {homeless}"
    assert sum(map(len, FLOORS)) == len(FLOOR)


@pytest.mark.parametrize("file", FILES, ids=relative)
def test_lower_floors_never_import_upper_ones(file):
    own = unit(file)
    upper = {name for name in units_imported(file) - {own} if FLOOR[name] >= FLOOR[own]}
    assert not upper or own == "fewbit"  # the top only names what it hands out


def test_two_methods_never_import_each_other():
    for file in SOURCE.glob("methods/*.py"):
        others = {name for name in imports(file) if name.startswith("fewbit.methods")}
        assert all(name.startswith("fewbit.methods.contract") for name in others), file


def test_models_know_nothing_of_quantization():
    for file in SOURCE.glob("models/*.py"):
        assert units_imported(file) <= {"models", "errors", "files", "progress", "fewbit"}, file


@pytest.mark.parametrize("file", FILES, ids=relative)
def test_every_module_says_what_it_is(file):
    assert ast.get_docstring(ast.parse(file.read_text()))


def imported_by(code: str) -> set[str]:
    script = f"{code}; import sys; print(*sorted(sys.modules))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in run.stdout.split()}


HEAVY = {"torch", "diffusers", "numpy", "transformers", "safetensors", "PIL"}


def test_importing_fewbit_imports_nothing_heavy():
    assert not imported_by("import fewbit") & HEAVY


def test_quantizing_any_module_never_imports_diffusers():
    assert not imported_by("from fewbit import quantize, recipes, load, inspect; recipes()") & {
        "diffusers",
        "transformers",
        "PIL",
    }


def test_all_public_names_are_there_and_documented():
    import fewbit

    assert set(fewbit._HOMES) | {"__version__"} == set(fewbit.__all__)
    assert all(getattr(fewbit, name).__doc__ for name in fewbit._HOMES)
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        _ = fewbit.quantise


def test_no_absolute_path_of_this_machine_is_in_a_tracked_file():
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    pattern = re.compile(r"(?<![\w.])/(?:home|root|Users|work|tmp|mnt|opt|var)/\w")
    for name in filter(None, listed.stdout.split("\0")):
        try:
            text = (ROOT / name).read_text()
        except (UnicodeDecodeError, FileNotFoundError, IsADirectoryError):
            continue
        found = pattern.search(text)
        assert not found, f"{name}: {text[found.start() : found.start() + 60]!r}"
