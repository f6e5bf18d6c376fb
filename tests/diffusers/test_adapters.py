"""LoRA beside packed layers, asked of fewbit as of a model in full precision."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import pytest
import tiny_transformers as tiny
import torch
from small_models import FAMILIES, arguments, make
from torch import Tensor, nn

import fewbit
from fewbit.errors import BadArgument, BadModel
from fewbit.layers.adapters import inner_layer
from fewbit.layers.bind import unbind
from fewbit.layers.linear import QLinear
from fewbit.storage.blueprint import quantized_layers

diffusers = pytest.importorskip("diffusers")
peft = pytest.importorskip("peft")

FLUX, SD3, PIXART, DIT = (f"{name}Transformer2DModel" for name in ("Flux", "SD3", "PixArt", "DiT"))
LAYERS = ["to_q", "to_v", "to_out.0", "net.0.proj", "proj_out", "linear"]  # packed ones, plain ones


def packed(family: str = FLUX, bits: str = "w4a4") -> Any:
    model = make(family)
    fewbit.quantize(model, "rtn", bits=bits, progress=False)
    return model


def lora(**changes: Any) -> Any:
    torch.manual_seed(0)
    given = {"r": 4, "target_modules": LAYERS, "init_lora_weights": False, **changes}
    return peft.LoraConfig(**given)


def adapt(model: Any, name: str = "a", **changes: Any) -> Any:
    """As `add_adapter` does; diffusers' DiT has no such method."""
    peft.inject_adapter_in_model(lora(**changes), model, name)
    model._hf_peft_config_loaded = True
    return model


def draw(model: Any, family: str = FLUX) -> Tensor:
    with torch.no_grad():
        return model(**arguments(family, 2))[0]


def adapted_layer(model: nn.Module) -> Any:
    return next(
        module
        for module in model.modules()
        if inner_layer(module) is not module and isinstance(inner_layer(module), QLinear)
    )


def test_a_layer_adds_what_its_adapters_make_of_the_unrounded_input():
    model = adapt(adapt(packed()), "b", r=2)
    layer = adapted_layer(model)
    model.set_adapters(["a", "b"], [0.5, -2.0])
    x = torch.randn(3, layer.in_features)
    with torch.no_grad():
        expected = layer.base_layer(x)
        for name, weight in (("a", 0.5 * 8 / 4), ("b", -2.0 * 8 / 2)):
            expected = expected + layer.lora_B[name](layer.lora_A[name](x)) * weight
        assert torch.equal(layer(x), expected)


def test_adapters_have_the_dtype_of_the_model():
    model = make(FLUX).bfloat16()
    fewbit.quantize(model, "rtn", bits="w4a4", progress=False)
    layer = adapted_layer(adapt(model))
    assert layer.lora_A["a"].weight.dtype == layer.lora_B["a"].weight.dtype == torch.bfloat16
    assert layer(torch.randn(3, layer.in_features).bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("how", ["quantized", "cast", "loaded by fewbit", "loaded by diffusers"])
def test_layers_without_bias_have_the_dtype_of_the_model_too(how: str, tmp_path: Path):
    model = tiny.make(PIXART, attention_bias=False)
    model.to(torch.float32 if how == "cast" else torch.bfloat16)
    fewbit.quantize(model, "rtn", bits="w4a4", progress=False)
    if how == "cast":
        model.bfloat16()
    if how.startswith("loaded"):
        model.save_pretrained(tmp_path)
        ours = how.endswith("fewbit")
        kind = {"torch_dtype": torch.bfloat16}
        model = fewbit.load(tmp_path) if ours else type(model).from_pretrained(tmp_path, **kind)
    layer = adapted_layer(adapt(model, target_modules=["to_q"]))
    assert layer.base_layer.bias is None
    assert layer.base_layer.weight.dtype == torch.bfloat16
    assert layer.lora_A["a"].weight.dtype == layer.lora_B["a"].weight.dtype == torch.bfloat16
    seen = []
    layer.lora_A["a"].register_forward_pre_hook(lambda _, given: seen.append(given[0].dtype))
    layer(torch.randn(3, layer.in_features).bfloat16())
    assert seen == [torch.bfloat16]


@pytest.mark.parametrize("family", [FLUX, PIXART])
def test_adapters_of_an_offloaded_model(family: str):
    model = adapt(packed(family), target_modules=["to_q", "to_v", "net.2"])
    unbind(model)  # what is offloaded falls back to its own forward
    expected = draw(model, family)
    accelerate.cpu_offload(model, "cpu")
    layer = adapted_layer(model)
    assert layer.base_layer.codes.is_meta
    assert layer.lora_A["a"].weight.is_meta
    for _ in range(2):
        assert torch.equal(draw(model, family), expected)
    assert layer.base_layer.codes.is_meta


@pytest.mark.parametrize("family", FAMILIES)
def test_taking_adapters_off_leaves_the_same_bits(family):
    model = packed(family)
    before, state = draw(model, family), model.state_dict()
    adapt(adapt(model), "b")
    assert not torch.allclose(draw(model, family), before)
    diffusers.utils.recurse_remove_peft_layers(model)
    assert torch.equal(draw(model, family), before)
    after = model.state_dict()
    assert list(after) == list(state)
    assert all(torch.equal(after[name], state[name]) for name in state)


@pytest.mark.parametrize("family", [FLUX, SD3])
def test_several_adapters_are_weighed_switched_off_and_deleted(family):
    model = packed(family)
    unbind(model)  # an adapter puts layers back to their own forwards, which differ in last bits
    plain = draw(model, family)
    model.add_adapter(lora(), "a")
    one = draw(model, family)
    model.add_adapter(lora(r=2), "b")
    model.set_adapters(["a", "b"], [1.0, 0.0])
    assert torch.equal(draw(model, family), one)
    model.set_adapters(["a", "b"], [0.0, 0.0])
    assert torch.equal(draw(model, family), plain)
    model.set_adapters(["a", "b"])
    assert not torch.allclose(draw(model, family), one)
    model.disable_lora()
    assert torch.equal(draw(model, family), plain)
    model.enable_lora()
    model.delete_adapters("b")
    model.set_adapters("a")
    assert torch.equal(draw(model, family), one)


@pytest.mark.parametrize("family", [FLUX, SD3, PIXART])
def test_an_adapter_changes_the_output_as_it_changes_that_of_the_control(family):
    changes = []
    for model in (make(family), packed(family, "w8a8")):
        before = draw(model, family)
        adapt(model, target_modules=["to_q", "to_v", "net.2"])
        changes.append((draw(model, family) - before).flatten())
    assert torch.cosine_similarity(*changes, dim=0) > 0.95


def gradients(model: Any, family: str) -> dict[str, Tensor]:
    adapt(model, target_modules=["to_q", "to_v", "net.2"])
    model(**arguments(family, 2))[0].square().mean().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("family", [FLUX, SD3, PIXART])
def test_adapters_of_all_blocks_get_the_gradients_of_the_control(family):
    """Those of the first block come through all the rounded inputs behind it."""
    control, ours = gradients(make(family), family), gradients(packed(family, "w8a8"), family)
    assert ours.keys() == control.keys()
    assert all("lora_" in name for name in ours)
    for name, expected in control.items():
        alike = torch.cosine_similarity(ours[name].flatten(), expected.flatten(), dim=0)
        assert alike > 0.9, name


def test_training_an_adapter_brings_the_model_to_its_target():
    model = packed()
    with torch.no_grad():
        target = make(FLUX)(**arguments(FLUX, 2))[0]
    model.add_adapter(lora(init_lora_weights=True))
    trained = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(30):
        loss = (model(**arguments(FLUX, 2))[0] - target).square().mean()
        trained.zero_grad()
        loss.backward()
        trained.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


class Beside(nn.Module):
    """An adapter of one's own, as training scripts write it."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer
        self.down = nn.Linear(layer.in_features, 4, bias=False)
        self.up = nn.Linear(4, layer.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.up(self.down(x))


def test_adapters_of_ones_own_are_trained_under_autocast():
    model = packed()
    model.requires_grad_(False)
    mine = []
    for name in quantized_layers(model):
        if name.endswith(("to_q", "to_k", "to_v")):
            mine.append(Beside(model.get_submodule(name)))
            model.set_submodule(name, mine[-1])
    with torch.autocast("cpu", torch.bfloat16):
        model(**arguments(FLUX, 2))[0].norm().backward()
    assert all(bool(one.up.weight.grad.norm() > 0) for one in mine)


def pipeline(family: str, model: Any) -> Any:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    if family == FLUX:
        return diffusers.FluxPipeline(scheduler, None, None, None, None, None, model)
    return diffusers.StableDiffusion3Pipeline(model, scheduler, *[None] * 7)


@pytest.mark.parametrize("control", [False, True])
@pytest.mark.parametrize("family", [FLUX, SD3])
def test_a_pipeline_saves_and_loads_adapters(family: str, control: bool, tmp_path: Path):
    model = make(family) if control else packed(family)
    plain, pipe = draw(model, family), pipeline(family, model)
    model.add_adapter(lora(lora_alpha=4))
    adapted = draw(model, family)
    layers = peft.get_peft_model_state_dict(model)
    pipe.save_lora_weights(tmp_path, transformer_lora_layers=layers)
    pipe.unload_lora_weights()
    pipe.load_lora_weights(tmp_path, adapter_name="first")
    assert torch.equal(draw(model, family), adapted)
    pipe.load_lora_weights(tmp_path, adapter_name="second")
    assert set(pipe.get_list_adapters()["transformer"]) == {"first", "second"}
    pipe.set_adapters(["first", "second"], [0.25, 0.75])
    assert torch.allclose(draw(model, family), adapted, rtol=1e-4, atol=1e-4)
    pipe.delete_adapters(["second"])
    pipe.unload_lora_weights()
    assert torch.equal(draw(model, family), plain)


@pytest.mark.parametrize("family", [FLUX, SD3])
def test_a_transformer_saves_and_loads_adapters(family: str, tmp_path: Path):
    model = packed(family)
    model.add_adapter(lora())
    adapted = draw(model, family)
    model.save_lora_adapter(tmp_path)
    assert model.is_quantized
    other = packed(family)
    other.load_lora_adapter(tmp_path, prefix=None, use_safetensors=True)
    assert torch.equal(draw(other, family), adapted)
    assert type(adapted_layer(other)) is type(adapted_layer(model))


@pytest.mark.parametrize(
    "fuse",
    [
        lambda model: model.fuse_lora(),
        lambda model: model.fuse_lora(lora_scale=0.5, safe_fusing=True),
        lambda model: pipeline(FLUX, model).fuse_lora(),
        lambda model: adapted_layer(model).merge(),
    ],
)
def test_fusing_is_refused_and_has_changed_nothing(fuse: Callable[[Any], None]):
    model = packed()
    plain = draw(model)
    model.add_adapter(lora())
    adapted = draw(model)
    with pytest.raises(BadModel, match="cannot be fused into quantized weights"):
        fuse(model)
    assert torch.equal(draw(model), adapted)
    model.unload_lora()
    assert torch.equal(draw(model), plain)


def test_a_wrapped_model_refuses_to_be_merged():
    wrapped = peft.get_peft_model(packed(), lora())
    with pytest.raises(BadModel, match="cannot be fused into quantized weights"):
        wrapped.merge_and_unload()


def test_after_dequantizing_adapters_can_be_fused():
    model = packed(bits="w4a16")
    model.add_adapter(lora())
    adapted = draw(model)
    fewbit.dequantize(model)
    model.fuse_lora()
    assert torch.allclose(draw(model), adapted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"use_dora": True}, "use_dora=True needs weights in full precision"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' needs weights in full"),
    ],
)
def test_kinds_of_adapters_that_need_the_weight_are_refused(option: Any, said: str):
    model = packed()
    with pytest.raises(BadArgument, match=said):
        model.add_adapter(lora(**option))
    assert not any(isinstance(module, peft.tuners.lora.LoraLayer) for module in model.modules())


def test_other_layers_of_peft_are_refused_in_its_own_words():
    with pytest.raises((TypeError, ValueError), match=r"QLinear.* not supported"):
        packed().add_adapter(peft.LoKrConfig(r=4, target_modules=LAYERS))


@pytest.mark.parametrize("deleted", [False, True])
def test_an_adapted_model_is_not_saved(deleted: bool, tmp_path: Path):
    model = packed()
    model.add_adapter(lora())
    if deleted:
        model.delete_adapters("default")
    for save in (fewbit.save, lambda model, path: model.save_pretrained(path)):
        with pytest.raises(BadModel, match=r"carries adapters .* cannot be saved with them; take"):
            save(model, tmp_path / "out")
    model.unload_lora()
    fewbit.save(model, tmp_path / "bare")
    assert torch.equal(draw(fewbit.load(tmp_path / "bare")), draw(model))


def test_an_adapted_model_is_not_quantized():
    model = make(FLUX)
    model.add_adapter(lora())
    with pytest.raises(BadModel, match=r"carries adapters \(default\) and cannot be quantized"):
        fewbit.quantize(model, "rtn", progress=False)


def test_inspect_sees_the_layers_inside():
    model = packed()
    bare = fewbit.inspect(model)
    adapt(model)
    seen = fewbit.inspect(model)
    assert [one.status for one in seen.layers] == [one.status for one in bare.layers]
    assert [one.weight for one in seen.layers] == [one.weight for one in bare.layers]
    assert seen.adapters == ("a",)
    assert ", with a\n" in str(seen)
    parameters = (p for name, p in model.named_parameters() if "lora_" in name)
    assert seen.bytes == bare.bytes + sum(p.nbytes for p in parameters)


@pytest.mark.parametrize("family", [DIT, PIXART])
def test_quick_paths_leave_adapted_blocks_alone(family):
    model = packed(family)
    adapt(model, target_modules=r".*blocks\.1\..*(to_q|linear|net\.2|linear_1)")
    bound = draw(model, family)
    unbind(model)
    assert torch.allclose(bound, draw(model, family), rtol=1e-4, atol=1e-4)


def test_what_an_adapter_adds_to_a_modulation_is_not_remembered():
    model = adapt(packed(DIT), target_modules=["norm1.linear", "linear_1"])
    full = draw(model, DIT)
    for module in model.modules():
        if inner_layer(module) is not module:
            module.set_scale("a", 0.0)
    assert not torch.allclose(draw(model, DIT), full)
