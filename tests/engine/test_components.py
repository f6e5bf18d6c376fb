"""Several networks of one pipeline: each quantized on what it receives, saved and loaded as one."""

import json

import pytest
import torch

import fewbit
from fewbit.calibration import CallSet, RowSet, Sampling, manner_of
from fewbit.calibration.reading import Reading
from fewbit.errors import BadArgument, BadCalibration, BadModel
from fewbit.layers.linear import QLinear
from fewbit.models import components_of

diffusers = pytest.importorskip("diffusers")

import tiny_pipelines  # noqa: E402

CALL = tiny_pipelines.CALLS["wan_2_2"]
EXPERTS = ("transformer", "transformer_2")
BOUNDARY = 900
ALL = ("transformer_2", "text_encoder", "transformer")

pytestmark = pytest.mark.usefixtures("one_thread")


def wan():
    return tiny_pipelines.make("wan_2_2")


def wishes(**other):
    return fewbit.Calibration(**{"samples": 4, "steps": 6, "call": CALL, **other})


@torch.no_grad()
def draw(pipe):
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    how = {"num_inference_steps": 4, "output_type": "pt", "generator": generator}
    return pipe("a cat", **how, **CALL).frames


def quantized(pipe):
    return [name for name, part in pipe.components.items() if hasattr(part, "fewbit")]


def weights(network):
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def same(network, before):
    after = network.state_dict()
    return after.keys() == before.keys() and all(torch.equal(after[n], before[n]) for n in before)


@pytest.mark.parametrize("components", [None, ALL])
def test_all_come_back_to_the_last_bit_by_both_doors(components, tmp_path):
    pipe = wan()
    plain = draw(pipe)
    report = fewbit.quantize(
        pipe, "hq-dit:w4a8", calibration=wishes(), components=components, progress=False
    )
    names = sorted(components or EXPERTS)
    assert sorted(quantized(pipe)) == sorted(report.components) == names
    expected = draw(pipe)
    assert expected.isfinite().all()
    assert not torch.equal(expected, plain)
    pipe.save_pretrained(tmp_path / "small")
    for load in (diffusers.DiffusionPipeline.from_pretrained, fewbit.load):
        loaded = load(tmp_path / "small")
        assert sorted(quantized(loaded)) == names
        assert torch.equal(draw(loaded), expected)
    told = fewbit.inspect(tmp_path / "small")
    assert sorted(told.parts) == sorted({*EXPERTS, *names})
    layers = [one.name for one in told.layers if one.status == "quantized"]
    assert sorted(layers) == sorted(one.name for one in report.layers)
    assert {one.name.partition(".")[0] for one in report.layers} == set(names)


def test_each_expert_sees_the_calls_that_it_receives():
    pipe, times = wan(), {}
    for name in EXPERTS:
        manner = manner_of(pipe, wishes(), name)
        data = Sampling.of(manner, 8, asked=wishes()).draw(pipe)
        assert isinstance(data, CallSet)
        times[name] = data.timesteps()
    assert (times["transformer"] >= BOUNDARY).all()
    assert (times["transformer_2"] < BOUNDARY).all()
    assert len(times["transformer"].unique()) > 1 < len(times["transformer_2"].unique())


def test_rows_of_an_expert_are_of_its_steps_too():
    pipe = wan()
    manner = manner_of(pipe, wishes(guidance=1.0), "transformer_2")
    data = Sampling.of(manner, 8).draw(pipe)
    assert isinstance(data, RowSet)
    assert len(data) == 8
    assert (data.timesteps() < BOUNDARY).all()


def test_an_expert_that_never_runs_is_told():
    pipe = wan()
    with pytest.raises(BadCalibration, match=r"transformer_2 of WanPipeline never runs in 1 steps"):
        fewbit.quantize(
            pipe,
            "hq-dit",
            calibration=wishes(steps=1),
            components=["transformer_2"],
            progress=False,
        )


def test_a_text_encoder_sees_the_prompts_and_the_negative_one_once():
    pipe = wan()
    prompts = ["a red fox", "two boats at sea"]
    manner = manner_of(pipe, wishes(prompts=prompts), "text_encoder")
    data = Reading(manner, 8, 0).draw(pipe)
    read = {
        pipe.tokenizer.decode(call["input_ids"][0], skip_special_tokens=True) for call in data.calls
    }
    assert read == {*prompts, ""}
    assert len(data) == 3


def test_the_same_call_gives_the_same_bits_and_resumes(tmp_path):
    how = {"calibration": wishes(), "components": ALL, "progress": False}
    first, second = wan(), wan()
    fewbit.quantize(first, "hq-dit:w4a8", workdir=tmp_path / "work", **how)
    assert sorted(path.name for path in (tmp_path / "work").iterdir() if path.is_dir()) == sorted(
        ALL
    )
    report = fewbit.quantize(second, "hq-dit:w4a8", workdir=tmp_path / "work", **how)
    assert not report.warnings
    assert torch.equal(draw(first), draw(second))


def test_a_failure_in_the_second_puts_the_first_back(monkeypatch):
    pipe = wan()
    before = {name: weights(getattr(pipe, name)) for name in EXPERTS}
    solve = fewbit.engine.run._Run._solve

    def fail(run, *args):
        if run.component.name == "transformer_2":
            raise KeyboardInterrupt
        solve(run, *args)

    monkeypatch.setattr(fewbit.engine.run._Run, "_solve", fail)
    with pytest.raises(KeyboardInterrupt):
        fewbit.quantize(pipe, "rtn", progress=False)
    assert quantized(pipe) == []
    assert all(same(getattr(pipe, name), before[name]) for name in EXPERTS)


def test_one_component_alone_leaves_the_others_as_they_are():
    pipe = wan()
    before = weights(pipe.transformer)
    report = fewbit.quantize(pipe, "rtn", components=["text_encoder"], progress=False)
    assert quantized(pipe) == ["text_encoder"] == list(report.components)
    assert same(pipe.transformer, before)
    fewbit.dequantize(pipe)
    assert quantized(pipe) == []
    assert not any(isinstance(part, QLinear) for part in pipe.text_encoder.modules())


def test_components_run_in_the_order_of_the_pipeline():
    found = components_of(wan(), ALL)
    assert [one.name for one in found] == ["text_encoder", *EXPERTS]


@pytest.mark.parametrize(
    ("components", "error", "said"),
    [
        (["transfomer"], BadArgument, "no component 'transfomer'; its networks: text_encoder"),
        (["scheduler"], BadArgument, "the component scheduler of WanPipeline is no network"),
        (["vae"], BadModel, "the component vae of WanPipeline, AutoencoderKLWan, has no list"),
        ("transformer", BadArgument, "components must be names in a list"),
        ([], BadArgument, "components must be names in a list"),
    ],
)
def test_what_cannot_be_quantized_is_named(components, error, said):
    with pytest.raises(error, match=said):
        fewbit.quantize(wan(), "rtn", components=components, progress=False)


def test_what_is_of_one_network_is_refused_for_several():
    pipe = wan()
    with pytest.raises(
        BadCalibration, match=r"calls of one network, and transformer, transformer_2"
    ):
        fewbit.quantize(pipe, "hq-dit", calibration=[{}], progress=False)
    with pytest.raises(BadArgument, match=r"size limits one network"):
        fewbit.quantize(pipe, "best", size=1.0, progress=False)
    with pytest.raises(BadArgument, match=r"a network alone"):
        fewbit.quantize(pipe.transformer, "rtn", components=["transformer"], progress=False)


def test_each_component_can_be_given_its_own_spec(tmp_path):
    pipe = wan()
    spec = fewbit.inspect(pipe).spec
    assert list(spec) == list(EXPERTS)
    spec["transformer_2"]["keep"] = [*spec["transformer_2"]["keep"], "blocks.0.*"]
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    report = fewbit.quantize(pipe, "rtn", spec=tmp_path / "spec.json", progress=False)
    names = [layer.name for layer in report.layers]
    assert "transformer.blocks.0.attn1.to_q" in names
    assert "transformer_2.blocks.0.attn1.to_q" not in names
    assert "transformer_2.blocks.1.attn1.to_q" in names


def test_a_report_of_several_comes_back_from_its_file(tmp_path):
    report = fewbit.quantize(wan(), "rtn", progress=False)
    report.save(tmp_path / "report.json")
    assert fewbit.Report.from_dict(json.loads((tmp_path / "report.json").read_text())) == report
    assert "  transformer_2, WanTransformer3DModel: " in str(report)
    assert report.bytes == sum(part.size.bytes for part in report.components.values())


def test_a_pipeline_that_cannot_run_as_it_is_says_what_to_give():
    pipe = tiny_pipelines.make("flux_2_klein")
    with pytest.raises(BadCalibration, match=r"Flux2KleinPipeline cannot run .*Calibration\(call="):
        fewbit.quantize(pipe, "rtn", progress=False)
    call = fewbit.Calibration(call=tiny_pipelines.CALLS["flux_2_klein"])
    assert fewbit.quantize(pipe, "rtn", calibration=call, progress=False).layers
    with pytest.raises(BadCalibration, match="looks at no data"):
        fewbit.quantize(pipe, "rtn", calibration=fewbit.Calibration(samples=4), progress=False)
