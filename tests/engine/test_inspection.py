"""inspect: of a model in memory and of its folder, the same; no tensor of a folder is read."""

import os

import pytest
import small_models as small
import tiny_transformers as tiny

import fewbit
from fewbit.storage import tensors


@pytest.mark.parametrize("name", tiny.NAMES)
def test_a_folder_says_what_the_model_says(name, tmp_path, monkeypatch):
    model = tiny.quantized(name)
    model.save_pretrained(tmp_path)
    monkeypatch.setattr(tensors, "mapped", None)  # whoever reads a tensor fails
    from_folder, from_model = fewbit.inspect(tmp_path), fewbit.inspect(model)
    assert from_folder == from_model
    assert from_folder.recipe == model.fewbit.recipe
    assert str(from_folder) == str(from_model)


def test_the_data_may_even_be_missing(tmp_path):
    """Only the header counts: the same answer over a hole of the right size."""
    tiny.quantized().save_pretrained(tmp_path)
    before = fewbit.inspect(tmp_path)
    path = tiny.weights(tmp_path)
    size = path.stat().st_size
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
    os.truncate(path, 8 + length)
    os.truncate(path, size)
    assert fewbit.inspect(tmp_path) == before


def test_pipelines_plain_models_and_statuses(tmp_path):
    pipe = tiny.pipeline(tiny.quantized(bits="w8a8"))
    pipe.save_pretrained(tmp_path / "pipe")
    assert fewbit.inspect(tmp_path / "pipe") == fewbit.inspect(pipe)
    tiny.make().save_pretrained(tmp_path / "plain")
    plain = fewbit.inspect(tmp_path / "plain")
    assert plain.recipe is None
    assert {layer.status for layer in plain.layers} == {"quantizable", "keep"}
    packed = fewbit.inspect(pipe)
    assert {layer.status for layer in packed.layers} == {"quantized", "keep"}
    assert packed.bytes < plain.bytes


def test_columns_are_as_wide_as_what_stands_in_them():
    model = tiny.make()
    rows = [small.arguments(tiny.DIT, 1, seed) for seed in range(4)]
    fewbit.quantize(model, "hq-dit", calibration=rows, progress=False)
    lines = str(fewbit.inspect(model)).splitlines()
    heading, *rows = lines[[line.startswith("  role") for line in lines].index(True) : -1]
    assert any("smooth > hadamard" in row for row in rows)
    assert {len(row) for row in rows} == {len(heading)}
    for column in (" role", " status", " weight", " input"):
        place = heading.index(column)
        assert all(row[place] == " " != row[place + 1] for row in rows)
