"""Feature nets: what turns a picture into the numbers that sets of pictures are compared by."""

from __future__ import annotations

import hashlib
import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fewbit.demo import classifier
from fewbit.demo.shape_classifier import ShapeClassifier
from fewbit.demo.shapes import NAMES, SIZE, as_float
from fewbit.errors import BadArgument, BrokenFile
from fewbit.judge.weights import NO_WEIGHTS
from fewbit.storage.tensors import digest

SPATIAL_CHANNELS = {"shapes": 2, "inception": 7}  # so many that both features are of like width
INCEPTION_FILE = "pt_inception-2015-12-05-6726825d.pth"
INCEPTION_ADVICE = (
    f"give --inception a local copy of {INCEPTION_FILE}, the weights that pytorch-fid and "
    "torch-fidelity publish, and install fewbit[eval]"
)


@dataclass(frozen=True)
class InputStats:
    """What a net makes of N pictures."""

    pooled: Tensor  # (N, D)
    spatial: Tensor  # (N, S)
    probabilities: Tensor  # (N, classes)


class FeatureNet(Protocol):
    """name:    what it is.
    names:   what the two Fréchet distances over its pooled and spatial features are called.
    widths:   how many features those are.
    classes: how many it tells apart.
    judges:   whether its classes are those of the pipeline.
    resize:   how a picture is brought to the net's resolution.
    sha256:   of its weights.
    """

    name: str
    names: tuple[str, str]
    widths: tuple[int, int]
    classes: int
    judges: bool
    resize: str
    sha256: str

    def see(self, pictures: Tensor) -> InputStats:
        """Bytes [N, 3, height, width]."""


class ShapesNet:
    """The shapes demo's own classifier."""

    name = "the shapes classifier"
    names = ("Fréchet", "Fréchet, spatial")
    widths = (96, SPATIAL_CHANNELS["shapes"] * 8 * 8)
    classes = len(NAMES)
    judges = True
    resize = f"none, {SIZE}x{SIZE} as drawn"

    def __init__(self, net: ShapeClassifier) -> None:
        self.net = net.eval()
        lines = (f"{name} {digest(weight)}\n" for name, weight in net.state_dict().items())
        self.sha256 = hashlib.sha256("".join(lines).encode()).hexdigest()

    @torch.no_grad()
    def see(self, pictures: Tensor) -> InputStats:
        if pictures.shape[1:] != (3, SIZE, SIZE):
            size = f"{pictures.shape[-1]}x{pictures.shape[-2]}"
            raise BadArgument(f"the shapes classifier looks at {SIZE}x{SIZE} pixels, got {size}")
        grid, pooled = self.net.features(as_float(pictures))
        spatial = grid[:, : SPATIAL_CHANNELS["shapes"]].flatten(1)
        return InputStats(pooled, spatial, self.net.head(pooled).softmax(1))


class InceptionNet:
    """The Inception of FID, as torch-fidelity builds it, with weights from a local file."""

    name = "Inception"
    names = ("FID", "sFID")
    widths = (2048, SPATIAL_CHANNELS["inception"] * 17 * 17)
    classes = 1008
    judges = False
    resize = "bilinear to 299x299 as TensorFlow 1 does"

    def __init__(self, weights: Path) -> None:
        if not weights.is_file():
            raise BrokenFile(f"there are no Inception weights at {weights}; {INCEPTION_ADVICE}")
        self.sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
        self.net = _build_inception(weights)
        self.grid = torch.empty(0)
        # ADM's spatial features are `mixed_6/conv`, here the first branch of Mixed_6d.
        self.net.get_submodule("Mixed_6d.branch1x1").register_forward_hook(self._keep)

    def _keep(self, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
        self.grid = output[:, : SPATIAL_CHANNELS["inception"]].flatten(1)

    @torch.no_grad()
    def see(self, pictures: Tensor) -> InputStats:
        pooled, logits = self.net(pictures)
        return InputStats(pooled, self.grid, logits.softmax(1))


def net_for(pipe: Any, inception: Path | None) -> FeatureNet | None:
    """Inception where its weights are given, else the demo's classifier for the demo's pictures."""
    if inception is not None:
        return InceptionNet(inception)
    return ShapesNet(classifier()) if draws_shapes(pipe) else None


def draws_shapes(pipe: Any) -> bool:
    return {name: number for number, name in enumerate(NAMES)} == getattr(pipe, "labels", {})


def _build_inception(weights: Path) -> nn.Module:
    try:
        module = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    except (ImportError, RuntimeError, OSError) as error:  # torchvision may be of another torch
        raise BrokenFile(
            f"Inception is built by torch-fidelity, which cannot be imported ({error}); "
            "install fewbit[eval] with the torchvision that belongs to the torch that is there"
        ) from None
    try:
        torch.load(weights, map_location="meta", weights_only=True)  # it would unpickle anything
        net: nn.Module = module.FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048", "logits_unbiased"], str(weights)
        )
    except NO_WEIGHTS as error:
        sentence = f"{weights} does not hold Inception's weights; {INCEPTION_ADVICE}"
        raise BrokenFile(sentence) from error
    return net
