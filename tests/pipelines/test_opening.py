import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import fewbit
from fewbit.errors import BadArgument, BadModel, BrokenFile
from fewbit.models.families.original_dit import DiTConfig, OriginalDiT
from fewbit.pipelines.opening import device_named, locate, open_model

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.setattr("fewbit.demo.names", lambda: ["shapes"])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def original(path: Path) -> OriginalDiT:
    torch.manual_seed(0)
    model = OriginalDiT(DiTConfig(8, 2, 4, 24, 96, 2, 2, 5, learn_sigma=False)).eval()
    save_file(model.state_dict(), path)
    return model


def test_a_demo_is_known_by_its_name(pipeline_folder, monkeypatch):
    monkeypatch.setattr("fewbit.demo.path", lambda name: pipeline_folder / name)
    assert locate("shapes") == pipeline_folder / "shapes"


def test_python_knows_the_demos_and_the_hub_ids_as_the_command_line_does(pipeline_folder):
    demo = fewbit.inspect("shapes")
    assert demo.family == "dit"
    assert fewbit.inspect(fewbit.load("shapes")) == demo
    (pipeline_folder.parent / "shapes").mkdir()
    with pytest.raises(BadModel, match="shapes holds no transformer"):
        fewbit.inspect(Path("shapes"))  # a path is never a demo's name
    with pytest.raises(BrokenFile, match=r"a hub id \(org/name\) or a demo \(shapes\)"):
        fewbit.inspect("shape")


def test_a_checkpoint_is_inspected_from_python(tmp_path):
    original(tmp_path / "dit.safetensors")
    assert fewbit.inspect(tmp_path / "dit.safetensors", heads=2).family == "original_dit"


def test_a_pipeline_a_transformer_and_a_quantized_folder_open(pipeline_folder):
    pipe = open_model("tiny")
    assert type(pipe).__name__ == "DiTPipeline"
    half = open_model("tiny/transformer", dtype=torch.bfloat16)
    assert type(half).__name__ == "DiTTransformer2DModel"
    assert half.dtype == torch.bfloat16
    fewbit.quantize(pipe, "rtn", progress=False)
    fewbit.save(pipe, "small")
    again = open_model("small").transformer
    state = pipe.transformer.state_dict()
    assert all(torch.equal(again.state_dict()[name], state[name]) for name in state)


def test_an_original_checkpoint_and_what_fewbit_made_of_it_open(tmp_path):
    model = original(tmp_path / "dit.safetensors")
    opened = open_model(str(tmp_path / "dit.safetensors"), heads=2)
    x, t, y = torch.randn(1, 4, 8, 8), torch.tensor([5]), torch.tensor([1])
    assert torch.equal(opened(x, t, y), model(x, t, y))
    fewbit.quantize(opened, "rtn", progress=False)
    fewbit.save(opened, tmp_path / "small")
    assert torch.equal(open_model(str(tmp_path / "small"))(x, t, y), opened(x, t, y))


@pytest.mark.parametrize(
    "text", ["nowhere", "./a/b", "../a/b", "/a/b", "a/b/c", "a/b.pt", "a/b.safetensors", "tiny/x"]
)
def test_what_looks_like_a_path_is_never_asked_of_the_hub(pipeline_folder, text):
    with pytest.raises(BrokenFile, match="does not exist; a model is"):
        locate(text)


def test_a_hub_id_that_is_not_to_be_had_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert locate("nobody/Nothing-1.5") == "nobody/Nothing-1.5"
    with pytest.raises(BrokenFile, match=r"cannot get nobody/Nothing-1\.5 from the Hugging Face"):
        open_model("nobody/Nothing-1.5")


def truncate(folder: Path) -> None:
    file = folder / WEIGHTS
    file.write_bytes(file.read_bytes()[:-1])


def garble(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"these are no weights at all")


def drop_a_weight(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    del tensors["proj_out_2.weight"]
    save_file(tensors, folder / WEIGHTS)


def reshape_a_weight(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file({**tensors, "proj_out_2.weight": torch.ones(2, 2)}, folder / WEIGHTS)


def lose_the_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


def garble_the_index(folder: Path) -> None:
    (folder / "model_index.json").write_text("{")


def name_an_unknown_class(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "_class_name": "Nope"}))


@pytest.mark.parametrize(
    ("break_it", "sentence"),
    [
        (truncate, "diffusion_pytorch_model.safetensors is truncated"),
        (garble, "diffusion_pytorch_model.safetensors is not a whole safetensors file"),
        (drop_a_weight, "tiny lacks the weight proj_out_2.weight of DiTTransformer2DModel"),
        (reshape_a_weight, "diffusers cannot open tiny: .*proj_out_2.weight"),
        (lose_the_weights, "diffusers cannot open tiny: "),
        (garble_the_index, "model_index.json"),
        (name_an_unknown_class, "diffusers cannot open tiny: .*Nope"),
    ],
)
def test_a_broken_pipeline_is_one_sentence(pipeline_folder, break_it, sentence):
    break_it(pipeline_folder)
    with pytest.raises(BrokenFile, match=sentence) as caught:
        open_model("tiny")
    assert "\n" not in str(caught.value)


def test_folders_without_a_transformer_are_refused(pipeline_folder):
    shutil.rmtree(pipeline_folder / "transformer")
    with pytest.raises(BadModel, match="tiny is a pipeline without a transformer"):
        open_model("tiny")
    with pytest.raises(BadModel, match="tiny/scheduler holds no transformer: neither"):
        open_model("tiny/scheduler")


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "sprung",)

    torch.save({"model": Trap()}, tmp_path / "trap.pt")
    with pytest.raises(BrokenFile, match=r"trap\.pt"):
        open_model(str(tmp_path / "trap.pt"))
    assert not (tmp_path / "sprung").exists()


def test_heads_are_for_checkpoint_files(pipeline_folder):
    with pytest.raises(BadArgument, match="not for tiny"):
        open_model("tiny", heads=2)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_said_so():
    assert device_named("auto").type == "cpu"
    with pytest.raises(BadArgument, match="sees no GPU"):
        device_named("cuda")
