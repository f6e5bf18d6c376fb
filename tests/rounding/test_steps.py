"""Searching steps: the best of all candidates where errors have one valley, in few looks."""

import torch

from fewbit.rounding.steps import CACHED, Search, factors, in_cache, powers


def valleys(targets, log=False):
    """Squared distance from each entry's target."""
    return lambda steps: ((steps.log() - targets.log()) if log else steps - targets).square()


def test_the_published_candidates():
    found = factors(100)
    assert len(found) == 100
    assert abs(float(found[0]) - 0.01) < 1e-6
    assert abs(float(found[99]) - 1.1881) < 1e-6
    assert powers(100)[0] == 1
    assert float(powers(100)[95]) == 2.0**-19


def test_each_entry_finds_the_best_of_all_candidates():
    start = torch.rand(6, 3, generator=torch.Generator().manual_seed(0)) + 0.5
    wanted = torch.randint(0, 100, (6, 3), generator=torch.Generator().manual_seed(1))
    targets = start * factors(100)[wanted]
    search = Search(start, factors(100))
    search.run(valleys(targets))
    assert torch.equal(search.steps, targets)


def test_the_same_on_a_logarithmic_scale():
    start, wanted = torch.full((4,), 1 / 128), torch.tensor([0, 17, 58, 99])
    search = Search(start, powers(100))
    search.run(valleys(start * powers(100)[wanted], log=True))
    assert torch.equal(search.steps, start * powers(100)[wanted])


def test_few_candidates_are_looked_at_and_fewer_later():
    looks = []

    def error(steps):
        looks.append(steps)
        return (steps - 0.5).square()

    search = Search(torch.ones(5, 2), factors(100))
    search.run(error)
    first = len(looks)
    assert first <= 30
    search.run(error)
    assert len(looks) - first <= 9


def test_later_searches_follow_an_error_that_has_moved_a_little():
    search = Search(torch.ones(1), factors(100))
    search.run(valleys(factors(100)[50]))
    search.run(valleys(factors(100)[53]))
    assert torch.equal(search.steps, factors(100)[[53]])


def test_no_error_is_ever_compared_between_entries():
    search = Search(torch.ones(2), factors(100))
    search.run(lambda steps: torch.stack([(steps[0] - 0.3) ** 2, 1e-9 * (steps[1] - 0.9) ** 2]))
    assert (search.steps - torch.tensor([0.3, 0.9])).abs().max() < 0.007


def test_rows_in_cache_are_all_rows_and_never_none():
    for rows, each in ((5, 1), (7, CACHED // 2), (3, CACHED * 2)):
        x = torch.empty(rows, each, device="meta")
        parts = in_cache(x)
        assert [row for part in parts for row in range(rows)[part]] == list(range(rows))
        assert all(len(x[part]) == 1 or x[part].numel() <= CACHED for part in parts)
    assert len(in_cache(torch.empty(100, 10))) == 1


def test_before_a_search_the_steps_are_the_start():
    assert Search(torch.tensor([3.0]), factors(10)).steps.item() == 3.0
