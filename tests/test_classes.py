"""The table of tiny models has every transformer class of diffusers, or says why not."""

import pytest

from benchmarks.tiny_classes import CLASSES, LEFT_OUT

models = pytest.importorskip("diffusers.models")

EXPORTED = {
    name
    for module, names in models._import_structure.items()
    if module.startswith("transformers.")
    for name in names
}


@pytest.mark.skipif(len(EXPORTED) < 76, reason="of an older diffusers, which has not all of them")
def test_every_class_is_in_the_table_or_named_as_left_out():
    assert {*CLASSES, *LEFT_OUT} == EXPORTED
    assert not CLASSES.keys() & LEFT_OUT.keys()


@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_is_left_out_is_no_model_by_itself(name):
    assert not issubclass(getattr(models, name), models.ModelMixin)
