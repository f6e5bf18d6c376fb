"""k-means: against a reckoning by hand, what weights do to it, and degenerate matrices."""

import pytest
import torch
from torch import Generator

from fewbit.engine.decibel import sqnr
from fewbit.errors import BadArgument
from fewbit.formats import Spec
from fewbit.formats.codebook import nearest
from fewbit.rounding import vector
from fewbit.rounding.vector import Units, k_means, sums_of, vector_quantize


def generator(seed=0):
    return Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed))


def error(vectors, centres, importance=1.0):
    codes = nearest(vectors, centres)[0]
    return float(((vectors - centres[codes]).square() * importance).sum())


def test_separated_clusters_are_found():
    centres = 10 * normal(8, 4)
    vectors = centres.repeat(50, 1) + 0.01 * normal(400, 4, seed=1)
    found = k_means(vectors, 8, generator())
    gaps = torch.cdist(centres, found)
    assert gaps.min(1).values.max() < 0.01
    assert sorted(gaps.argmin(1).tolist()) == list(range(8))


def test_a_round_is_the_means_of_the_nearest(monkeypatch):
    monkeypatch.setattr(vector, "ROUNDS", 1)
    vectors, weigh = normal(200, 2), normal(200, 2, seed=1).square() + 0.1
    start = vector._seeding(vectors, weigh, 5, generator())
    codes = nearest(vectors, start, weigh)[0]
    expected = torch.stack(
        [(vectors * weigh)[codes == one].sum(0) / weigh[codes == one].sum(0) for one in range(5)]
    )
    assert torch.allclose(vector._lloyd(vectors, start, weigh)[0], expected, atol=1e-5)


def test_rounds_only_help():
    vectors = normal(2000, 4)
    centres = vector._seeding(vectors, None, 32, generator())
    errors = []
    for _ in range(10):
        centres, lost = vector._lloyd(vectors, centres, None)
        errors.append(lost)
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.9 * errors[0]


def test_a_centre_that_nobody_chose_takes_the_place_of_the_worst_served():
    vectors = torch.tensor([[0.0], [1.0], [2.0], [50.0]])
    centres = torch.tensor([[1.0], [1000.0]])
    means, _ = vector._lloyd(vectors, centres, None)
    assert means.flatten().tolist() == [13.25, 50.0]
    assert k_means(vectors, 2, generator()).sort(0).values.flatten().tolist() == [1.0, 50.0]


def test_sums_by_code():
    codes = torch.tensor([0, 2, 2])
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    assert sums_of(codes, values, 4).tolist() == [[1, 2], [0, 0], [8, 10], [0, 0]]


@pytest.mark.parametrize("span", ["tensor", "row"])
def test_moments_make_loud_inputs_exact(span):
    weight, moments = normal(64, 64), torch.ones(64)
    moments[::8] = 100
    spec = Spec.parse(f"vq64x4/{span}/fp16")
    plain, aware = (
        vector_quantize(weight, spec, 0, given).dequantize() for given in (None, moments)
    )
    x = normal(500, 64, seed=2) * moments.sqrt()
    assert sqnr(x @ weight.T, x @ aware.T) > sqnr(x @ weight.T, x @ plain.T) + 3
    assert sqnr(weight, aware) < sqnr(weight, plain)


def test_row_scales_help_rows_of_unequal_size():
    weight = normal(64, 64) * torch.logspace(-2, 0, 64)[:, None]
    rows, tensor = (
        vector_quantize(weight, Spec.parse(f"vq64x4/{span}/fp16"), 0).dequantize()
        for span in ("row", "tensor")
    )
    small = slice(0, 32)
    assert sqnr(weight[small], rows[small]) > sqnr(weight[small], tensor[small]) + 3


def test_a_silent_channel_still_counts():
    weight, moments = normal(32, 32), torch.ones(32)
    moments[5] = 0
    spec = Spec.parse("vq16x4/row/fp16")
    units = Units.of(weight, spec, spec.load(vector._scales(weight, spec)), moments)
    assert units.importance.min() > 0


def test_the_same_twice_and_another_seed_another_codebook():
    spec = Spec.parse("vq64x4/row/fp16")
    one, same, other = (vector_quantize(normal(64, 64), spec, seed) for seed in (0, 0, 1))
    assert torch.equal(one.packed, same.packed)
    assert torch.equal(one.scales.codebook, same.scales.codebook)
    assert not torch.equal(one.scales.codebook, other.scales.codebook)


def test_a_large_matrix_is_clustered_by_a_sample_nearly_as_well(monkeypatch):
    vectors = normal(1 << 15, 4)
    sampled = error(vectors, k_means(vectors, 64, generator()))
    monkeypatch.setattr(vector, "SAMPLE", 1 << 15)
    whole = error(vectors, k_means(vectors, 64, generator()))
    assert whole < sampled < 1.04 * whole


@pytest.mark.parametrize("value", [0.0, 1.0, -3e-8, 7e4])
def test_equal_weights_are_kept(value):
    weight = torch.full((16, 16), value)
    packed = vector_quantize(weight, Spec.parse("vq16x4/row/fp32"), 0)
    assert torch.allclose(packed.dequantize(), weight, rtol=1e-3)


def test_more_entries_than_vectors():
    weight = normal(2, 8)
    packed = vector_quantize(weight, Spec.parse("vq16x4/tensor/fp32"), 0)
    assert torch.allclose(packed.dequantize(), weight, rtol=1e-3)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_no_number_is_refused(bad):
    weight = normal(16, 16)
    weight[3, 3] = bad
    with pytest.raises(BadArgument, match="NaN or infinity"):
        vector_quantize(weight, Spec.parse("vq16x4/row/fp32"), 0)
