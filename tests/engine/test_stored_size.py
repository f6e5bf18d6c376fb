"""One size: bytes as saved and loaded, and what they are made of."""

import pytest
import tiny_transformers as tiny
import torch
from torch import nn

import fewbit
from fewbit.engine.plan import make_plan
from fewbit.engine.recipe import Recipe
from fewbit.engine.stored_size import Size, Stored, size_of, smaller, told

WHOLE = torch.zeros(10)


def holding(*tensors: torch.Tensor, persistent: bool = True) -> nn.Module:
    model = nn.Module()
    for number, tensor in enumerate(tensors):
        model.register_buffer(f"b{number}", tensor, persistent)
    return model


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        ((WHOLE,), 40),
        ((WHOLE, WHOLE), 40),
        ((WHOLE, WHOLE.clone()), 80),  # of full precision equals stay: diffusers saves them so
        ((torch.zeros(4, device="meta"), torch.zeros(4, device="meta")), 32),
        ((torch.zeros(0),), 0),
    ],
)
def test_every_tensor_once(tensors, expected):
    assert size_of(holding(*tensors)) == Size(other=expected)


def test_a_shared_module_counts_once_and_what_is_not_saved_not_at_all():
    linear = nn.Linear(4, 4)
    assert size_of(nn.ModuleList([linear, linear])) == Size(kept=4 * 20)
    assert size_of(holding(WHOLE, persistent=False)) == Size()


def test_equal_tensors_count_once_in_what_it_will_be():
    model = holding(WHOLE, WHOLE.clone(), torch.ones(10))
    stored = Stored.of(model)
    assert (stored.bytes, stored.bf16_bytes) == (120, 60)
    assert stored.quantized([], {}) == Size(other=80)


def twice() -> nn.Module:
    """Both blocks hold the same embedders, as those of DiT do."""
    model = tiny.make()
    first, second = model.transformer_blocks
    second.norm1.emb.load_state_dict(first.norm1.emb.state_dict())
    return model


@pytest.mark.parametrize("bits", ["w4a4", "w8a8"])
def test_plan_report_inspection_card_and_page_say_the_same(bits, tmp_path):
    model = twice()
    plan = make_plan(model, Recipe.make("rtn", bits, {}), None, allow_unknown=False)
    report = fewbit.quantize(model, "rtn", bits=bits, progress=False)
    fewbit.save(model, tmp_path / "it", report=report)
    size = report.size
    assert size == plan.size_after == size_of(model)
    assert size == fewbit.inspect(model).size == fewbit.inspect(tmp_path / "it").size
    assert size == size_of(fewbit.load(tmp_path / "it"))
    assert report.bf16_bytes == plan.stored.bf16_bytes
    for line in told(size, report.bf16_bytes):
        assert line in str(report)
        assert line in str(plan)
    assert str(size) in (tmp_path / "it" / "README.md").read_text()
    assert f"{report.smaller:.2f}" in (tmp_path / "it" / "fewbit_report.html").read_text()


def test_it_is_what_lies_on_disk(tmp_path):
    tiny.quantized().save_pretrained(tmp_path)
    path = tiny.weights(tmp_path)
    with path.open("rb") as file:
        header = 8 + int.from_bytes(file.read(8), "little")
    inspected = fewbit.inspect(tmp_path)
    assert inspected.size.bytes == path.stat().st_size - header
    assert inspected.size.packed == sum(
        layer.bytes for layer in inspected.layers if layer.status == "quantized"
    )


def test_the_words():
    size = Size(packed=2_800_000, kept=700_000, other=800_000)
    assert str(size) == "4.3 MB saved and loaded: packed 2.8, kept layers 0.7, other 0.8"
    assert str(Size(kept=18_400_000)) == "18.4 MB saved and loaded: layers 18.4, other 0.0"
    assert smaller(size.bytes, 8_600_000) == 2.0
    assert told(size, 8_600_000)[1] == "  2.00x smaller than in bfloat16 (8.6 MB)"
    large = Size(12_000_000_000, 9_000_000_000, 9_000_000_000)
    assert all(len(line) <= 80 for line in told(large, 60_000_000_000))
