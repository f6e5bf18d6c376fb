"""The measurement on tiny networks: what takes part, what is compared, what is refused."""

import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import fewbit
from fewbit.bench import Result, bench, random_models
from fewbit.bench.arms import ARMS, PEERS, Arm, forced
from fewbit.bench.levels import LEVELS, ProductAlone
from fewbit.bench.onednn import OneDnnLinear
from fewbit.bench.peers.graph import Graph
from fewbit.bench.peers.layers import Layers
from fewbit.bench.peers.sdnq import sdnq
from fewbit.bench.random_models import grown, inputs_for, one_block, told_apart
from fewbit.calibration.flat import Flat
from fewbit.calibration.tree import tensors
from fewbit.cli import main
from fewbit.engine.decibel import sqnr
from fewbit.errors import BadArgument, BadModel, BrokenFile
from fewbit.kernels.choose import VARIABLE

pytest.importorskip("diffusers")
OURS = "ours torch"


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    """The full-size architectures in small."""
    for name, (cls, config) in random_models.CONFIGS.items():
        small = {**config, "num_attention_heads": 2, "attention_head_dim": 32, "sample_size": 8}
        small |= {"caption_channels": 32, "cross_attention_dim": 64} if "pixart" in name else {}
        monkeypatch.setitem(random_models.CONFIGS, name, (cls, small))
    monkeypatch.setattr("fewbit.bench.subject.BLOCKS", 3)
    monkeypatch.setattr("fewbit.bench.levels.STEPS", 2)


def rows(result: Result) -> dict[str, Any]:
    return {row.arm: row for row in result.tables[0].rows}


@pytest.mark.parametrize("model", random_models.CONFIGS)
@pytest.mark.parametrize("level", LEVELS)
def test_every_level_measures_every_arm_and_finds_ours_exact(model: str, level: str) -> None:
    arms = ["fp32", "fp32 onednn", "bf16", "bf16 attention", OURS]
    result = bench(model, level, arms=arms, rounds=5, threads=1)
    for table in result.tables:
        by_name = {row.arm: row for row in table.rows}
        assert set(arms) <= set(by_name)
        assert by_name["fp32 onednn"].sqnr_db > 90  # float32 in another order
        assert by_name[OURS].sqnr_db > 3
        assert all(len(row.times.wall) == 5 for row in table.rows)
        assert set(by_name[OURS].faster) == set(arms) - {OURS}
    if level == "gemm":  # of more layers this small, errors differ by chance
        assert all(row.agrees for table in result.tables for row in table.rows if row.arm == OURS)
    assert len(result.tables) == (4 if model == "dit-xl-2" else 3) if level == "gemm" else 1


@pytest.mark.parametrize("level", ["block", "step"])
@pytest.mark.parametrize("recipe", [r.name for r in fewbit.recipes() if r.calibrated])
def test_every_recipe_is_measured_without_its_search(recipe: str, level: str) -> None:
    result = bench("dit-xl-2", level, recipe=recipe, arms=["fp32", OURS], rounds=5, threads=1)
    assert result.asked["recipe"].startswith(f"{recipe}:")
    assert rows(result)[OURS].sqnr_db > 3


def test_a_plain_recipe_needs_no_data_and_counts_its_bytes() -> None:
    result = bench("dit-xl-2", "step", recipe="rtn", bits="w8a8", arms=["fp32", OURS], rounds=5)
    assert result.asked["recipe"] == "rtn:w8a8"
    found = rows(result)
    assert found[OURS].resident_bytes < found["fp32"].resident_bytes
    assert found["fp32"].resident_bytes == _bytes(grown(one_block("dit-xl-2"), 3))


def _bytes(network: nn.Module) -> int:
    tensors = [*network.parameters(), *network.buffers()]
    return sum({t.data_ptr(): t.nbytes for t in tensors}.values())


def test_an_error_that_is_larger_than_the_definitions_is_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from fewbit.kernels.torch_cpu import Portable

    right = Portable.quantize

    def wrong(self: Any, x: torch.Tensor, fmt: Any, rotation: Any = None) -> Any:
        coded = right(self, x, fmt, rotation)
        coded.scales.mul_(1.2)
        return coded

    monkeypatch.setattr(Portable, "quantize", wrong)
    result = bench("dit-xl-2", "block", arms=[OURS], rounds=5)
    assert rows(result)[OURS].agrees is False
    assert "NOT as near" in str(result)


def test_a_library_that_fails_is_left_out_with_its_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(network: nn.Module, layers: Layers) -> nn.Module:
        raise RuntimeError("no kernel image")

    arm = Arm("broken", torch.bfloat16, broken, packages=("torch",))
    monkeypatch.setitem(ARMS, "cpu", (arm, ARMS["cpu"][0]))
    result = bench("dit-xl-2", rounds=5)
    assert "no kernel image" in result.left_out["broken"]
    assert list(rows(result)) == ["fp32"]
    assert "left out: broken" in str(result)


def test_a_library_that_cannot_be_listened_to_keeps_its_times(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def deaf(*_: object) -> None:
        raise RuntimeError("graph break")

    monkeypatch.setattr("fewbit.bench.measure.shares", deaf)
    arm = Arm("deaf", torch.bfloat16, packages=("torch",))
    monkeypatch.setitem(ARMS, "cpu", (arm,))
    assert rows(bench("dit-xl-2", rounds=5))["deaf"].shares is None
    monkeypatch.setitem(ARMS, "cpu", (Arm("torch", torch.bfloat16),))
    with pytest.raises(RuntimeError, match="graph break"):
        bench("dit-xl-2", rounds=5)


def test_sdnq_rounds_our_layers_and_no_others() -> None:
    pytest.importorskip("sdnq")
    network = one_block("dit-xl-2")
    layers = Layers.of(network)
    before = {name for name, one in network.named_modules() if type(one) is nn.Linear}
    sdnq(network, layers, "int8")
    after = {name for name, one in network.named_modules() if type(one) is nn.Linear}
    assert before - after == set(layers.all)


def test_a_library_that_is_not_installed_is_left_out_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arm = Arm("absent", torch.bfloat16, packages=("torch", "no_such"))
    monkeypatch.setitem(ARMS, "cpu", (arm, ARMS["cpu"][0]))
    assert bench("dit-xl-2", rounds=5).left_out == {"absent": "no_such is not installed"}


class Replaced(Graph):
    """A library that keeps its weights to itself."""

    hidden_bytes = 100

    def __init__(self, module: nn.Module, call: dict[str, Any]) -> None:
        flat = Flat(module, call, [*tensors(call)])
        super().__init__(flat.names)
        self.run = flat.forward

    def compute(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        return self.run(*inputs)


@pytest.mark.parametrize(
    ("level", "kind", "modules", "layers"),
    [
        ("block", "BasicTransformerBlock", 4, 7),
        ("step", "DiTTransformer2DModel", 1, 3 * 7),
        ("image", "DiTTransformer2DModel", 1, 3 * 7),
    ],
)
def test_a_whole_graph_takes_the_place_of_what_is_called(
    monkeypatch: pytest.MonkeyPatch, level: str, kind: str, modules: int, layers: int
) -> None:
    """After the random block was repeated, and with the names that its layers have inside."""
    taken: list[nn.Module] = []

    def whole(module: nn.Module, call: dict[str, Any], names: Collection[str]) -> nn.Module:
        assert "hidden_states" in call
        assert len(names) == layers
        assert all(type(module.get_submodule(name)) is nn.Linear for name in names)
        taken.append(module)
        return Replaced(module, call)

    arm = Arm("graph", torch.float32, whole=whole, copied=False)
    monkeypatch.setitem(ARMS, "cpu", (ARMS["cpu"][0], arm))
    result = bench("dit-xl-2", level, rounds=5)
    assert [type(module).__name__ for module in taken] == [kind] * modules
    assert rows(result)["graph"].sqnr_db > 45
    assert rows(result)["graph"].shares is None
    assert rows(result)["graph"].resident_bytes == Replaced.hidden_bytes
    gemm = bench("dit-xl-2", "gemm", rounds=5)
    assert gemm.left_out == {"graph": "it takes whole blocks and has no single layers"}


@pytest.mark.parametrize(
    "arm", [arm for arm in PEERS if not arm.compiled], ids=lambda arm: arm.name
)
def test_every_peer_that_is_installed_runs_or_says_why_not(arm: Arm) -> None:
    if (why := arm.absent(torch.device("cpu"))) is not None:
        pytest.skip(why)
    result = bench("dit-xl-2", "step", arms=["fp32", arm.name], rounds=5)
    if arm.name in result.left_out:
        assert result.left_out[arm.name].startswith("it fails here: ")
        return
    found = rows(result)
    assert found[arm.name].sqnr_db > 3
    assert found[arm.name].resident_bytes <= found["fp32"].resident_bytes


def test_blocks_told_apart_share_no_modulation_and_give_nearly_the_same() -> None:
    network = grown(one_block("dit-xl-2"), 3)
    inputs = inputs_for(network, 2)
    with torch.no_grad():
        exact = network(**inputs).sample
        first, second, third = told_apart(network).transformer_blocks
        kept, *changed = [one.norm1.linear.weight.half() for one in (first, second, third)]
        assert torch.equal(
            kept, one_block("dit-xl-2").transformer_blocks[0].norm1.linear.weight.half()
        )
        assert not any(torch.equal(kept, other) for other in changed)
        assert torch.equal(first.ff.net[2].weight, second.ff.net[2].weight)
        assert sqnr(exact, network(**inputs).sample) > 45


def test_a_quantized_model_is_measured_as_it_is(small: Callable[..., Any], tmp_path: Path) -> None:
    model = small()
    fewbit.quantize(model, "rtn", bits="w4a8", progress=False)
    fewbit.save(model, tmp_path / "small")
    result = bench(str(tmp_path / "small"), "block", arms=["fp32", OURS], rounds=5)
    assert result.asked["recipe"] == "rtn:w4a8"
    with pytest.raises(BadArgument, match="already quantized"):
        bench(str(tmp_path / "small"), recipe="rtn", rounds=5)


def test_a_pipelines_own_inputs_are_used(pipeline_folder: Path) -> None:
    result = bench("tiny", "step", recipe="rtn", arms=["bf16", OURS], rounds=5)
    assert result.tables[0].title == "one step, 2 x 4 x 8 x 8"


def test_blocks_have_weights_of_their_own_but_share_embedders() -> None:
    first, second, _ = grown(one_block("dit-xl-2"), 3).transformer_blocks
    assert first.ff.net[2].weight.data_ptr() != second.ff.net[2].weight.data_ptr()
    assert torch.equal(first.ff.net[2].weight, second.ff.net[2].weight)
    assert first.norm1.emb is second.norm1.emb


def test_a_product_alone_gives_the_layers_result() -> None:
    torch.manual_seed(0)
    model = grown(one_block("dit-xl-2"), 1)
    fewbit.quantize(model, "rtn", progress=False)
    layer = model.transformer_blocks[0].attn1.to_q
    x = torch.randn(6, 64)
    with torch.no_grad():
        assert torch.equal(ProductAlone(layer, x)(x), layer(x))


def test_onednn_computes_a_linear_of_any_shape() -> None:
    linear = nn.Linear(24, 40)
    x = torch.randn(2, 3, 24)
    with torch.no_grad():
        torch.testing.assert_close(OneDnnLinear(linear)(x), linear(x))


def test_forcing_a_backend_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.setenv(VARIABLE, "torch")
    with forced("reference"):
        assert os.environ[VARIABLE] == "reference"
    assert os.environ[VARIABLE] == "torch"
    monkeypatch.delenv(VARIABLE)
    with pytest.raises(KeyError), forced("reference"):
        raise KeyError
    assert VARIABLE not in os.environ


@pytest.mark.parametrize(
    ("model", "asked", "error", "says"),
    [
        ("dit-xl-2", {"level": "kernel"}, BadArgument, "'kernel'; allowed: gemm, block"),
        ("dit-xl-2", {"arms": ["fast"]}, BadArgument, "arm 'fast' for cpu; allowed: fp32"),
        ("dit-xl-2", {"threads": 4096}, BadArgument, "4096 threads .* allowed: 1 to"),
        ("dit-xl-3", {}, BrokenFile, "dit-xl-3 is no model to measure; allowed: dit-xl-2"),
        ("dit-xl-2", {"recipe": "fast"}, BadArgument, "unknown recipe 'fast'"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_words(
    model: str, asked: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        bench(model, **asked)


def test_a_model_without_inputs_or_layers_is_refused(
    small: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BadModel, match="cannot make up inputs for a bare HunyuanDiT2DModel"):
        inputs_for(small("HunyuanDiT2DModel"), 2)
    small().save_pretrained(tmp_path / "small")
    monkeypatch.setattr("fewbit.models.families.dit.spec", lambda model: _keeping_all())
    with pytest.raises(BadModel, match="no layer that can be quantized"):
        bench(str(tmp_path / "small"))


def _keeping_all() -> fewbit.ModelSpec:
    return fewbit.ModelSpec(blocks="transformer_blocks", roles={"ff.*": "fc1"}, keep=("*",))


def test_the_verb_prints_80_columns_and_writes_what_it_prints(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    arms = "fp32,bf16,ours torch,torchao int8"
    words = ["bench", "dit-xl-2", "--arms", arms, "--rounds", "5", "--output", str(file)]
    said = CliRunner().invoke(main, words)
    assert said.exit_code == 0, said.stderr
    assert max(map(len, said.stdout.splitlines())) <= 80
    found = json.loads(file.read_text())
    assert found["environment"].keys() >= {"date", "cpu", "isa", "threads", "commit", "peers"}
    (table,) = found["tables"]
    ours = next(row for row in table["rows"] if row["arm"] == OURS)
    assert ours["faster"]["fp32"].keys() == {"median", "least", "most", "counts"}
    assert len(ours["times"]["wall"]) == found["asked"]["rounds"] == 5
