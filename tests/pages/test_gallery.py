import base64
import io

import numpy as np
from pages import Page
from PIL import Image

from fewbit.pages import gallery
from fewbit.pages.gallery import PictureRow


def picture(size, seed=0):
    values = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return Image.fromarray(values)


def decoded(source):
    kind, _, content = source.removeprefix("data:image/").partition(";base64,")
    return kind, Image.open(io.BytesIO(base64.b64decode(content)))


def rows(size=16, count=2, names=("full precision", "rtn:w4a4")):
    return [PictureRow(name, [picture(size, n) for n in range(count)]) for name in names]


def test_small_pictures_are_embedded_without_loss():
    page = Page(gallery.gallery(rows(), ["star #0", "star #1"]))
    images = page.all("img")
    assert [(i["data-row"], i["data-column"]) for i in images] == [
        ("0", "0"),
        ("0", "1"),
        ("1", "0"),
        ("1", "1"),
    ]
    assert images[3]["alt"] == "star #1, drawn by rtn:w4a4"
    for number, image in enumerate(images):
        kind, found = decoded(image["src"])
        assert kind == "png"
        assert np.array_equal(np.asarray(found), np.asarray(picture(16, number % 2)))


def test_eight_recipes_of_large_pictures_stay_under_eight_megabytes():
    names = ["full precision", *(f"recipe-{n}" for n in range(8))]
    large = rows(1024, 8, names)
    columns = [f"#{n}" for n in range(8)]
    text = gallery.gallery(large, columns) + gallery.slider(large, columns)
    assert len(text) < 7_000_000
    kind, found = decoded(Page(text).all("img")[0]["src"])
    assert kind == "jpeg"
    assert 64 <= found.width <= gallery.SHOWN


def test_the_slider_has_both_pictures_and_a_range_for_keys():
    page = Page(gallery.slider(rows(), ["star #0", "star #1"]))
    assert len(page.all("img")) == 2
    kinds = {one["type"] for one in page.all("input")}
    assert kinds == {"range", "checkbox"}
    assert len(page.all("label")) == 4
    assert [one["value"] for one in page.all("option")] == ["1", "0", "1"]
    assert "pixelated" in page.all("figure")[0]["class"]
