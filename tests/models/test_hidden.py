"""Convolutions of one pixel and tables of matrices are linears while they are shown."""

import copy
import pickle

import own_transformer
import pytest
import torch
from torch import nn

from fewbit.formats import FORMATS, QTensor, Spec
from fewbit.layers.dequantize import to_linear
from fewbit.layers.linear import QLinear
from fewbit.models.hidden import Pointwise, hide, is_pointwise, show_at, shown


class Block(nn.Module):
    """Attends, so to say, and has a convolution of one pixel and a table of matrices."""

    def __init__(self, convolution):
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.mix = convolution
        self.table = nn.Parameter(torch.randn(3, 8, 16))
        self.after = nn.Parameter(torch.randn(2, 2))

    def forward(self, x):
        return self.mix(x)


class Model(nn.Module):
    def __init__(self, convolution=None):
        super().__init__()
        self.blocks = nn.ModuleList([Block(convolution or nn.Conv2d(8, 12, 1))])
        self.patch = nn.Conv2d(3, 8, 1)


@pytest.mark.parametrize(
    ("convolution", "shape"),
    [
        (nn.Conv1d(8, 12, 1), (2, 8, 5)),
        (nn.Conv2d(8, 12, 1, bias=False), (2, 8, 5, 3)),
        (nn.Conv2d(8, 12, 1), (8, 5, 3)),
        (nn.Conv3d(8, 12, 1), (2, 8, 2, 3, 4)),
    ],
)
def test_the_linear_of_a_convolution_gives_what_it_gives(convolution, shape):
    model, x = Model(convolution), torch.randn(shape)
    expected = model.blocks[0](x)
    with shown(model):
        assert isinstance(model.blocks[0].mix, Pointwise)
        assert model.blocks[0].mix.out_channels == 12  # as some forwards ask
        assert torch.allclose(model.blocks[0](x), expected, atol=1e-5)
    assert model.blocks[0].mix is convolution


@pytest.mark.parametrize(
    "other",
    [
        nn.Conv2d(8, 8, 1, groups=2),
        nn.Conv2d(8, 8, 3),
        nn.Conv2d(8, 8, 1, stride=2),
        nn.Conv2d(8, 8, 1, padding=1),
        nn.ConvTranspose2d(8, 8, 1),
        nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 1)),
    ],
)
def test_other_convolutions_are_none(other):
    assert not is_pointwise(other)


def test_each_way_of_reading_a_table_sees_its_numbers():
    model = Model()
    block, table = model.blocks[0], model.blocks[0].table.detach().clone()
    x, many = torch.randn(4, 8), torch.randn(3, 4, 8)
    with shown(model), torch.no_grad():
        assert block.table.shape == (3, 8, 16)
        assert len(block.table) == 3
        assert torch.equal(block.table[1:], table[1:])
        assert torch.equal(block.table.transpose(1, 2), table.transpose(1, 2))
        assert torch.equal(torch.bmm(many, block.table), torch.bmm(many, table))
        assert torch.equal(nn.functional.linear(x, block.table[0].T), x @ table[0])
        assert torch.equal(block.table[2] + 1, table[2] + 1)
        for product in (torch.matmul, torch.mm, torch.Tensor.matmul, lambda a, b: a @ b):
            heard = []
            hook = block.table_matrices[1].register_forward_hook(lambda *_, h=heard: h.append(1))
            for index in (1, torch.tensor(1)):
                assert torch.equal(product(x, block.table[index]), x @ table[1])
            hook.remove()
            assert heard == [1, 1]


def test_everything_is_as_it_was():
    model = Model()
    modules, state = list(model.modules()), dict(model.named_parameters())
    with shown(model):
        assert {*dict(model.named_parameters())} != {*state}
    after = dict(model.named_parameters())
    assert list(model.modules()) == modules
    assert list(after) == list(state)
    assert all(after[name] is state[name] for name in state)
    assert type(model.blocks[0]) is Block


def test_what_was_replaced_stays_and_goes_back_to_its_own_form():
    model = Model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with shown(model):
        for name in ("blocks.0.mix.linear", *(f"blocks.0.table_matrices.{i}" for i in range(3))):
            linear = model.get_submodule(name)
            packed = QTensor.quantize(linear.weight.detach(), Spec(FORMATS["int8"]))
            model.set_submodule(name, QLinear(packed, linear.bias, None))
    x = torch.randn(5, 8)
    rounded = model.blocks[0].mix.linear.effective_weight()
    assert torch.allclose(x @ model.blocks[0].table[1], x @ before["blocks.0.table"][1], atol=0.2)
    for again in (copy.deepcopy(model.blocks[0]), pickle.loads(pickle.dumps(model.blocks[0]))):
        assert torch.equal(x @ again.table[1], x @ model.blocks[0].table[1])
    for name, layer in list(model.named_modules()):
        if isinstance(layer, QLinear):
            model.set_submodule(name, to_linear(layer))
    hide(model)
    after = model.state_dict()
    assert {n: t.shape for n, t in after.items()} == {n: t.shape for n, t in before.items()}
    assert type(model.blocks[0].mix) is nn.Conv2d
    assert torch.equal(after["blocks.0.mix.weight"][:, :, 0, 0], rounded)
    assert torch.allclose(after["blocks.0.table"], before["blocks.0.table"], atol=0.05)


def test_only_what_may_be_a_block_is_shown():
    model = Model()
    with shown(model):
        assert type(model.patch) is nn.Conv2d


def test_one_can_be_shown_by_its_name():
    model = own_transformer.loom()
    assert show_at(model, "alone.0.table_matrices.2")
    for wrong in ("alone.0.table", "alone.0.merge", "nowhere.linear", "alone.0.nothing_matrices.0"):
        assert not show_at(model, wrong)
    hide(model)
    assert type(model.alone[0]) is own_transformer.Alone
