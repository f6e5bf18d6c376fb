"""The Python code in the documents runs as it stands there."""

import pytest
from documents import ROOT, blocks, name

from fewbit.formats import FORMATS

pytest.importorskip("diffusers")

README, USAGE, ADDING = ROOT / "README.md", ROOT / "docs" / "usage.md", ROOT / "docs" / "adding.md"
FORMATS_PAGE = ROOT / "docs" / "formats.md"
FEWER_SAMPLES = 'preset="balanced"', "preset='balanced', calibration=fewbit.Calibration(8, steps=4)"
CODE = [(path, number) for path in (README, USAGE, ADDING, FORMATS_PAGE)
        for number in range(len(blocks(path, "python")))]  # fmt: skip


@pytest.fixture(autouse=True)
def formats_as_before():
    """A document may make a format known; other tests know nothing of it."""
    before = dict(FORMATS)
    yield
    FORMATS.clear()
    FORMATS.update(before)


@pytest.mark.parametrize(
    ("path", "number"), CODE, ids=[f"{name(path)}: {number}" for path, number in CODE]
)
def test_code_runs(path, number, tmp_path, monkeypatch, one_thread):
    monkeypatch.chdir(tmp_path)
    code = blocks(path, "python")[number].replace(*FEWER_SAMPLES)
    exec(compile(code, f"{name(path)}, block {number}", "exec"), {"__name__": "document"})
