"""What the doctor says of a model's layers."""

from typing import Any

import pytest

import fewbit
from fewbit.doctor import examine, examine_layers
from fewbit.errors import BadArgument, BadModel
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
    assert str(found).count("\n") == 3  # two kinds of layers, two lines each


def test_a_model_that_is_not_quantized_has_no_paths(small: Any) -> None:
    with pytest.raises(BadModel, match="not quantized"):
        examine_layers(small())


def test_a_backend_that_is_forced_in_vain_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "fast")
    with pytest.raises(BadArgument, match="'fast'; allowed"):
        examine()
