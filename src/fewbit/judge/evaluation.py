"""Draw the same seeds with a model and with its full-precision reference, and score what came."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fewbit.calibration import CalibrationSet, sample
from fewbit.judge.alike import Named, refuse_unlike
from fewbit.judge.drawing import MODEL, REFERENCE, Drawing
from fewbit.judge.features import INCEPTION_ADVICE, FeatureNet
from fewbit.judge.finite import NotFinite
from fewbit.judge.folder import Series, picture_seed
from fewbit.judge.frechet import refuse_too_few
from fewbit.judge.gate import Gate
from fewbit.judge.inside import costs_of, scores_of, trajectory_of
from fewbit.judge.metrics import PIXEL_METRICS, PairMetric, PictureMetric
from fewbit.judge.reading import CHUNK
from fewbit.judge.reference import RealSet, refuse_other_size
from fewbit.judge.scores import Basis, Evaluation, Score
from fewbit.judge.sets import SAME_SEEDS, SetScores, Standard
from fewbit.judge.strange import first_strange_layer
from fewbit.judge.trajectory import Pair
from fewbit.models import components_of, quantized_components
from fewbit.pipelines.generate import recipe_of
from fewbit.progress import track

LATENT_ROWS = 64


@dataclass(frozen=True)
class Setting:
    """What is drawn: the pictures 0 to count - 1 of this seed."""

    count: int
    seed: int = 0
    steps: int | None = None
    guidance: float | None = None
    prompts: Sequence[str] = ()
    together: int = 1
    call: Mapping[str, Any] = field(default_factory=dict)  # what else the pipelines are told

    def series(self, pipe: Any) -> Series:
        manner = self.steps, self.guidance, self.prompts, self.together, self.call
        return Series.of(pipe, self.seed, *manner)


@dataclass(frozen=True)
class Judges:
    """net:       sees the pictures for scores of whole sets; without it there are none.
    real:      what those are held against, or else the reference's pictures.
    pairs:     beside PSNR, SQNR and SSIM.
    pictures:  of a picture and what was asked.
    networks:  whether error by timestep and layer, size and speed are measured too.
    rows:      of the reference's trajectories, on which the networks are compared.
    """

    net: FeatureNet | None = None
    real: RealSet | None = None
    pairs: tuple[PairMetric, ...] = ()
    pictures: tuple[PictureMetric, ...] = ()
    networks: bool = True
    rows: int = LATENT_ROWS


def evaluate(
    model: Named,
    reference: Named,
    setting: Setting,
    folder: Path,
    judges: Judges,
    progress: bool = False,
) -> Evaluation:
    """The pictures stay in `folder`, and are drawn once."""
    return Examination(reference, setting, folder, judges, progress).of(model)


class Examination:
    """One reference, its pictures drawn and looked at once, and any number of models beside it."""

    def __init__(
        self, reference: Named, setting: Setting, folder: Path, judges: Judges, progress: bool
    ) -> None:
        if judges.net is not None:
            remedy = "draw more (--n) or ask for same-seed scores alone (--fidelity-only)"
            refuse_too_few(setting.count, max(judges.net.widths), remedy)
        self.reference, self.setting, self.folder = reference, setting, folder
        self.judges, self.progress = judges, progress
        self.series: Series | None = None
        self.standard: Standard | None = None
        self.rows: dict[str, CalibrationSet] = {}  # what each network of the reference is given

    def prepare(self) -> None:
        """Draw the reference's first pictures: what is asked wrongly shows before the long work."""
        refuse_unlike(self.reference, self.reference)
        drawing = self._drawing(self.reference, REFERENCE)
        size = drawing.common_size(self.setting.count)
        if self.judges.real is not None:
            refuse_other_size(self.judges.real, size)

    def of(self, model: Named, folder: str = MODEL) -> Evaluation:
        """Its pictures are kept in this folder beside those of the reference."""
        refuse_unlike(model, self.reference)
        drawing = self._drawing(model, folder)
        size = drawing.common_size(self.setting.count)
        if self.judges.real is not None:
            refuse_other_size(self.judges.real, size)
        sets = self._sets()
        try:
            drawing.fill(self.setting.count, self.progress)
        except NotFinite as broken:
            findings = (f"{broken}, so there are no scores",)
            return self._said(model, findings=findings, first_bad_layer=broken.layer)
        gate = Gate()
        scores = self._scores(drawing, gate, sets)
        pairs = self._pairs(model)
        trajectory = trajectory_of(pairs)
        wrong = tuple(gate.findings())
        return self._said(
            model,
            scores=(*scores_of(pairs, trajectory, self.setting.seed), *scores),
            findings=wrong,
            first_bad_layer=_blamed(drawing, gate) if wrong else None,
            notes=tuple(_notes(drawing, self.standard)),
            trajectory=trajectory,
            cost=costs_of(pairs),
        )

    def _drawing(self, model: Named, folder: str) -> Drawing:
        if self.series is None:
            self.series = self.setting.series(self.reference.pipe)
        return Drawing(self.series, self.setting.series(model.pipe), self.folder, folder)

    def _sets(self) -> SetScores | None:
        if self.judges.net is None:
            return None
        if self.standard is None:
            self.standard = Standard(self.judges.net, self.judges.real)
        return SetScores(self.standard)

    def _scores(self, drawing: Drawing, gate: Gate, sets: SetScores | None) -> list[Score]:
        """In one pass over the pictures."""
        count = self.setting.count
        digest = hashlib.sha256()
        metrics: tuple[PairMetric, ...] = (*PIXEL_METRICS, *self.judges.pairs)
        pairs = [_OfPairs(metric) for metric in metrics]
        pictures = [_OfPictures(metric) for metric in self.judges.pictures]
        chunks = -(-count // CHUNK)
        each = track(drawing.pairs(count), "scoring, chunks", chunks, self.progress)
        for numbers, reference, drawn in each:
            digest.update(reference.numpy().tobytes())
            for one, other in zip(reference, drawn, strict=True):
                gate.add(one, other)
            asked = [drawing.model.asked(number) for number in numbers]
            for of_pairs in pairs:
                of_pairs.values += of_pairs.metric.measure(reference, drawn)
            for of_pictures in pictures:
                of_pictures.values += of_pictures.metric.measure(drawn, asked)
                of_pictures.exact += of_pictures.metric.measure(reference, asked)
            if sets is not None:
                sets.add(reference, drawn, [drawing.model.subject(number) for number in numbers])
        seed, sha256 = self.setting.seed, digest.hexdigest()
        scores = [one.score(seed, sha256) for one in pairs]
        scores += [one.score(seed) for one in pictures]
        return scores if sets is None else [*scores, *sets.scores(seed)]

    def _pairs(self, model: Named) -> dict[str, Pair]:
        """The networks that denoise and those that are quantized, by name, each with calls of the
        reference's that no calibration has seen."""
        if not self.judges.networks:
            return {}
        ours = [one.name for one in (*quantized_components(model.pipe), *components_of(model.pipe))]
        return {
            name: Pair(
                getattr(self.reference.pipe, name), getattr(model.pipe, name), self._rows(name)
            )
            for name in dict.fromkeys(ours)
        }

    def _rows(self, component: str) -> CalibrationSet:
        if component not in self.rows:
            self.rows[component] = sample(
                self.reference.pipe,
                samples=self.judges.rows,
                seed=picture_seed(self.setting.seed, -1),
                steps=self.setting.steps,
                guidance=self.setting.guidance,
                prompts=list(self.setting.prompts) or None,
                component=component,
                call=self.setting.call,
            )
        return self.rows[component]

    def _said(self, model: Named, **found: Any) -> Evaluation:
        steps, guidance = self.setting.steps, self.setting.guidance
        return Evaluation(
            model.name,
            self.reference.name,
            recipe=recipe_of(model.pipe),
            pictures=self.setting.count,
            seed=self.setting.seed,
            steps="the pipeline's own" if steps is None else str(steps),
            guidance="the pipeline's own" if guidance is None else f"{guidance:g}",
            **found,
        )


class _OfPairs:
    def __init__(self, metric: PairMetric) -> None:
        self.metric = metric
        self.values: list[float] = []

    def score(self, seed: int, reference_sha256: str) -> Score:
        one = self.metric
        basis = Basis(
            len(self.values),
            seed,
            SAME_SEEDS,
            reference_sha256,
            one.resize,
            None if one.weights_sha256 is None else one.name,
            one.weights_sha256,
        )
        mean = sum(self.values) / len(self.values)
        return Score(one.name, mean, one.better, basis, one.unit, each=tuple(self.values))


class _OfPictures:
    def __init__(self, metric: PictureMetric) -> None:
        self.metric = metric
        self.values: list[float] = []
        self.exact: list[float] = []  # of the reference's pictures

    def score(self, seed: int) -> Score:
        one, count = self.metric, len(self.values)
        learned = None if one.weights_sha256 is None else one.name
        basis = Basis(count, seed, None, None, one.resize, learned, one.weights_sha256)
        mean, exact = sum(self.values) / count, sum(self.exact) / count
        each = tuple(self.values)
        return Score(one.name, mean, "higher", basis, full_precision=exact, each=each)


def _blamed(drawing: Drawing, gate: Gate) -> str | None:
    return first_strange_layer(drawing.model, drawing.reference, gate.first_flat or 0)


def _notes(drawing: Drawing, standard: Standard | None) -> list[str]:
    notes = [f"drawn again: {message}" for message in drawing.redrawn]
    if standard is None:
        return [*notes, f"scores of pairs only; for FID and its like {INCEPTION_ADVICE}"]
    if standard.unreadable:
        notes.append(f"{len(standard.unreadable)} real pictures were passed over")
    return [*notes, *standard.unreadable]
