"""Scores of whole sets of pictures: are they of the same kind as real ones, and as varied?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from fewbit.errors import BadArgument
from fewbit.judge.census import Census
from fewbit.judge.features import INCEPTION_ADVICE, FeatureNet
from fewbit.judge.frechet import frechet_distance, refuse_too_few, sampling_bias
from fewbit.judge.manifold import precision_recall
from fewbit.judge.moments import Gaussian
from fewbit.judge.reference import RealSet
from fewbit.judge.scores import Basis, Score

SAME_SEEDS = "the same seeds in full precision"


class Standard:
    """What every model is held against: real pictures, and those of its reference.

    Without real pictures those of the reference take their place, and have no scores of their own.
    """

    def __init__(self, net: FeatureNet, real: RealSet | None) -> None:
        self.net = net
        self.real = real
        self.reference = Census(net)
        self.unreadable: list[str] = []
        self.ideal = self.reference if real is None else self._census(real)

    def _census(self, real: RealSet) -> Census:
        census = Census(self.net)
        if real.statistics is not None:
            _refuse_other_features(real, self.net)
        for pictures in real.chunks():
            census.add(pictures)
        if real.statistics is None:
            refuse_too_few(census.count, max(self.net.widths), f"add to those of {real.name}")
        self.unreadable = list(real.unreadable)
        return census


class SetScores:
    """Of a model's pictures and of its reference's, held against the standard."""

    def __init__(self, standard: Standard) -> None:
        self.net, self.real = standard.net, standard.real
        self.ideal, self.reference = standard.ideal, standard.reference
        self.model = Census(self.net)

    def add(self, reference: Tensor, model: Tensor, subjects: Sequence[int]) -> None:
        """A chunk of both; the subjects count where the net tells the pipeline's classes apart.

        The reference's pictures are looked at once, however many models are held against them.
        """
        classes = subjects if self.net.judges else None
        if self.reference.count == self.model.count:
            self.reference.add(reference, classes)
        self.model.add(model, classes)

    def scores(self, seed: int) -> list[Score]:
        own = Basis(
            self.model.count,
            seed,
            resize=self.net.resize,
            features=self.net.name,
            features_sha256=self.net.sha256,
        )
        return [*self._distances(own), *self._manifolds(own), *self._classes(own)]

    def _distances(self, own: Basis) -> list[Score]:
        ideal = self._ideal_gaussians()
        model, reference = _gaussians(self.model), _gaussians(self.reference)
        basis = self._against_ideal(own)
        return [
            Score(
                name,
                frechet_distance(one, drawn),
                "lower",
                basis,
                full_precision=None if self.real is None else frechet_distance(one, exact),
                bias=sampling_bias(one, drawn),
            )
            for name, one, drawn, exact in zip(self.net.names, ideal, model, reference, strict=True)
        ]

    def _manifolds(self, own: Basis) -> list[Score]:
        """Of equally many pictures: precision falls and recall rises with the number of others."""
        if not self.ideal.count:
            return []  # only statistics are known
        sets = [census.features() for census in (self.ideal, self.model, self.reference)]
        fewest = min(map(len, sets))
        ideal, model, reference = (features[:fewest] for features in sets)
        ours = precision_recall(ideal, model)
        theirs = None if self.real is None else precision_recall(ideal, reference)
        basis = replace(self._against_ideal(own), samples=fewest)
        return [
            Score(
                name,
                getattr(ours, name),
                "higher",
                basis,
                full_precision=None if theirs is None else getattr(theirs, name),
            )
            for name in ("precision", "recall")
        ]

    def _classes(self, own: Basis) -> list[Score]:
        model, reference = self.model, self.reference
        scores = [
            Score(
                "inception score",
                model.inception_score.value(),
                "higher",
                own,
                full_precision=reference.inception_score.value(),
            )
        ]
        if self.net.judges:
            scores.append(
                Score(
                    "accuracy",
                    sum(model.recognised) / model.count,
                    "higher",
                    own,
                    full_precision=sum(reference.recognised) / reference.count,
                    each=tuple(map(float, model.recognised)),
                )
            )
        return scores

    def _ideal_gaussians(self) -> tuple[Gaussian, Gaussian]:
        known = None if self.real is None else self.real.statistics
        return known or _gaussians(self.ideal)

    def _against_ideal(self, own: Basis) -> Basis:
        if self.real is None:
            return replace(own, reference=SAME_SEEDS, reference_sha256=self.ideal.sha256())
        sha256 = self.real.sha256() or self.ideal.sha256()
        return replace(own, reference=self.real.name, reference_sha256=sha256)


def _gaussians(census: Census) -> tuple[Gaussian, Gaussian]:
    return census.pooled.gaussian(), census.spatial.gaussian()


def _refuse_other_features(real: RealSet, net: FeatureNet) -> None:
    assert real.statistics is not None
    widths = tuple(len(part.mean) for part in real.statistics)
    if widths != net.widths:
        raise BadArgument(
            f"the statistics of {real.name} are of {widths[0]} and {widths[1]} features, "
            f"{net.name} has {net.widths[0]} and {net.widths[1]}; ADM's are Inception's: "
            f"{INCEPTION_ADVICE}"
        )
