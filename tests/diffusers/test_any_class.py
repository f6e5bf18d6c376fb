"""Whatever transformer diffusers has is quantized, saved and loaded again to the last bit."""

import pytest
import torch

import fewbit

diffusers = pytest.importorskip("diffusers")

import any_transformers  # noqa: E402
from small_dit import bits_of  # noqa: E402

from fewbit.models import SPEC  # noqa: E402
from fewbit.models.discover import discover  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


def output(model, name):
    with torch.no_grad():
        out = model(**any_transformers.call(name), return_dict=False)[0]
    return torch.stack(out) if isinstance(out, list) else out


@pytest.mark.parametrize("name", any_transformers.NAMES)
def test_it_comes_back_to_the_last_bit(name, tmp_path):
    model = any_transformers.make(name)
    plain = output(model, name)
    spec = discover(model, any_transformers.call(name))
    report = fewbit.quantize(model, "rtn", bits="w4a4", spec=spec, progress=False)
    assert report.bytes < report.bytes_before
    fewbit.save(model, tmp_path / "small")
    loaded = type(model).from_pretrained(tmp_path / "small")
    found = output(loaded, name)
    assert torch.equal(found, output(model, name))
    assert found.isfinite().all()
    assert not torch.equal(found, plain)
    assert getattr(loaded, SPEC) == spec
    told = fewbit.inspect(tmp_path / "small")
    assert told.origin == "as stored with it"
    quantized = [layer.name for layer in told.layers if layer.status == "quantized"]
    assert sorted(quantized) == sorted(layer.name for layer in report.layers)


def test_it_is_quantized_while_it_is_loaded(tmp_path):
    name = "WanTransformer3DModel"
    any_transformers.make(name).save_pretrained(tmp_path)
    config = fewbit.FewbitConfig("rtn", bits="w4a4")
    cls = getattr(diffusers, name)
    model = cls.from_pretrained(tmp_path, quantization_config=config)
    model.save_pretrained(tmp_path / "small")
    loaded = cls.from_pretrained(tmp_path / "small")
    assert bits_of(loaded) == bits_of(model)
    # Kept layers are torch's own, whose product of one row depends on where its weight lies.
    torch.testing.assert_close(output(loaded, name), output(model, name))
    assert getattr(loaded, SPEC) == getattr(model, SPEC)
