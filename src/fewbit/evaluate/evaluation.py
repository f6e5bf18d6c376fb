"""Draw the same seeds with a model and with its full-precision reference, and score what came."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewbit.evaluate.alike import Named, refuse_unlike
from fewbit.evaluate.drawing import Drawing
from fewbit.evaluate.features import INCEPTION_ADVICE, FeatureNet
from fewbit.evaluate.finite import NotFinite
from fewbit.evaluate.folder import Series
from fewbit.evaluate.frechet import refuse_too_few
from fewbit.evaluate.gate import Gate
from fewbit.evaluate.pixels import psnr, sqnr, ssim
from fewbit.evaluate.reading import CHUNK
from fewbit.evaluate.reference import RealSet, refuse_other_size
from fewbit.evaluate.scores import Basis, Evaluation, Score
from fewbit.evaluate.sets import SAME_SEEDS, SetScores
from fewbit.progress import track

PIXEL_SCORES = (("PSNR", psnr, "dB"), ("SQNR", sqnr, "dB"), ("SSIM", ssim, ""))


@dataclass(frozen=True)
class Setting:
    """What is drawn: the pictures 0 to count - 1 of this seed."""

    count: int
    seed: int = 0
    steps: int | None = None
    guidance: float | None = None
    prompts: Sequence[str] = ()
    together: int = 1

    def series(self, pipe: Any) -> Series:
        return Series.of(pipe, self.seed, self.steps, self.guidance, self.prompts, self.together)


def evaluate(
    model: Named,
    reference: Named,
    setting: Setting,
    folder: Path,
    *,
    net: FeatureNet | None = None,
    real: RealSet | None = None,
    progress: bool = False,
) -> Evaluation:
    """The pictures stay in `folder`, and are drawn once.

    `net` sees the pictures for scores of whole sets, which are held against `real`, or else against
    the reference's pictures. Without a net there are only scores of pairs.
    """
    refuse_unlike(model, reference)
    if net is not None:
        remedy = "draw more (--n) or ask for same-seed scores alone (--fidelity-only)"
        refuse_too_few(setting.count, max(net.widths), remedy)
    drawing = Drawing(setting.series(reference.pipe), setting.series(model.pipe), folder)
    size = drawing.common_size(setting.count)
    if real is not None:
        refuse_other_size(real, size)
    sets = None if net is None else SetScores(net, real)
    try:
        drawing.fill(setting.count, progress)
    except NotFinite as broken:
        findings = (f"{broken}, so there are no scores",)
        return _said(model, reference, setting, findings=findings, first_bad_layer=broken.layer)
    gate = Gate()
    scores = _scores(drawing, setting, gate, sets, progress)
    return _said(
        model,
        reference,
        setting,
        scores=tuple(scores),
        findings=tuple(gate.findings()),
        notes=tuple(_notes(drawing, sets)),
    )


def _scores(
    drawing: Drawing, setting: Setting, gate: Gate, sets: SetScores | None, progress: bool
) -> list[Score]:
    """In one pass over the pictures."""
    digest = hashlib.sha256()
    each: dict[str, list[float]] = {name: [] for name, _, _ in PIXEL_SCORES}
    chunks = -(-setting.count // CHUNK)
    pairs = track(drawing.pairs(setting.count), "scoring, chunks", chunks, progress)
    for numbers, reference, drawn in pairs:
        digest.update(reference.numpy().tobytes())
        for one, other in zip(reference, drawn, strict=True):
            gate.add(one, other)
            for name, measure, _ in PIXEL_SCORES:
                each[name].append(measure(one, other))
        if sets is not None:
            sets.add(reference, drawn, [drawing.model.subject(number) for number in numbers])
    basis = Basis(setting.count, setting.seed, SAME_SEEDS, digest.hexdigest())
    of_pairs = [
        Score(name, sum(each[name]) / setting.count, "higher", basis, unit, each=tuple(each[name]))
        for name, _, unit in PIXEL_SCORES
    ]
    return of_pairs if sets is None else [*of_pairs, *sets.scores(setting.seed)]


def _notes(drawing: Drawing, sets: SetScores | None) -> list[str]:
    notes = [f"drawn again: {message}" for message in drawing.redrawn]
    if sets is None:
        return [*notes, f"scores of pairs only; for FID and its like {INCEPTION_ADVICE}"]
    if sets.unreadable:
        notes.append(f"{len(sets.unreadable)} real pictures were passed over")
    return [*notes, *sets.unreadable]


def _said(model: Named, reference: Named, setting: Setting, **found: Any) -> Evaluation:
    provenance = getattr(model.pipe.transformer, "fewbit", None)
    recipe = provenance.recipe if provenance else None
    return Evaluation(
        model.name,
        reference.name,
        recipe=f"{recipe['method']}:{recipe['bits']}" if recipe else "full precision",
        pictures=setting.count,
        seed=setting.seed,
        steps="the pipeline's own" if setting.steps is None else str(setting.steps),
        guidance="the pipeline's own" if setting.guidance is None else f"{setting.guidance:g}",
        **found,
    )
