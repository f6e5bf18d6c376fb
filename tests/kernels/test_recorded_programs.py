"""A recorded function gives the bits of the function, whatever it is given next."""

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from fewbit.formats import FORMATS, SCALES
from fewbit.kernels.native import ops as native
from fewbit.kernels.native import recording
from fewbit.kernels.native.recording import MOST_SHAPES, WORKSPACE, Recorded, step_by_step
from fewbit.transforms.hadamard import Hadamard, HadamardTransform

if not native.available():
    pytest.skip(f"no native kernels: {native.why_not()}", allow_module_level=True)

pytestmark = pytest.mark.usefixtures("isa")
FP4, INT8 = FORMATS["e2m1"], FORMATS["int8"]
WIDTH = 96


def weight(rows: int, columns: int, seed: int) -> native.Linear:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 16, (rows, columns), dtype=torch.uint8, generator=generator)
    scales = torch.rand(rows, 1, generator=generator) / 50
    return native.Linear(
        native.pack_codes(codes, FP4), scales, torch.randn(rows, generator=generator)
    )


def a_block(width: int = WIDTH) -> Callable[[Tensor, Tensor], Tensor]:
    """Of norm, rotation, attention, GELU and a gated residual, as transformers have it."""
    rotation = HadamardTransform(Hadamard.for_width(width, seed=3)).rotation
    first, later = native.Rows(FP4, rotation), native.Rows(INT8)
    q, k, v, out = (weight(width, width, seed) for seed in range(4))
    up, down = weight(2 * width, width, 4), weight(width, 2 * width, 5)

    def forward(x: Tensor, modulation: Tensor) -> Tensor:
        shift, scale, gate = modulation.unbind()
        codes = first(x, shift, scale, 1e-6)
        heads = [
            one(*codes, x.dtype).view(*x.shape[:2], 4, -1).transpose(1, 2) for one in (q, k, v)
        ]
        mixed = native.attend(*heads).transpose(1, 2).flatten(2)
        rows = x.flatten(0, 1)
        x = out(*later(mixed), x.dtype, gate=gate, residual=rows)
        hidden = up(*later(x), x.dtype, gelu=True)
        return down(*later(hidden), x.dtype, gate=gate, residual=x).view(len(gate), -1, width)

    return forward


def given(seed: int, dtype: torch.dtype = torch.float32, tokens: int = 20) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, tokens, WIDTH, generator=generator).to(dtype)
    return x, torch.randn(3, 2, WIDTH, generator=generator)


def program_of(recorded: Recorded) -> Any:
    (program,) = recorded.programs.values()
    return program


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_block_gives_its_own_bits_for_every_input(dtype: torch.dtype, threads: int) -> None:
    block = a_block()
    recorded = Recorded(block)
    torch.set_num_threads(threads)
    try:
        for seed in range(4):
            inputs = given(seed, dtype)
            assert torch.equal(recorded(*inputs), block(*inputs))
    finally:
        torch.set_num_threads(1)
    assert native.has_attention(dtype) == (program_of(recorded) is not None)


def test_each_result_is_a_tensor_of_its_own() -> None:
    recorded = Recorded(a_block())
    recorded(*given(0))
    first = recorded(*given(1))
    kept = first.clone()
    recorded(*given(2))
    assert torch.equal(first, kept)


def test_another_shape_is_recorded_too_and_the_oldest_is_forgotten() -> None:
    block = a_block()
    recorded = Recorded(block)
    for tokens in range(8, 10 + MOST_SHAPES):
        for seed in (0, 1):
            inputs = given(seed, tokens=tokens)
            assert torch.equal(recorded(*inputs), block(*inputs))
    assert len(recorded.programs) == MOST_SHAPES


def test_a_width_that_no_vector_divides_and_a_side() -> None:
    """Codes that products must lay out, and directions that are kept apart."""
    codes = torch.randint(0, 16, (70, 84), dtype=torch.uint8)
    main = native.Linear(native.pack_codes(codes, FP4), torch.rand(70, 1))
    beside = native.Linear(
        native.pack_levels(torch.randint(-9, 9, (70, 12)).to(torch.int8)), torch.rand(70, 1)
    )
    split = native.Split(torch.randint(-9, 10, (12, 84)).to(torch.int8), None, INT8)

    def function(x: Tensor) -> Tensor:
        aside, left, scales = split(x)
        assert scales is not None
        return main(left, scales, torch.float32, side=(beside, *aside))

    recorded = Recorded(function)
    for _ in range(3):
        x = torch.randn(33, 84)
        assert torch.equal(recorded(x), function(x))
    assert program_of(recorded) is not None


def test_groups_with_means_and_floats_in_between() -> None:
    linear, floats = weight(64, WIDTH, 0), torch.randint(0, 16, (WIDTH, 50), dtype=torch.uint8)
    decoded = native.FloatLinear(native.pack_codes(floats, FP4), torch.rand(WIDTH, 1))
    rows = native.Rows(FP4, None, native.Groups(32, SCALES["factor"]))

    def function(x: Tensor) -> Tensor:
        return linear(*rows(decoded(x, torch.float32)), torch.float32)

    recorded = Recorded(function)
    for _ in range(3):
        x = torch.randn(21, 50)
        assert torch.equal(recorded(x), function(x))
    assert program_of(recorded) is not None


def test_a_function_that_computes_by_torch_runs_as_it_is() -> None:
    linear, rows = weight(64, WIDTH, 0), native.Rows(INT8)

    def function(x: Tensor) -> Tensor:
        return linear(*rows(x * 2), torch.float32)

    recorded = Recorded(function)
    for _ in range(2):
        x = torch.randn(5, WIDTH)
        assert torch.equal(recorded(x), function(x))
    assert program_of(recorded) is None


def test_whoever_watches_gets_the_function() -> None:
    calls = []

    def function(x: Tensor) -> Tensor:
        calls.append(x)
        return linear(*rows(x), torch.float32)

    linear, rows = weight(64, WIDTH, 0), native.Rows(INT8)
    recorded, x = Recorded(function), torch.randn(5, WIDTH)
    recorded(x)
    recorded(x)
    assert len(calls) == 1
    with step_by_step():
        recorded(x)
    assert len(calls) == 2


def test_several_threads_at_once() -> None:
    block = a_block()
    recorded = Recorded(block)
    expected = [block(*given(seed)) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda seed: recorded(*given(seed)), list(range(8)) * 4))
    assert all(map(torch.equal, expected * 4, found))


def test_what_lives_at_one_time_has_places_apart() -> None:
    chance = random.Random(0)
    for _ in range(200):
        pieces = []
        for _ in range(chance.randrange(1, 12)):
            first = chance.randrange(10)
            last = chance.randrange(first, 10)
            size = chance.randrange(1, 500)
            pieces.append(recording._Piece(0, size, WORKSPACE, first=first, last=last))
        space = recording._place(pieces)
        for number, one in enumerate(pieces):
            assert one.offset % recording.LINE == 0
            assert one.offset + one.size <= space
            for other in pieces[:number]:
                together = one.first <= other.last and other.first <= one.last
                assert not (together and one.meets(other))


def test_a_step_waits_for_what_it_shares_with_a_writer() -> None:
    a, b, c = (recording._Piece(0, 64, WORKSPACE, offset=64 * n) for n in range(3))
    late = recording._Piece(0, 64, WORKSPACE, offset=96)  # lies where b has lain, and c

    def use(piece: Any, writes: bool) -> Any:
        return recording._Use(0, 0, piece, writes)

    makes_a, reads_a_makes_b = [use(a, True)], [use(a, False), use(b, True)]
    reads_a, writes_late, reads_c = [use(a, False)], [use(late, True)], [use(c, False)]
    steps = [makes_a, reads_a_makes_b, reads_a, writes_late, reads_a, reads_c]
    assert list(recording._waiting(steps)) == [False, True, False, True, False, True]
