"""What depends on timestep and label alone is computed once, and never remembered wrongly."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.utils.parametrize import register_parametrization

import fewbit
from fewbit.layers.bind import bind, unbind
from fewbit.layers.modulation import remember


@pytest.fixture
def model(small) -> Any:
    made = small()
    fewbit.quantize(made, "rtn", progress=False)
    return made


class Counted:
    """Counts the calls of the forward of a module's class, of which it gets one of its own."""

    def __init__(self, module: nn.Module) -> None:
        self.calls, own = 0, type(module)

        def counting(module: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
            self.calls += 1
            return own.forward(module, *args, **kwargs)

        module.__class__ = type(own.__name__, (own,), {"forward": counting})


def counted(model: Any, module: nn.Module, **asked: int) -> Counted:
    """Of what is asked where nothing is remembered."""
    unbind(model)
    made = Counted(module)
    if asked:
        remember([module], **asked)
    bind(model)
    return made


def run(model: Any, step: int = 3, labels: tuple[int, ...] = (1, 10), seed: int = 0) -> Tensor:
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
    given = {"timestep": torch.tensor([step] * 2), "class_labels": torch.tensor(labels)}
    return model(x.to(model.dtype), **given).sample


def adaln(model: Any, block: int = 0) -> nn.Module:
    return model.transformer_blocks[block].norm1.linear


@torch.no_grad()
def test_the_same_bits_and_one_computation(model):
    unbind(model)
    plain = [run(model, step, seed=step) for step in (5, 3, 5, 3)]
    asked = counted(model, adaln(model))
    again = [run(model, step, seed=step) for step in (5, 3, 5, 3)]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(plain, again, strict=True))
    assert all(torch.equal(*pair) for pair in zip(again[:2], again[2:], strict=True))
    assert asked.calls == 2


@torch.no_grad()
def test_other_steps_labels_and_dtypes_are_other_inputs(model):
    asked = counted(model, adaln(model))
    for step, labels in ((5, (1, 10)), (6, (1, 10)), (5, (2, 10)), (5, (10, 1))):
        run(model, step, labels)
    assert asked.calls == 4
    run(model.bfloat16(), 5)
    assert asked.calls == 5


@torch.no_grad()
@pytest.mark.parametrize("of", ["linear.bias", "emb.class_embedder.embedding_table.weight"])
def test_changed_weights_are_noticed(model, of):
    before = run(model)
    model.transformer_blocks[0].norm1.get_parameter(of).add_(1.0)
    epilogue = run(model)
    assert not torch.equal(before, epilogue)
    unbind(model)
    assert torch.allclose(epilogue, run(model), atol=1e-5)


def test_nothing_is_remembered_while_training(model):
    asked = counted(model, adaln(model))
    run(model)
    run(model)
    assert asked.calls == 2
    model.train()
    with torch.no_grad():
        run(model)
        run(model)
    assert asked.calls == 4


@torch.no_grad()
def test_no_more_is_kept_than_allowed(model):
    run_bytes = adaln(model).out_features * 2 * 4
    asked = counted(model, adaln(model, 1), limit=4 * run_bytes)
    for step in range(10):
        run(model, step)
    assert asked.calls == 10
    run(model, 9)
    assert asked.calls == 10
    run(model, 0)
    assert asked.calls == 11


@torch.no_grad()
def test_blocks_that_share_an_embedder_share_its_result(model):
    unbind(model)
    first, second = (block.norm1.emb for block in model.transformer_blocks)
    for (name, mine), (_, theirs) in zip(
        list(second.named_parameters()), list(first.named_parameters()), strict=True
    ):
        parent, _, leaf = name.rpartition(".")
        setattr(second.get_submodule(parent), leaf, theirs)
        assert mine.shape == theirs.shape
    asked = counted(model, second)
    run(model)
    assert asked.calls == 0


def test_a_model_of_no_family_is_left_alone():
    model = nn.Identity()
    bind(model)
    unbind(model)
    assert type(model) is nn.Identity


@torch.no_grad()
@pytest.mark.parametrize("inner", ["", "timestep_embedder.linear_1"])
def test_a_forward_that_was_put_there_before_is_called_each_time_and_stays(model, inner):
    """accelerate brings offloaded weights in so, of a module or of what is inside it."""
    unbind(model)
    module = model.transformer_blocks[0].norm1.emb.get_submodule(inner)
    called, own = [], module.forward
    module.forward = lambda *args, **kwargs: (called.append(1), own(*args, **kwargs))[1]
    before = vars(module)["forward"]
    plain = run(model)
    bind(model)
    again = run(model)
    assert torch.allclose(again, plain, atol=1e-5)
    assert torch.equal(run(model), again)
    assert called == [1] * 6  # the model's tail asks the first block's too
    assert vars(module)["forward"] is before


def storages(*modules: nn.Module) -> list[StorageWeakRef]:
    """Where their weights are; these references keep nothing in memory."""
    tensors = [tensor for module in modules for tensor in module.parameters()]
    return [StorageWeakRef(tensor.untyped_storage()) for tensor in tensors]


@torch.no_grad()
@pytest.mark.parametrize("ran", [False, True])
def test_offloaded_weights_are_not_held(model, ran, tmp_path):
    """Of a module that has answered before, from its next call on."""
    accelerate = pytest.importorskip("accelerate")
    if ran:
        run(model)
    held = storages(adaln(model), model.transformer_blocks[0].norm1.emb)
    accelerate.disk_offload(model, tmp_path, "cpu")
    run(model)
    assert all(one.expired() for one in held)


@torch.no_grad()
@pytest.mark.parametrize("ran", [False, True])
def test_weights_that_were_moved_away_are_not_held(model, ran):
    emb = model.transformer_blocks[0].norm1.emb
    if ran:
        run(model)
    held = storages(emb)
    model.to("meta")
    if ran:
        emb(*torch.zeros(2, 1, dtype=torch.int64, device="meta"), torch.float32)
    assert all(one.expired() for one in held)


def _as_unbound(model: Any) -> None:
    ours = run(model)
    unbind(model)
    assert torch.allclose(ours, run(model), atol=1e-5)


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2


def _without_bias(block: Any) -> None:
    block.norm1.linear.bias = None


def _parametrized(block: Any) -> None:
    table = block.norm1.emb.class_embedder.embedding_table
    register_parametrization(table, "weight", Doubled())


def _written_to(block: Any) -> None:
    block.norm1.linear.register_forward_hook(lambda *given: given[2].mul_(1.5))


def _written_past_the_counters(block: Any) -> None:
    """As peft fuses adapters."""
    block.norm1.emb.class_embedder.embedding_table.weight.data += 1


CHANGES = (_without_bias, _parametrized, _written_to, _written_past_the_counters)


@torch.no_grad()
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_module_is_noticed(model, change):
    run(model)
    change(model.transformer_blocks[0])
    run(model)
    _as_unbound(model)


@torch.no_grad()
def test_new_weights_at_an_old_address_are_noticed(model):
    """Allocators like to give the place that was freed last."""
    table = model.transformer_blocks[0].norm1.emb.class_embedder.embedding_table
    first = table.weight.clone()
    for factor in range(3, 12, 2):
        run(model)
        table.weight = None
        table.weight = nn.Parameter(factor * first, requires_grad=False)
        again = run(model)
        unbind(model)
        assert torch.allclose(again, run(model), atol=1e-5)
        bind(model)


def test_what_inference_mode_remembered_may_be_written_to_outside(model):
    linear, x = adaln(model), torch.ones(2, 64)
    with torch.inference_mode():
        first = linear(x).clone()
    with torch.no_grad():
        linear(x).add_(1.0)
        assert torch.equal(linear(x), first)


@torch.no_grad()
def test_arguments_that_cannot_be_compared_are_not_remembered():
    module = Listed()
    remember([module])
    given = [1.0]
    assert module(given) == 1
    given[0] = 2.0
    assert module(given) == 2


class Listed(nn.Module):
    def forward(self, numbers: list[float]) -> Tensor:
        return torch.tensor(sum(numbers))
