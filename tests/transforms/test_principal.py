"""Directions of an input: the law, whatever they are, and that the strongest ones are found."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from fewbit.errors import BadArgument, BrokenFile
from fewbit.transforms.principal import Principal, principal, stored_bytes, strongest


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def integers(rank, width):
    generator = torch.Generator().manual_seed(3)
    return torch.randint(-31, 32, (rank, width), generator=generator, dtype=torch.int8)


def orthonormal(width):
    return torch.linalg.qr(normal(width, width, seed=9)).Q


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 4))
def test_the_product_is_unchanged_whatever_the_directions(width, rank, tokens):
    """Neither orthogonal nor equally long, and the components are rounded to whole numbers."""
    parts = Principal(integers(min(rank, width), width))
    x, weight = 100 * normal(tokens, width), normal(5, width, seed=1)
    components = (x @ normal(width, parts.rank, seed=2)).round()
    rest = x - components @ parts.directions.double()
    assert_close(rest @ weight.T + components @ parts(weight).T, x @ weight.T)


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 30), st.integers(1, 8))
def test_where_nothing_is_rounded_the_parts_are_joined_to_the_weight(width, rank):
    parts = Principal(integers(min(rank, width), width))
    x, weight = normal(7, width), normal(5, width, seed=1)
    main, side = weight + normal(5, width, seed=4), normal(5, parts.rank, seed=5)
    together = parts.rest(x) @ main.T + parts.components(x) @ side.T
    assert_close(x @ parts.joined(main, side).T, together)
    assert_close(parts.joined(weight, parts(weight)), weight)


@pytest.mark.parametrize("width", [12, 96])
def test_the_strongest_directions_are_those_of_the_largest_eigenvalues(width):
    basis = orthonormal(width)
    powers = 0.7 ** torch.arange(width, dtype=torch.float64)
    moments = (basis * powers) @ basis.T
    found, directions = strongest(moments, 4)
    assert_close(found, powers[:4])
    assert_close(
        (directions @ basis[:, :4]).abs(), torch.eye(4, dtype=torch.float64), atol=1e-5, rtol=0
    )


def test_they_take_the_power_they_have():
    basis, powers = orthonormal(64), torch.ones(64, dtype=torch.float64)
    powers[:4] = 1000.0
    parts = principal((basis * powers) @ basis.T, 4)
    assert parts.directions.dtype == torch.int8
    assert parts.directions.abs().amax(1).tolist() == [31] * 4
    rest = parts.rest(normal(2000, 64) @ (basis * powers.sqrt()).T).square().sum() / 2000
    assert rest < 60 + 4 * 1000 * 0.003  # int6 leaves less than a part in 300 of what they had


def test_as_many_directions_as_columns_leave_nothing():
    parts = Principal(torch.eye(3, dtype=torch.int8) * 31)
    assert_close(parts.rest(normal(5, 3)), torch.zeros(5, 3, dtype=torch.float64))


def test_it_is_the_same_each_time():
    moments = normal(40, 40) @ normal(40, 40).T
    state = torch.get_rng_state()
    assert torch.equal(principal(moments, 3).directions, principal(moments, 3).directions)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("rank", [0, -1, 5, 2.0, True, None])
def test_a_rank_beyond_the_width_is_refused(rank):
    with pytest.raises(BadArgument, match="4 columns has 1 to 4 directions"):
        principal(torch.eye(4), rank)
    with pytest.raises(BadArgument, match="1 to 4 directions"):
        Principal.from_config({"width": 4, "rank": rank})


def test_a_direction_of_zeros_is_refused():
    directions = integers(3, 8)
    Principal(directions).check("here")
    directions[1] = 0
    with pytest.raises(BrokenFile, match=r"here\.codes holds a direction of zeros"):
        Principal(directions).check("here")


def test_its_config_builds_it_again():
    parts = Principal(integers(3, 8))
    again = Principal.from_config(parts.config())
    assert again.config() == parts.config() == {"width": 8, "rank": 3}
    assert again.directions.shape == (3, 8)
    with pytest.raises(BadArgument, match="8 columns cannot take an input of 9"):
        parts.check_width(9)


def test_they_are_packed_as_the_codes_of_a_matrix():
    directions = torch.tensor([[31, -31, 0, 1], [-1, 2, -32, 5]], dtype=torch.int8)
    parts = Principal(directions)
    numbers = [sum((d & 63) << 6 * i for i, d in enumerate(row)) for row in directions.tolist()]
    assert parts.codes.tolist() == [list(number.to_bytes(3, "little")) for number in numbers]
    assert torch.equal(parts.directions, directions)
    assert stored_bytes(2, 4) == parts.codes.nbytes == 6


def test_changing_the_dtype_leaves_the_integers():
    assert Principal(integers(3, 8)).half().directions.dtype == torch.int8
