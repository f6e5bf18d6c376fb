"""Where rows are is seen from one row and two, in whatever dimension."""

import torch

from fewbit.calibration.along import Along, rows_in


def outlines(rows):
    return {
        "hidden": torch.empty(5, rows, 4),
        "frames": torch.empty(3 * rows, 4),
        "table": torch.empty(7, 2),
        "list": [torch.empty(rows)],
    }


def test_rows_are_found_in_any_dimension_and_tables_have_none():
    found = rows_in(outlines(1), outlines(2))
    assert found == {"hidden": Along(1, 1), "frames": Along(0, 3), "list.0": Along(0, 1)}


def test_what_grows_in_another_way_has_no_rows():
    assert rows_in(torch.empty(2, 2), torch.empty(4, 4)) is None  # a mask from row to row
    assert rows_in(torch.empty(2), torch.empty(3)) is None  # the ends of sequences
    assert rows_in([torch.empty(2)], [torch.empty(2)] * 2) is None


def test_rows_are_taken_and_told_apart():
    frames = torch.arange(12).reshape(6, 2)  # two rows of three frames
    along = Along(0, 3)
    assert along.take(frames, torch.tensor([1])).tolist() == [[6, 7], [8, 9], [10, 11]]
    assert along.by_row(frames)[0].tolist() == [0, 1, 2, 3, 4, 5]
    first = torch.arange(12).reshape(3, 2, 2)  # three tokens of two rows
    assert Along(1, 1).take(first, torch.tensor([1])).tolist() == [[[2, 3]], [[6, 7]], [[10, 11]]]
    assert Along(1, 1).by_row(first)[1].tolist() == [2, 3, 6, 7, 10, 11]
