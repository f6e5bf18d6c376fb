"""What the doctor says of a model's layers."""

from typing import Any

import pytest

import fewbit
from fewbit.engine.doctor import LayerPath, LayerPaths, examine, examine_layers
from fewbit.errors import BadArgument
from fewbit.kernels.choose import VARIABLE


def test_every_layer_has_a_path_and_a_reason(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "torch")
    model = small()
    fewbit.quantize(model, "rtn", progress=False)
    found = examine_layers(model)
    paths = {layer.name: layer for layer in found.layers}
    query = paths["transformer_blocks.0.attn1.to_q"]
    assert (query.backend, query.path) == ("torch", "torch._int_mm")
    assert query.why == "FEWBIT_BACKEND says so"
    adaln = paths["transformer_blocks.0.norm1.linear"]
    assert adaln.path == "torch._int_mm on the input's 8-bit digits"
    assert str(found).count(" x ") == 2  # kinds of layers


def test_what_it_says_of_layers_fits_in_80_columns() -> None:
    names = [f"transformer_blocks.{block}.attn1.to_out.0" for block in range(28)]
    why = "cuda cannot: it computes on CUDA devices, not on cpu (no CUDA here)"
    path = "native avx512-vnni, integer products, weights stored in 8 bits"
    found = LayerPaths(
        tuple(
            LayerPath(name, "int8/row/fp32", "smooth > int8 t10", "native", path, why)
            for name in names
        )
    )
    lines = str(found).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("    28 x int8/row/fp32, input smooth > int8 t10: native")
    assert all(line.startswith(" " * 9) for line in lines[1:])
    assert lines[-1].endswith("and 25 more")
    assert " ".join(line[9:] for line in lines).startswith(
        f"int8/row/fp32, input smooth > int8 t10: native, {path} ({why})"
    )


def test_of_a_model_that_is_not_quantized_it_says_what_would_be_quick(
    small: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "torch")
    model = small()
    found = examine_layers(model, "rtn:w8a8")
    paths = {layer.name: layer for layer in found.layers}
    assert paths["transformer_blocks.0.attn1.to_q"].path == "torch._int_mm"
    assert paths["proj_out_2"].path == "high precision"
    fewbit.quantize(model, "rtn:w8a8", progress=False)
    now = {layer.name: layer for layer in examine_layers(model).layers}
    assert {name: one for name, one in paths.items() if name in now} == now
    assert "By rtn:w8a8" in str(found)
    assert max(map(len, str(found).splitlines())) <= 80


def test_a_recipe_that_is_none_is_refused(small: Any) -> None:
    with pytest.raises(BadArgument, match="unknown recipe 'best2'"):
        examine_layers(small(), "best2")


def test_a_backend_that_is_forced_in_vain_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "fast")
    with pytest.raises(BadArgument, match="'fast'; allowed"):
        examine()
