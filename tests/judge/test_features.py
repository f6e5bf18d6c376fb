import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

from fewbit.demo.shape_classifier import ShapeClassifier
from fewbit.demo.shapes import NAMES, as_float
from fewbit.errors import BadArgument, BrokenFile
from fewbit.judge.features import InceptionNet, ShapesNet, draws_shapes, net_for


@pytest.fixture(scope="module")
def classifier() -> ShapeClassifier:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ShapeClassifier()


def test_the_classifier_sees_what_it_says(classifier, pictures):
    net = ShapesNet(classifier)
    rows = pictures(3, 64, 64)
    seen = net.see(rows)
    assert seen.pooled.shape == (3, net.widths[0])
    assert seen.spatial.shape == (3, net.widths[1])
    assert seen.probabilities.shape == (3, net.classes)
    expected = classifier(as_float(rows)).softmax(1)
    torch.testing.assert_close(seen.probabilities, expected, rtol=0, atol=0)
    grid = classifier.features(as_float(rows)).grid
    assert torch.equal(seen.spatial[1], grid[1, :2].flatten())
    assert not seen.pooled.requires_grad


def test_other_resolutions_are_refused_and_not_resized(classifier, pictures):
    with pytest.raises(BadArgument, match="looks at 64x64 pixels, got 32x64"):
        ShapesNet(classifier).see(pictures(1, 64, 32))


def test_the_hash_is_of_the_weights(classifier):
    before = ShapesNet(classifier).sha256
    assert ShapesNet(classifier).sha256 == before
    other = ShapeClassifier()
    assert ShapesNet(other).sha256 != before


def test_a_pipeline_of_shapes_is_known_by_its_classes(pipe):
    assert not draws_shapes(pipe)
    assert net_for(pipe, None) is None
    assert draws_shapes(SimpleNamespace(labels={name: i for i, name in enumerate(NAMES)}))


def test_missing_weights_say_what_to_put_where(pipe, tmp_path):
    sentence = r"no Inception weights at .*gone\.pth; give --inception a local copy of pt_inception"
    with pytest.raises(BrokenFile, match=sentence):
        net_for(pipe, tmp_path / "gone.pth")


def test_a_missing_library_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    (tmp_path / "weights.pth").write_bytes(b"")
    with pytest.raises(BrokenFile, match=r"which cannot be imported \(.*; install fewbit\[eval"):
        InceptionNet(tmp_path / "weights.pth")


class LikeTorchFidelity(nn.Module):
    """Its outside: what it is built with, what it gives, and where its spatial layer is."""

    def __init__(self, name, features_list, feature_extractor_weights_path):
        super().__init__()
        torch.load(feature_extractor_weights_path, weights_only=False)
        assert features_list == ["2048", "logits_unbiased"]
        self.Mixed_6d = nn.Module()
        self.Mixed_6d.branch1x1 = nn.Conv2d(3, 192, 1)

    def forward(self, x):
        assert x.dtype == torch.uint8
        grid = self.Mixed_6d.branch1x1(nn.functional.interpolate(x.float(), (17, 17)))
        return grid.mean((2, 3)).repeat(1, 11)[:, :2048], grid.mean((2, 3)).repeat(1, 6)[:, :1008]


@pytest.fixture
def fidelity(monkeypatch):
    module = ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3 = LikeTorchFidelity
    monkeypatch.setitem(sys.modules, "torch_fidelity", ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, module.__name__, module)


def test_inception_gives_adms_two_features(fidelity, tmp_path, pictures):
    torch.save({}, tmp_path / "weights.pth")
    net = InceptionNet(tmp_path / "weights.pth")
    seen = net.see(pictures(2))
    assert (seen.pooled.shape[1], seen.spatial.shape[1]) == net.widths == (2048, 2023)
    assert seen.probabilities.sum(1).tolist() == pytest.approx([1, 1])
    again = net.see(pictures(3, seed=1))
    assert len(again.spatial) == 3


class Malicious:
    def __reduce__(self):
        return print, ("unpickled",)


def test_a_weights_file_is_never_unpickled_freely(fidelity, tmp_path, capsys):
    torch.save({"x": Malicious()}, tmp_path / "weights.pth")
    with pytest.raises(BrokenFile, match="does not hold Inception's weights"):
        InceptionNet(tmp_path / "weights.pth")
    assert capsys.readouterr().out == ""


def test_a_file_without_its_weights_is_named(fidelity, tmp_path):
    (tmp_path / "weights.pth").write_bytes(b"nonsense")
    with pytest.raises(BrokenFile, match=r"weights\.pth does not hold Inception's weights; give"):
        InceptionNet(tmp_path / "weights.pth")
