"""A format is one value: two that are defined here pass through everything, unknown to the rest."""

from dataclasses import dataclass

import pytest
import torch
from small_dit import run

import fewbit
from fewbit.errors import BadArgument
from fewbit.formats import FORMATS, Format, Spec, format_named, register
from fewbit.kernels import choose
from fewbit.layers.linear import QLinear
from fewbit.methods import rtn
from fewbit.methods.method import Method, Rule

NORMAL = (
    *(-1.0, -0.6961928, -0.52507305, -0.39491748, -0.28444138, -0.18477343, -0.09105004, 0.0),
    *(0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.5626170, 0.72295684, 1.0),
)


@dataclass(frozen=True)
class Listed(Format):
    """Levels in the order of their codes, the last again for codes that are left."""

    title: str
    values: tuple[float, ...]

    @property
    def name(self):
        return self.title

    @property
    def bits(self):
        return (len(self.values) - 1).bit_length()

    def code_values(self):
        return self.values + self.values[-1:] * ((1 << self.bits) - len(self.values))


NF4 = Listed("nf4", NORMAL)  # its levels are no multiples of anything
FIVE = Listed("five", (-12.0, -1.0, 0.0, 2.0, 12.0))  # integers, but of no usual format


@pytest.fixture(autouse=True)
def known():
    for fmt in (NF4, FIVE):
        register(fmt)
    yield
    for fmt in (NF4, FIVE):
        del FORMATS[fmt.name]


def test_they_are_exact_as_integers_only_if_they_are_integers():
    assert not NF4.exact_in(8)
    assert FIVE.exact_in(8)
    assert not FIVE.exact_in(4)


def test_a_name_is_given_once():
    register(NF4)
    assert format_named("nf4") is NF4
    with pytest.raises(BadArgument, match="there is a format called 'nf4' already"):
        register(Listed("nf4", NORMAL[:8]))
    with pytest.raises(BadArgument, match="there is a format called 'int8' already"):
        register(Listed("int8", NORMAL))


BACKENDS = [one.name for one in choose.BACKENDS if one.why_not(torch.device("cpu")) is None]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("activation", [None, "int8", "five"])
@pytest.mark.parametrize("span", ["row", "tensor", 8])
@pytest.mark.parametrize("fmt", [NF4, FIVE], ids=str)
def test_they_are_quantized_saved_loaded_and_multiplied_as_defined(
    small, tmp_path, monkeypatch, fmt, span, activation, backend
):
    model = small()
    weight = Spec(fmt, span)
    rule = Rule(weight, None if activation is None else Spec(format_named(activation)))
    method = Method("new", "", {"w": rule}, rtn.Settings, lambda _, variant, __: variant, rtn.solve)
    fewbit.quantize(model, method, progress=False)
    fewbit.save(model, tmp_path / "m")
    loaded = fewbit.load(tmp_path / "m")
    layer = loaded.get_submodule("transformer_blocks.0.ff.net.2")
    assert isinstance(layer, QLinear)
    assert layer.spec == weight
    source = small().get_submodule("transformer_blocks.0.ff.net.2").weight.detach()
    assert torch.equal(layer.packed_weight.dequantize(), weight.round(source))
    monkeypatch.setenv(choose.VARIABLE, backend)
    assert torch.equal(run(model), run(loaded))
    x = torch.randn(5, layer.in_features, generator=torch.Generator().manual_seed(1))
    found = layer(x)
    monkeypatch.setenv(choose.VARIABLE, "reference")
    defined = layer(x)
    if fmt is FIVE and activation and span != 8:
        assert torch.equal(found, defined)
    tolerance = 1e-6 * float(defined.abs().max())  # the bound of float32 sums in another order
    torch.testing.assert_close(found, defined, rtol=0, atol=tolerance)
