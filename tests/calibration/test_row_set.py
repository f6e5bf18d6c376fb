"""Rows go in as keyword dicts and come out in any batches, the same to the bit."""

import pytest
import torch
from small_models import FAMILIES, arguments, make

from fewbit.calibration.row_set import RowSet
from fewbit.calibration.tree import rebuild, tensors
from fewbit.errors import BadArgument, BadCalibration
from fewbit.storage.entries import Entries


def items(**changes):
    first = {
        "hidden_states": torch.arange(12.0).reshape(3, 4),
        "timestep": torch.tensor([9, 5, 1]),
        "image_rotary_emb": (torch.ones(3, 2), torch.zeros(3, 2)),
        "added_cond_kwargs": {"resolution": None, "size": torch.arange(3)},
        "return_dict": False,
    }
    return [first, {**first, **changes}]


def same(one, other):
    mine, theirs = tensors(one), tensors(other)
    assert mine.keys() == theirs.keys()
    for path, tensor in mine.items():
        assert tensor.dtype == theirs[path].dtype
        assert torch.equal(tensor, theirs[path])
    blank = [rebuild(tree, lambda _, leaf: torch.is_tensor(leaf) or leaf) for tree in (one, other)]
    assert blank[0] == blank[1]
    return True


@pytest.mark.parametrize("size", [1, 2, 4, 6, 9])
def test_batches_hold_all_rows_in_order(size):
    data = RowSet.from_items(items(hidden_states=-torch.ones(3, 4)))
    batches = list(data.batches(size))
    assert len(data) == sum(len(batch["hidden_states"]) for batch in batches) == 6
    hidden = torch.cat([batch["hidden_states"] for batch in batches])
    assert torch.equal(hidden, torch.cat([torch.arange(12.0).reshape(3, 4), -torch.ones(3, 4)]))
    sizes = torch.cat([batch["added_cond_kwargs"]["size"] for batch in batches])
    assert sizes.tolist() == [0, 1, 2] * 2
    for batch in batches:
        assert batch["return_dict"] is False
        assert batch["added_cond_kwargs"]["resolution"] is None
        assert isinstance(batch["image_rotary_emb"], tuple)
        assert [tuple(part.shape) for part in batch["image_rotary_emb"]] == [(3, 2)] * 2
    assert data.timesteps().tolist() == [9.0, 5.0, 1.0] * 2


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_is_what_the_model_was_called_with(family):
    whole = arguments(family, 4)
    assert same(next(RowSet.from_items([whole]).batches(4)), whole)
    with torch.no_grad():
        make(family)(**next(RowSet.from_items([whole]).batches(3)))


def test_items_of_one_row_each_make_the_same_set():
    whole = arguments("PixArtTransformer2DModel", 4)
    data = RowSet.from_items([whole])
    apart = RowSet.from_items(data.batches(1))
    assert apart.fingerprint() == data.fingerprint()


def test_rows_are_taken_by_number_and_given_as_copies():
    data = RowSet.from_items(items())
    taken = data.take([4, 0])
    assert taken["timestep"].tolist() == [5, 9]
    taken["hidden_states"].zero_()
    assert data.take([4])["hidden_states"].tolist() == [[4.0, 5.0, 6.0, 7.0]]


@pytest.mark.parametrize("time", [7, 7.0, torch.tensor(7), torch.tensor([7])])
def test_one_timestep_serves_all_rows(time):
    data = RowSet.from_items([{"x": torch.ones(3, 2), "timestep": time}])
    assert data.timesteps().tolist() == [7.0] * 3
    assert data.take([1, 2])["timestep"].shape == (2,)


def test_there_may_be_no_timestep():
    assert RowSet.from_items([{"x": torch.ones(3, 2)}]).timesteps() is None


FLAGS = {"conditional": torch.tensor([True, False] * 3), "pair": torch.arange(6) // 2}


@pytest.mark.parametrize("flags", [{}, FLAGS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_and_loaded_it_is_the_same(flags, dtype, tmp_path):
    hidden = torch.ones(3, 4, dtype=dtype)
    both = [{**item, "hidden_states": hidden} for item in items()]
    data = RowSet.from_items(both, **flags)
    Entries(tmp_path).write("rows", data.to_entry())
    loaded = RowSet.from_entry(Entries(tmp_path).read("rows"))
    assert loaded.fingerprint() == data.fingerprint()
    assert same(loaded.take(range(6)), data.take(range(6)))
    assert (loaded.conditional is None) == (not flags)
    if flags:
        assert torch.equal(loaded.conditional, flags["conditional"])
        assert torch.equal(loaded.pair, flags["pair"])


def test_the_fingerprint_tells_everything_apart():
    def print_of(flags, **changes):
        return RowSet.from_items([items(**changes)[1]] * 2, **flags).fingerprint()

    rotary = torch.ones(3, 2), torch.full((3, 2), -0.0)
    hidden = torch.arange(12.0).reshape(3, 4)
    prints = [
        print_of({}),
        print_of(FLAGS),
        print_of({"conditional": ~FLAGS["conditional"]}),
        print_of({}, return_dict=True),
        print_of({}, image_rotary_emb=rotary),
        print_of({}, image_rotary_emb=list(items()[0]["image_rotary_emb"])),
        print_of({}, hidden_states=hidden.reshape(3, 2, 2)),
        print_of({}, hidden_states=hidden.double()),
        print_of({}, hidden_states=hidden.nextafter(torch.ones(()))),
    ]
    assert len(set(prints)) == len(prints)
    assert print_of({}) == prints[0]


ONE = {"hidden_states": torch.ones(3, 4)}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "calibration is empty; allowed: one or more"),
        ({"hidden_states": torch.ones(3, 4)}, "item 0 is of type str; allowed: dicts"),
        ([ONE, torch.ones(3)], "item 1 is of type Tensor"),
        ([{}], "item 0 has no tensor with rows"),
        ([{"return_dict": False}], "item 0 has no tensor with rows"),
        ([{"hidden_states": torch.ones(0, 4)}], "item 0 has no tensor with rows"),
        ([ONE, {"hidden_states": torch.full((1, 4), torch.nan)}], "item 1, key 'hidden_states'"),
        ([{**ONE, "a": {"b": torch.tensor([1, torch.inf, 1])}}], "item 0, key 'a.b', holds NaN or"),
        ([{**ONE, "f": print}], "item 0, key 'f', holds a builtin_function_or_method; allowed"),
        (
            [ONE, {**ONE, "more": None}],
            "item 1, key 'more', is no tensor in item 1 but missing in item 0",
        ),
        (
            [{**ONE, "more": 1}, ONE],
            "item 1, key 'more', is missing in item 1 but no tensor in item 0",
        ),
        ([ONE, {"hidden_states": torch.ones(3, 5)}], r"rows of float32 \[5\]; .*item 0: float32"),
        (
            [ONE, {"hidden_states": torch.ones(3, 4).half()}],
            r"'hidden_states', has rows of float16",
        ),
        (items(return_dict=True), "key 'return_dict', is True; allowed, as in item 0: False"),
        (items(image_rotary_emb=(torch.ones(3, 2),) * 2), "'image_rotary_emb.1', has no batch dim"),
    ],
)
def test_bad_items_are_named(given, message):
    with pytest.raises(BadCalibration, match=message):
        RowSet.from_items(given)


@pytest.mark.parametrize("size", [0, -1, 2.0, True])
def test_a_batch_holds_rows(size):
    with pytest.raises(BadArgument, match="a batch holds one or more rows"):
        RowSet.from_items(items()).parts(size)


@pytest.mark.parametrize("rows", [1, 5, 16, 20])
def test_some_rows_come_from_all_parts_of_the_data(rows):
    """One of each span of equal length, with its flags; all where there are no more."""
    data = RowSet.from_items(
        [{"hidden_states": torch.arange(20.0)[:, None], "size": torch.arange(20)}],
        conditional=torch.arange(20) % 2 == 0,
        pair=torch.arange(20) // 2,
    )
    some = data.some(rows, seed=0)
    kept = some.columns["size"]
    assert len(some) == rows
    first = torch.arange(rows + 1) * 20 // rows
    assert torch.all((first[:-1] <= kept) & (kept < first[1:]))
    assert torch.equal(some.columns["hidden_states"][:, 0], kept.float())
    assert torch.equal(some.conditional, kept % 2 == 0)
    assert torch.equal(some.pair, kept // 2)
    assert torch.equal(data.some(rows, seed=0).columns["size"], kept)


def test_some_rows_follow_no_rhythm_of_the_data():
    """Such as that of guidance, whose halves take turns."""
    data = RowSet.from_items([{"hidden_states": torch.arange(400.0)[:, None]}])
    even = data.some(100, seed=0).columns["hidden_states"] % 2 == 0
    assert 35 < even.sum() < 65
