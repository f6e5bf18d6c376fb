"""What diffusers' tests ask of every quantization backend, each beside the unquantized control."""

import copy
import json

import accelerate
import diffusers
import pytest
import small_models as small
import tiny_transformers as tiny
import torch
from diffusers.quantizers import PipelineQuantizationConfig

import fewbit
from fewbit.activations.clock import TimeBins
from fewbit.activations.static import Static
from fewbit.diffusers.plugin import FewbitConfig
from fewbit.engine.decibel import sqnr
from fewbit.errors import BadArgument, BadModel
from fewbit.formats import QTensor, Spec
from fewbit.layers.bind import bind, bind_attention, unbind
from fewbit.layers.linear import QLinear
from fewbit.layers.packed_weight import PackedWeight
from fewbit.layers.stage import InputStage
from fewbit.models import describe
from fewbit.transforms.hadamard import Hadamard, HadamardTransform

DIT, PIXART, HUNYUAN = tiny.NAMES
CPU = torch.device("cpu")
GROUPS = {"onload_device": CPU, "offload_device": CPU, "num_blocks_per_group": 1}
CONTROLNETS = {
    "FluxControlNetModel": {
        "num_layers": 2,
        "num_single_layers": 2,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
    },
    "SD3ControlNetModel": {"num_layers": 2},
}


def quantized(family):
    model = small.make(family)
    fewbit.quantize(model, "rtn", bits="w4a4", progress=False)
    return model


def run(model):
    with torch.no_grad():
        return model(**small.arguments(type(model).__name__, 2))[0]


def fall_back(model):
    """As the model is when all that holds weights is offloaded: only attention stays quick."""
    unbind(model)
    if any(isinstance(module, QLinear) for module in model.modules()):
        bind_attention(model, describe(model))


def saved(model, folder):
    model.save_pretrained(folder)
    return folder


def resident(model):
    """Bytes of all that a model keeps in memory, the layouts of its layers included."""
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers()) if not t.is_meta}
    layers = [module for module in model.modules() if isinstance(module, QLinear)]
    laid_out = sum(layer.hidden_bytes for layer in layers)
    return sum(t.nbytes for t in tensors.values()) + laid_out


# Size, dtypes, which modules


@pytest.mark.parametrize("bits", ["w4a4", "w8a8"])
def test_memory_footprint(bits):
    plain, model = tiny.make(), tiny.quantized(bits=bits)
    packed = [module for module in model.modules() if isinstance(module, QLinear)]
    weights = sum(4 * layer.in_features * layer.out_features for layer in packed)
    kept = plain.get_memory_footprint() - weights
    stored = sum(layer.packed_weight.nbytes for layer in packed)
    assert model.get_memory_footprint() == kept + stored < plain.get_memory_footprint()
    tiny.run(model)  # layouts pad to whole panels, which layers this small feel
    assert model.get_memory_footprint() < plain.get_memory_footprint()


@pytest.mark.parametrize("bits", ["w4a4", "w8a8"])
@pytest.mark.parametrize("name", [DIT, PIXART])
def test_the_number_of_parameters_is_that_of_the_control(name, bits, tmp_path):
    """Loaded, freshly quantized, and after a run has laid out the codes anew."""
    plain, model = tiny.make(name), tiny.quantized(name, bits=bits)
    loaded = type(model).from_pretrained(saved(model, tmp_path))
    tiny.run(loaded)
    for one in (model, loaded):
        for how in ({}, {"exclude_embeddings": True}):
            assert one.num_parameters(**how) == plain.num_parameters(**how)
        assert one.num_parameters(only_trainable=True) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_dtype_of_a_model_is_that_of_what_is_kept(dtype, tmp_path):
    saved(tiny.quantized(bits="nvfp4"), tmp_path)
    model = getattr(diffusers, DIT).from_pretrained(tmp_path, dtype=dtype)
    assert model.dtype == dtype
    layer = model.transformer_blocks[0].attn1.to_q
    assert layer.weight.dtype == dtype
    assert next(layer.parameters()).dtype == dtype
    stored = {name: tensor.dtype for name, tensor in layer.named_parameters() if name != "bias"}
    for change in (torch.nn.Module.half, torch.nn.Module.double):
        change(layer)
        assert stored == {name: layer.get_parameter(name).dtype for name in stored}


def test_no_packed_tensor_asks_for_a_gradient():
    model = tiny.quantized()
    layers = [module for module in model.modules() if isinstance(module, QLinear)]
    assert layers
    assert not any(p.requires_grad for layer in layers for p in layer.parameters())


# A packed weight where a matrix is expected


def test_a_weight_says_what_it_is_and_refuses_to_be_computed_with():
    layer = tiny.quantized().transformer_blocks[0].attn1.to_q
    weight, control = layer.weight, tiny.make().transformer_blocks[0].attn1.to_q.weight
    assert isinstance(weight, PackedWeight)
    for told in ("shape", "dtype", "device"):
        assert getattr(weight.data, told) == getattr(control, told)
    for use in (lambda: weight + 1, lambda: torch.cat([weight]), lambda: weight.double()):
        with pytest.raises(BadArgument, match=r"is stored packed; .*fewbit\.dequantize"):
            use()


@pytest.mark.parametrize("name", [PIXART, HUNYUAN])
def test_fusing_projections_is_refused_in_words(name):
    tiny.make(name).fuse_qkv_projections()
    with pytest.raises(BadArgument, match=r"is stored packed"):
        tiny.quantized(name).fuse_qkv_projections()


@pytest.mark.parametrize("name", CONTROLNETS)
def test_a_controlnet_of_a_quantized_transformer(name):
    """Refused packed; of a dequantized copy it holds the very same weights."""
    family = name.replace("ControlNetModel", "Transformer2DModel")
    model, make = quantized(family), getattr(diffusers, name).from_transformer
    with pytest.raises(BadArgument, match=r"packed weight .* fewbit\.dequantize"):
        make(copy.deepcopy(model), **CONTROLNETS[name])
    plain = copy.deepcopy(model)
    fewbit.dequantize(plain)
    controlnet = make(plain, **CONTROLNETS[name])
    layer = model.transformer_blocks[0].attn.to_q
    found = controlnet.transformer_blocks[0].attn.to_q.weight
    assert torch.equal(found, layer.effective_weight())


def test_state_dicts_do_not_cross_between_packed_and_plain(tmp_path):
    plain, model = tiny.make(), tiny.quantized()
    with pytest.raises(BadArgument, match="packed weight"):
        plain.load_state_dict(model.state_dict(), strict=False)
    with pytest.raises(RuntimeError, match="cannot be loaded into a quantized layer"):
        model.load_state_dict(plain.state_dict(), strict=False)
    torch.save(model.state_dict(), tmp_path / "state.pt")
    again = torch.load(tmp_path / "state.pt", weights_only=True)
    other = copy.deepcopy(model)
    assert other.load_state_dict(again) == other.load_state_dict(model.state_dict())
    assert torch.equal(tiny.run(other), tiny.run(model))


def test_a_model_made_from_the_configuration_does_not_say_it_is_quantized(tmp_path):
    model = tiny.quantized()
    loaded = type(model).from_pretrained(saved(model, tmp_path))
    file = json.loads((tmp_path / "config.json").read_text())
    for config in (model.config, loaded.config, type(model).load_config(tmp_path), file):
        assert "quantization_config" in config
        plain = type(model).from_config(config)
        assert "quantization_config" not in plain.config
        assert not any(isinstance(module, QLinear) for module in plain.modules())


def test_what_another_quantizer_said_of_a_configuration_stays():
    config = {**tiny.make().config, "quantization_config": {"quant_method": "another"}}
    assert "quantization_config" in type(tiny.make()).from_config(config).config


# Ways to load


def test_a_single_file_is_quantized_while_it_is_loaded(tmp_path):
    family = "FluxTransformer2DModel"
    file = tiny.weights(saved(small.make(family), tmp_path / "plain"))
    read = getattr(diffusers, family).from_single_file
    asked = {"config": str(tmp_path / "plain"), "quantization_config": FewbitConfig(bits="w4a4")}
    model = read(str(file), **asked)
    assert torch.equal(run(model), run(quantized(family)))


def test_a_packed_single_file_is_refused(tmp_path):
    family = "FluxTransformer2DModel"
    saved(small.make(family), tmp_path / "plain")
    file = tiny.weights(saved(quantized(family), tmp_path / "packed"))
    asked = {"config": str(tmp_path / "plain"), "quantization_config": FewbitConfig(bits="w4a4")}
    with pytest.raises(BadArgument, match=r"quantized already.*from_pretrained"):
        getattr(diffusers, family).from_single_file(str(file), **asked)


def test_a_pipeline_takes_the_backend_by_name(tmp_path):
    tiny.pipeline(tiny.make()).save_pretrained(tmp_path)
    config = PipelineQuantizationConfig("fewbit", {"recipe": "rtn"}, ["transformer"])
    pipe = diffusers.DiTPipeline.from_pretrained(tmp_path, quantization_config=config)
    assert any(isinstance(module, QLinear) for module in pipe.transformer.modules())
    assert torch.equal(tiny.run(pipe.transformer), tiny.run(tiny.quantized()))


@pytest.mark.parametrize("how", [{}, {"quantization_config": FewbitConfig()}])
def test_a_device_map_with_disk_is_refused_in_words(how, tmp_path):
    saved(tiny.make() if how else tiny.quantized(), tmp_path)
    read, off = getattr(diffusers, DIT).from_pretrained, tmp_path / "off"
    for name, places in (
        ("transformer_blocks", {"": "cpu", "transformer_blocks": "disk"}),
        ("all", {"": "disk"}),
    ):
        said = f"device_map puts {name} of a quantized model on disk; .*disk_offload"
        with pytest.raises(BadArgument, match=said):
            read(tmp_path, device_map=places, offload_folder=off, **how)


def test_accelerate_dispatches_what_fewbit_has_loaded(tmp_path):
    """Tensors stored once leave names missing, so the artefact is read by fewbit and then moved."""
    model = tiny.quantized()
    loaded = fewbit.load(saved(model, tmp_path / "packed"))
    places = dict.fromkeys((name for name, _ in loaded.named_children()), "cpu")
    accelerate.dispatch_model(
        loaded, {**places, "transformer_blocks": "disk"}, "cpu", offload_dir=tmp_path / "off"
    )
    fall_back(model)
    assert torch.equal(tiny.run(loaded), tiny.run(model))
    assert resident(loaded.transformer_blocks) == 0


# Offload

OFFLOADS = {
    "cpu": lambda model, folder, **how: accelerate.cpu_offload(model, "cpu", **how),
    "disk": lambda model, folder, **how: accelerate.disk_offload(model, folder, "cpu", **how),
}


@pytest.mark.parametrize("buffers", [False, True])
@pytest.mark.parametrize("where", OFFLOADS)
@pytest.mark.parametrize("name", [DIT, PIXART])
def test_offloaded_weights_leave_and_come_back(name, where, buffers, tmp_path):
    """As much stays as of the unquantized control, whether the model has run before or not.

    Without a layout sums have another order: 120 dB are float32 roundings, and no level turned."""
    control, model, fresh = tiny.make(name), tiny.quantized(name), tiny.quantized(name)
    bound = tiny.run(model)
    fall_back(model)
    expected = tiny.run(model)
    bind(model)
    for number, one in enumerate((control, model, fresh)):
        OFFLOADS[where](one, tmp_path / str(number), offload_buffers=buffers)
        tiny.run(one)
    for one in (model, fresh):
        assert sqnr(expected, tiny.run(one)) > 120
        assert resident(one) <= resident(control)
    accelerate.hooks.remove_hook_from_submodules(model)
    if where == "cpu":
        assert torch.equal(tiny.run(model), bound)


def test_what_needs_the_weights_of_an_offloaded_model_says_so(tmp_path):
    model = tiny.quantized()
    expected = tiny.run(model)
    accelerate.cpu_offload(model, "cpu")
    for doing, work in {
        "saving": lambda: model.save_pretrained(tmp_path / "packed"),
        "dequantizing": lambda: fewbit.dequantize(model),
    }.items():
        with pytest.raises(BadModel, match=f"take away what offloads them, before {doing}"):
            work()
    accelerate.hooks.remove_hook_from_submodules(model)
    assert torch.equal(tiny.run(model), expected)
    assert torch.equal(tiny.run(fewbit.load(saved(model, tmp_path / "packed"))), expected)


@torch.no_grad()
def test_offloaded_buffers_of_what_stands_before_a_product():
    """Signs of a rotation and steps of an activation are brought although no forward runs."""
    steps = Static(Spec.parse("int8/tensor/fp32"), torch.full((1, 1), 0.05), TimeBins.empty(1))
    stage = InputStage(HadamardTransform(Hadamard(32, None, 0)), steps)
    weight = QTensor.quantize(torch.randn(24, 32), Spec.parse("int8/row/fp32"))
    model, x = torch.nn.Sequential(QLinear(weight, None, stage)), torch.randn(5, 32)
    expected = model(x)
    accelerate.cpu_offload(model, "cpu", offload_buffers=True)
    assert torch.equal(model(x), expected)
    assert steps.steps.is_meta


@pytest.mark.parametrize("ran", [False, True])
@pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
@pytest.mark.parametrize("disk", [False, True])
def test_group_offload(kind, disk, ran, tmp_path):
    model, control = tiny.quantized(PIXART), tiny.make(PIXART)
    if ran:
        tiny.run(model)
    for number, one in enumerate((control, model)):
        path = {"offload_to_disk_path": str(tmp_path / str(number))} if disk else {}
        own = copy.deepcopy(one)
        fall_back(own)
        before = tiny.run(own)
        one.enable_group_offload(offload_type=kind, **GROUPS, **path)
        for _ in range(2):  # a group of blocks is fused, of leaves falls back
            assert sqnr(before, tiny.run(one)) > (40 if kind == "block_level" else 120)


def test_a_moved_layer_computes_from_what_is_put_into_its_parameters():
    """Movers write into the parameters they know; none may be replaced behind their back."""
    model = tiny.quantized()
    known, expected = dict(model.named_parameters()), tiny.run(model)
    model.to(CPU)
    model.state_dict()
    tiny.run(model)
    assert all(parameter is known[name] for name, parameter in model.named_parameters())
    kept = {name: parameter.data for name, parameter in known.items()}
    for parameter in known.values():
        parameter.data = torch.empty_like(parameter.data)
    for name, parameter in known.items():
        parameter.data = kept[name].clone()
    assert torch.equal(tiny.run(model), expected)
