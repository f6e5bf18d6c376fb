import math
from dataclasses import replace

import torch
from pages import sound

from fewbit.engine.page import write_page
from fewbit.engine.report import LayerReport, Report
from fewbit.engine.stored_size import Size

LAYER = LayerReport(
    "blocks.0.to_q", "q", "e2m1/row/fp32", "int8/row/fp32", 4.5, 4000, 500, 20.0, 18.0, 17.0, 15.5
)
REPORT = Report(
    {"method": "rtn", "bits": "w4a8", "settings": {}}, "dit", "ab" * 32, 3, "0.1.0",
    layers=[LAYER, replace(LAYER, name="blocks.1.fc", role="fc1", weight_db=math.inf,
                           output_db=None, activation=None)],
    bytes_before=8_000_000, bf16_bytes=4_000_000, size=Size(2_000_000), seconds={"solve": 1.0},
    warnings=["look <here>"],
)  # fmt: skip


def test_it_says_what_was_saved_and_what_each_layer_lost(tmp_path):
    write_page(tmp_path / "page.html", REPORT)
    page = sound((tmp_path / "page.html").read_text())
    words = "".join(page.words)
    assert "dit quantized with rtn:w4a8" in words
    assert "2.00× smaller, saved and loaded" in words
    assert "look <here>" in words
    assert "fewbit quantize MODEL --recipe fewbit_recipe.json --seed 3" in words
    assert torch.__version__ in words
    assert all(layer.name in words for layer in REPORT.layers)
    orders = [cell["data-order"] for cell in page.all("td") if "data-order" in cell]
    assert {"17", "1.5", "Infinity"} <= set(orders)


def test_nothing_quantized_is_no_trouble(tmp_path):
    write_page(tmp_path / "page.html", replace(REPORT, layers=[], size=Size()))
    sound((tmp_path / "page.html").read_text())
