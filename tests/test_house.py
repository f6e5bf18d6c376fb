"""The house: lower floors never import upper ones, and the rest of what is promised of the tree."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "fewbit"
FILES = sorted(SOURCE.rglob("*.py"))

# From the ground up. A file imports its own room and rooms on lower floors.
FLOORS = [
    {"ground"},
    {"formats", "models", "pages"},
    {"kernels", "demo"},
    {"transforms", "activations", "rounding"},
    {"layers"},
    {"storage"},
    {"pipelines"},
    {"calibration"},
    {"methods"},
    {"engine"},
    {"diffusers"},
    {"top"},
    {"judge", "bench"},
    {"cli"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
GROUND = {"errors", "files", "progress", "registry", "version"}
TOP = {"api", "__init__"}
COMMAND = {"__main__"}  # what `python -m fewbit` runs


def room(file: Path, source: Path = SOURCE) -> str:
    """The folder of a file; the files that lie flat are on the ground, or hand out the rest."""
    first = file.relative_to(source).with_suffix("").parts[0]
    named = {"ground": GROUND, "top": TOP, "cli": COMMAND}
    return next((floor for floor, files in named.items() if first in files), first)


def imports(file: Path) -> Iterator[str]:
    """Full names of what a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports by dots"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def rooms_imported(file: Path, source: Path = SOURCE) -> set[str]:
    """`from fewbit import x` is of the room x, or of the top if there is no such room."""
    names = [name.split(".") for name in imports(file) if name.split(".")[0] == "fewbit"]
    parts = [name[1] if len(name) > 1 else "__init__" for name in names]
    there = {path.stem for path in source.iterdir()}
    return {room(source / (part if part in there else "__init__"), source) for part in parts}


def climbs(file: Path, source: Path = SOURCE) -> set[str]:
    """The rooms that a file must not import, but does."""
    own = room(file, source)
    return {name for name in rooms_imported(file, source) - {own} if FLOOR[name] >= FLOOR[own]}


def relative(file: Path) -> str:
    return str(file.relative_to(SOURCE))


def test_every_room_has_its_floor_and_few_files_lie_flat():
    homeless = {room(file) for file in FILES} - FLOOR.keys()
    assert not homeless, f"say in {Path(__file__).name} on which floor these stand: {homeless}"
    assert sum(map(len, FLOORS)) == len(FLOOR)
    assert {file.stem for file in SOURCE.glob("*.py")} <= GROUND | TOP | COMMAND
    assert len(GROUND | TOP | COMMAND) <= 8


@pytest.mark.parametrize("file", FILES, ids=relative)
def test_lower_floors_never_import_upper_ones(file):
    assert not climbs(file)


@pytest.mark.parametrize(
    "line",
    [
        "from fewbit.engine.recipe import Recipe",
        "import fewbit.methods.rtn",
        "def later():\n    from fewbit import api",
        "from fewbit import quantize",
    ],
)
def test_a_planted_violation_is_caught(tmp_path, line):
    for name in ("storage", "engine", "methods"):
        (tmp_path / name).mkdir()
    (tmp_path / "api.py").touch()
    planted = tmp_path / "storage" / "planted.py"
    planted.write_text(line)
    assert climbs(planted, tmp_path)
    planted.write_text("from fewbit.errors import BadFile")
    (tmp_path / "errors.py").touch()
    assert not climbs(planted, tmp_path)


def ring(files: list[Path]) -> list[str]:
    """Modules that import each other in a ring; none if there is no ring."""
    names = {module_name(file): file for file in files}
    graph = {
        name: {found for one in imports(file) if (found := _module(one, names)) and found != name}
        for name, file in names.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        found: list[str] = error.args[1]
        return found
    return []


def test_no_two_files_import_each_other_in_a_ring():
    assert not ring(FILES)


def module_name(file: Path) -> str:
    parts = ("fewbit", *file.relative_to(SOURCE).with_suffix("").parts)
    return ".".join(parts).removesuffix(".__init__")


def _module(name: str, names: dict[str, Path]) -> str | None:
    """The module that an imported name is, or is part of; a room's front is not looked behind."""
    module = name if name in names else name.rpartition(".")[0]
    return module if module in names and module != "fewbit" else None


def test_two_methods_never_import_each_other():
    for file in SOURCE.glob("methods/*.py"):
        others = {name for name in imports(file) if name.startswith("fewbit.methods")}
        shared = ("fewbit.methods.method", "fewbit.methods.settings")
        assert all(name.startswith(shared) for name in others), file


def test_only_formats_ask_what_kind_a_format_is():
    """A new kind of format would be forgotten there."""
    from fewbit.formats import Codebook, FormatChoice, Integer, Minifloat

    kinds = "|".join(one.__name__ for one in (Codebook, FormatChoice, Integer, Minifloat))
    asked = re.compile(rf"isinstance\([^)]*\b({kinds})\b")
    for file in FILES:
        assert room(file) == "formats" or not asked.search(file.read_text()), file


def test_models_know_nothing_of_quantization():
    for file in SOURCE.glob("models/**/*.py"):
        assert rooms_imported(file) <= {"models", "ground"}, file


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
