"""Several threads may run one model at the same time, its first forward included."""

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
import torch
from torch import Tensor

import fewbit

pytest.importorskip("diffusers")
pytestmark = pytest.mark.usefixtures("one_thread")

import tiny_transformers as tiny  # noqa: E402

THREADS = 4


def at_once(run: Callable[[int], Tensor]) -> list[Tensor]:
    barrier = Barrier(THREADS)

    def waiting(number: int) -> Tensor:
        barrier.wait()
        return run(number)

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(waiting, range(THREADS)))


@pytest.mark.parametrize("attempt", range(3))
def test_the_first_forward_of_all_threads(attempt: int) -> None:
    model = tiny.quantized()
    expected = tiny.run(copy.deepcopy(model))
    assert all(torch.equal(expected, ours) for ours in at_once(lambda _: tiny.run(model)))


def test_each_thread_has_a_time_of_its_own() -> None:
    model = tiny.make()
    data = [_inputs(time) for time in (50, 350, 650, 950)]
    fewbit.quantize(model, "tq-dit", calibration=data, groups=4, progress=False)
    with torch.no_grad():
        expected = [model(**given).sample for given in data]
    for _ in range(5):
        found = at_once(lambda number: _run(model, data[number]))
        assert all(map(torch.equal, expected, found))


def _run(model: Any, given: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(**given).sample


def _inputs(time: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(time)
    return {
        "hidden_states": torch.randn(2, 4, 8, 8, generator=generator),
        "timestep": torch.tensor([time, time]),
        "class_labels": torch.tensor([1, 1000]),
    }
