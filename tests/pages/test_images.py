import pytest
from PIL import Image

from fewbit.errors import BadOutput
from fewbit.pages.images import common_facts, grid, save_png

RED, BLUE = (255, 0, 0), (0, 0, 255)


def flat(colour: tuple[int, int, int], **facts: str) -> Image.Image:
    picture = Image.new("RGB", (8, 8), colour)
    picture.info.update(facts)
    return picture


def places(sheet: Image.Image, colour: tuple[int, int, int]) -> set[tuple[int, int]]:
    return {
        (x, y)
        for x in range(sheet.width)
        for y in range(sheet.height)
        if sheet.getpixel((x, y)) == colour
    }


def test_every_cell_is_there_whole_in_its_row_and_column():
    sheet = grid([[flat(RED), flat(RED)], [flat(RED), flat(BLUE)]])
    assert len(places(sheet, RED)) == 3 * 64
    blue = places(sheet, BLUE)
    assert len(blue) == 64
    assert min(blue) == (16, 16)  # margin, picture, margin


def test_labels_make_room_for_themselves_and_hide_no_picture():
    bare = grid([[flat(BLUE)], [flat(RED)]])
    labelled = grid([[flat(BLUE)], [flat(RED)]], ["full precision\nagain", "few"], ["circle"])
    assert labelled.width > bare.width + 60
    assert labelled.height > bare.height
    assert len(places(labelled, BLUE)) == len(places(labelled, RED)) == 64


def test_facts_are_read_back_from_the_file(tmp_path):
    path = tmp_path / "one.png"
    facts = {"seed": "3", "prompt": "a naïve 猫"}
    save_png(flat(RED), path, facts)
    with Image.open(path) as found:
        assert found.info == facts
        assert found.getpixel((0, 0)) == RED
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadOutput, match=r"file/one\.png"):
        save_png(flat(RED), tmp_path / "file" / "one.png", {})


def test_facts_of_a_grid_say_once_what_all_share():
    pictures = [flat(RED, seed="1", steps="5"), flat(RED, seed="2", steps="5")]
    assert common_facts(pictures) == {"seed": "1, 2", "steps": "5"}
