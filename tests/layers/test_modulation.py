"""What depends on timestep and label alone is computed once, and never remembered wrongly."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fewbit
from fewbit.layers.modulation import remembered


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


def run(model: Any, step: int = 3, labels: tuple[int, ...] = (1, 10), seed: int = 0) -> Tensor:
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
    given = {"timestep": torch.tensor([step] * 2), "class_labels": torch.tensor(labels)}
    return model(x.to(model.dtype), **given).sample


def adaln(model: Any, block: int = 0) -> nn.Module:
    return model.transformer_blocks[block].norm1.linear


@torch.no_grad()
def test_the_same_bits_and_one_computation(model):
    plain = [run(model, step, seed=step) for step in (5, 3, 5, 3)]
    counted = Counted(adaln(model))
    with remembered(model):
        again = [run(model, step, seed=step) for step in (5, 3, 5, 3)]
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
    assert counted.calls == 2
    assert "forward" not in vars(model.transformer_blocks[1].norm1.emb)


@torch.no_grad()
def test_other_steps_labels_and_dtypes_are_other_inputs(model):
    counted = Counted(adaln(model))
    with remembered(model):
        for step, labels in ((5, (1, 10)), (6, (1, 10)), (5, (2, 10)), (5, (10, 1))):
            run(model, step, labels)
        assert counted.calls == 4
        run(model.bfloat16(), 5)
    assert counted.calls == 5


@torch.no_grad()
def test_changed_weights_are_noticed(model):
    with remembered(model):
        before = run(model)
        adaln(model).bias.add_(1.0)
        after = run(model)
    assert not torch.equal(before, after)
    assert torch.equal(after, run(model))
    with remembered(model):
        run(model)
        model.transformer_blocks[0].norm1.emb.class_embedder.embedding_table.weight.mul_(2)
        changed = run(model)
    assert torch.equal(changed, run(model))


def test_nothing_is_remembered_while_training(model):
    counted = Counted(adaln(model))
    with remembered(model):
        run(model)
        run(model)
        assert counted.calls == 2
        model.train()
        with torch.no_grad():
            run(model)
            run(model)
    assert counted.calls == 4


@torch.no_grad()
def test_no_more_is_kept_than_allowed(model):
    run_bytes = adaln(model).out_features * 2 * 4
    counted = Counted(adaln(model, 1))
    with remembered(model, limit=4 * run_bytes):
        for step in range(10):
            run(model, step)
        assert counted.calls == 10
        run(model, 9)
        assert counted.calls == 10
        run(model, 0)
        assert counted.calls == 11


@torch.no_grad()
def test_blocks_that_share_an_embedder_share_its_result(model):
    first, second = (block.norm1.emb for block in model.transformer_blocks)
    for (name, mine), (_, theirs) in zip(
        list(second.named_parameters()), list(first.named_parameters()), strict=True
    ):
        parent, _, leaf = name.rpartition(".")
        setattr(second.get_submodule(parent), leaf, theirs)
        assert mine.shape == theirs.shape
    counted = Counted(second)
    with remembered(model):
        run(model)
    assert counted.calls == 0


def test_a_model_of_no_family_is_left_alone():
    with remembered(nn.Identity()), torch.no_grad():
        pass


@torch.no_grad()
@pytest.mark.parametrize("inner", ["", "timestep_embedder.linear_1"])
def test_a_forward_that_was_put_there_before_is_called_each_time_and_stays(model, inner):
    """accelerate brings offloaded weights in so, of a module or of what is inside it."""
    module = model.transformer_blocks[0].norm1.emb.get_submodule(inner)
    called, own = [], module.forward
    module.forward = lambda *args, **kwargs: (called.append(1), own(*args, **kwargs))[1]
    before = vars(module)["forward"]
    plain = run(model)
    with remembered(model):
        assert torch.equal(run(model), plain)
        assert torch.equal(run(model), plain)
    assert called == [1] * 6  # the model's tail asks the first block's too
    assert vars(module)["forward"] is before
