"""Turns and ratios, by a clock that is not one."""

from contextlib import nullcontext

import pytest

from fewbit.bench.turns import Times, Turn, ratio, take_turns


def times(*wall: float) -> Times:
    return Times(wall, wall)


def test_arms_alternate_and_each_moves_on_to_its_next_weights() -> None:
    order: list[str] = []
    turns = {
        name: Turn([lambda n=name, i=i: order.append(f"{n}{i}") for i in range(2)], nullcontext)
        for name in "ab"
    }
    taken = take_turns(turns, 3, lambda: None)
    assert order == ["a0", "b0", "a1", "b1", "a0", "b0"]
    assert all(len(one.wall) == len(one.processor) == 3 for one in taken.values())


def test_what_must_be_active_is_so_during_its_own_turn_only() -> None:
    inside: list[str] = []

    class Active:
        def __enter__(self) -> None:
            inside.append("in")

        def __exit__(self, *_: object) -> None:
            inside.append("out")

    turns = {
        "ours": Turn([lambda: inside.append("ours")], Active),
        "plain": Turn([lambda: inside.append("plain")], nullcontext),
    }
    take_turns(turns, 1, lambda: None)
    assert inside == ["in", "ours", "out", "plain"]


def test_a_ratio_is_of_one_round_each_and_counts_if_all_rounds_say_the_same() -> None:
    # Twice as slow a machine in the second round: each arm's spread is large, the ratio's none.
    steady = ratio(times(10, 20, 10), times(5, 10, 5))
    assert (steady.median, steady.least, steady.most) == (2, 2, 2)
    assert steady.counts
    assert times(10, 20, 10).spread == pytest.approx(1.0)
    assert not ratio(times(10, 9, 11), times(9, 10, 9)).counts
    assert ratio(times(5, 5), times(10, 6)).counts  # slower counts as well
