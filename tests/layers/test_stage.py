"""One computation for all consumers of a tensor, and never a stale one."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from fewbit.activations.dynamic import Dynamic
from fewbit.errors import BadArgument, BrokenFile
from fewbit.formats import Spec
from fewbit.kernels.choose import BACKENDS
from fewbit.layers.stage import InputStage


class Counting(nn.Module):
    """Something whose answer depends on more than its input."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.shift = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x + 1 + self.shift

    def coder(self, backend: object, rotation: None) -> "Counting":
        return self

    def extra_repr(self) -> str:
        return "counting"


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


class Shared:
    """A stage as its consumers see it."""

    def __init__(self) -> None:
        self.stage = InputStage(activation=Counting())
        self.activation = self.stage.activation
        self.codes = {one: self.stage.shared(BACKENDS[-1], one) for one in (Q, K, V)}

    def __call__(self, x: Tensor, consumer: object) -> Tensor:
        return self.codes[consumer](x)

    @property
    def last(self) -> object:
        return self.stage._shared.last


Q, K, V = object(), object(), object()


@pytest.fixture
def stage():
    return Shared()


def test_three_consumers_of_one_tensor_make_one_computation(stage):
    x = torch.randn(2, 4)
    results = [stage(x, consumer) for consumer in (Q, K, V)]
    assert stage.activation.calls == 1
    assert all(result is results[0] for result in results)


def test_a_consumer_that_comes_again_gets_a_new_computation(stage):
    """The same object at the next timestep, with new parameters, or inside a captured graph."""
    x = torch.zeros(1)
    assert [stage(x, Q).item(), stage(x, K).item()] == [1, 1]
    stage.activation.shift.data += 5
    assert [stage(x, Q).item(), stage(x, K).item()] == [6, 6]
    assert stage.activation.calls == 2


def test_a_lone_consumer_is_computed_for_and_keeps_nothing():
    stage, x = InputStage(activation=Counting()), torch.zeros(1)
    alone = stage.shared(BACKENDS[-1], Q)
    alone(x)
    alone(x)
    stage(x)
    assert stage.activation.calls == 3
    assert stage._shared.last is None


def test_an_input_that_was_written_to_is_a_new_input(stage):
    x = torch.zeros(1)
    stage(x, Q)
    x.add_(1)
    assert stage(x, K).item() == 2
    x[0] = 7  # through a view
    assert stage(x, V).item() == 8


def test_inference_tensors_cannot_tell_and_are_always_computed(stage):
    with torch.inference_mode():
        x = torch.zeros(1)
        stage(x, Q)
        x.add_(1)
        assert stage(x, K).item() == 2


def test_a_new_tensor_at_an_old_address_is_a_new_input(stage):
    for value in range(50):
        x = torch.full((1,), float(value))
        for consumer in (Q, K):
            assert stage(x, consumer).item() == value + 1
    assert stage.activation.calls == 50


def test_an_equal_tensor_is_another_tensor(stage):
    x = torch.zeros(1)
    stage(x, Q)
    stage(x.clone(), K)
    assert stage.activation.calls == 2


def test_with_gradients_every_consumer_has_a_graph_of_its_own(stage):
    x = torch.zeros(1)
    stage(x, Q)
    with torch.enable_grad():
        for consumer in (K, V):
            stage(x, consumer).sum().backward()
    assert stage.activation.shift.grad.item() == 2


def test_nothing_is_kept_when_all_have_had_it(stage):
    x = torch.zeros(1)
    stage(x, Q)
    stage(x, K)
    assert stage.last.x() is x
    stage(x, V)
    assert stage.last is None


def test_nothing_outlives_the_input(stage):
    """A consumer may never come: an adapter casts its input, a layer was exchanged."""
    x = torch.zeros(1)
    stage(x, Q)
    assert stage.last is not None
    del x
    assert stage.last is None


def test_a_consumer_that_leaves_is_not_waited_for_and_may_come_back(stage):
    stage.stage.unshare(K)
    again = stage.stage.shared(BACKENDS[-1], K)
    x = torch.zeros(1)
    for codes in (stage.codes[Q], again, stage.codes[V]):
        codes(x)
    assert stage.activation.calls == 1
    for consumer in (Q, K, V):
        stage.stage.unshare(consumer)
    assert stage.stage._shared is None


@pytest.mark.parametrize("again", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_starts_afresh(stage, again):
    x = torch.zeros(1)
    stage(x, Q)
    assert again(stage.stage)._shared is None
    assert stage.last is not None


def test_nothing_to_do_gives_the_input_itself():
    x = torch.zeros(1)
    assert torch.equal(InputStage()(x), x[None])
    assert str(InputStage()) == ""


def test_config_there_and_back():
    stage = InputStage(activation=Dynamic(Spec.parse("e2m1/g16/e4m3row")))
    again = InputStage.from_config(stage.config())
    assert stage.config() == again.config()
    assert str(again) == "e2m1/g16/e4m3row"
    assert InputStage.from_config({}).config() == {}


def test_an_unknown_kind_names_the_known():
    with pytest.raises(BrokenFile, match=r"unknown kind 'psychic' in activations.*dynamic"):
        InputStage.from_config({"activation": {"kind": "psychic"}})


@pytest.mark.parametrize("text", ["int8/tensor/fp32", "e2m1/g16/e4m3"])
def test_a_range_for_the_whole_batch_is_refused(text):
    with pytest.raises(BadArgument, match="batch mates"):
        Dynamic(Spec.parse(text))


@pytest.mark.parametrize(
    "text", ["int8/row/fp32", "e2m1/g16/e4m3row", "e2m1/g32/e8m0", "uint8/row/fp32"]
)
class TestDynamic:
    def test_every_token_is_rounded_by_its_own_range(self, text):
        x = torch.randn(2, 3, 32) * torch.tensor([1.0, 10.0, 100.0])[:, None]
        together = Dynamic(Spec.parse(text))(x)
        alone = [Dynamic(Spec.parse(text))(token[None, None]) for token in x.flatten(0, 1)]
        assert torch.equal(together, torch.cat(alone).view(2, 3, 32))

    @pytest.mark.parametrize("shape", [(32,), (0, 32), (2, 0, 32), (2, 3, 4, 32)])
    def test_any_number_of_dimensions(self, text, shape):
        assert Dynamic(Spec.parse(text))(torch.ones(shape)).shape == shape

    @pytest.mark.parametrize("lost", [torch.nan, torch.inf])
    def test_a_lost_token_is_lost_alone(self, text, lost):
        x = torch.ones(3, 32)
        x[1, 5] = lost
        assert Dynamic(Spec.parse(text))(x).isnan().any(1).tolist() == [False, True, False]
