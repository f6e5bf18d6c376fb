"""One model, several recipes: quantize, draw and score each, and lay them side by side.

Everything is kept in one folder, so a killed run goes on where it was: finished models in
`models`, unfinished ones block by block in `work`, pictures in `pictures`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fewbit.api import save
from fewbit.calibration import Calibration
from fewbit.engine import memory
from fewbit.engine.call import call_for
from fewbit.engine.card import REPORT
from fewbit.engine.plan import make_plan
from fewbit.engine.recipe import Recipe, are_presets, split_bits
from fewbit.engine.report import Report
from fewbit.engine.run import quantize
from fewbit.errors import BadArgument, BadOutput
from fewbit.files import keeping
from fewbit.judge.alike import Named
from fewbit.judge.comparison import Candidate, Comparison, compared
from fewbit.judge.evaluation import Examination, Judges, Setting
from fewbit.models import Component, components_of, quantized_components
from fewbit.models.hidden import shown
from fewbit.pipelines.opening import load_folder
from fewbit.storage.provenance import Provenance, source_sha256
from fewbit.storage.tensors import digest
from fewbit.version import __version__

MODELS, WORK, PICTURES = "models", "work", "pictures"


@dataclass(frozen=True)
class Asked:
    """A recipe as it was asked for: `hq-dit`, `rtn:w8a8`, `best:tiny` or `mine.json`."""

    label: str
    name: str
    recipe: Recipe

    @classmethod
    def parse(cls, text: str) -> Asked:
        text = text.strip()
        recipe = Recipe.resolve(text, None, {})
        name, after = split_bits(text)
        own = Path(name).stem if name.endswith(".json") else recipe.method.name
        preset = after if after is not None and are_presets(recipe.method, after) else None
        return cls(f"{own}:{preset or recipe.bits}", name, recipe)

    @property
    def folder(self) -> str:
        return self.label.replace(":", "-")


def asked(recipes: str) -> list[Asked]:
    """Of a list with commas; every mistake in it shows before any work."""
    texts = [text for text in recipes.split(",") if text.strip()]
    if not texts:
        raise BadArgument("--recipes lists one recipe or more, such as rtn,hq-dit:w4a8; got none")
    parsed = [Asked.parse(text) for text in texts]
    labels = [one.label for one in parsed]
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice:
        raise BadArgument(f"{twice} is asked for twice; give each recipe and its bits once")
    return parsed


def compare(
    reference: Named,
    opened: Callable[[], Any],
    recipes: Sequence[Asked],
    setting: Setting,
    judges: Judges,
    folder: Path,
    progress: bool = False,
    components: Sequence[str] | None = None,
) -> Comparison:
    """`opened` gives the reference's pipeline anew at each call, to be quantized: those of its
    networks that are called `components`."""
    examination = Examination(reference, setting, folder / PICTURES, judges, progress)
    examination.prepare()
    candidates = []
    for one in recipes:
        candidates.append(_candidate(one, opened, examination, folder, components))
        memory.release()
    return compared(reference.name, candidates)


def _candidate(
    one: Asked,
    opened: Callable[[], Any],
    examination: Examination,
    folder: Path,
    components: Sequence[str] | None,
) -> Candidate:
    pipe, report = _model(one, opened, examination, folder, components)
    reference = examination.reference.pipe
    found = examination.of(Named(pipe.to(reference.device), one.label), one.folder)
    return Candidate(one.label, report, found)


def _model(
    one: Asked,
    opened: Callable[[], Any],
    examination: Examination,
    folder: Path,
    components: Sequence[str] | None,
) -> tuple[Any, Report]:
    """As it lies in the folder, where it is made if it is not there: what is judged was saved."""
    place, setting = folder / MODELS / one.folder, examination.setting
    if not place.exists():
        work = folder / WORK / one.folder
        _make(one, opened(), setting, components, place, work, examination.progress)
    pipe = load_folder(place)
    made: dict[str, Any] = {part.name: part.network.fewbit for part in quantized_components(pipe)}
    wanted = _provenances(one, examination.reference.pipe, setting, components)
    _refuse_other_run(place, made, wanted)
    return pipe, Report.from_dict(json.loads((place / REPORT).read_text()))


def _make(
    one: Asked,
    pipe: Any,
    setting: Setting,
    components: Sequence[str] | None,
    place: Path,
    workdir: Path,
    progress: bool,
) -> None:
    report = quantize(
        pipe,
        one.name,
        bits=one.recipe.bits,
        seed=setting.seed,
        calibration=Calibration(call=setting.call) if setting.call else None,
        components=components,
        workdir=workdir,
        progress=progress,
        measure=False,  # the evaluation does
    )
    with keeping(workdir):
        save(pipe, place, report=report)
    shutil.rmtree(workdir)


def _provenances(
    one: Asked, reference: Any, setting: Setting, components: Sequence[str] | None
) -> dict[str, Provenance]:
    """Of the networks that would be made."""
    parts = components_of(reference, components)
    return {part.name: _provenance(one, reference, part, setting) for part in parts}


def _provenance(one: Asked, reference: Any, part: Component, setting: Setting) -> Provenance:
    network: Any = part.network
    see = partial(call_for, reference, part, asked=Calibration(call=setting.call))
    with shown(network):
        rules = make_plan(network, one.recipe, None, False, see=see).rules
        weights = {layer: digest(network.get_submodule(layer).weight) for layer in rules}
    return Provenance(one.recipe.to_dict(), setting.seed, source_sha256(weights), __version__)


def _refuse_other_run(
    place: Path, found: Mapping[str, Provenance], wanted: Mapping[str, Provenance]
) -> None:
    differs = [
        key
        for name, provenance in wanted.items()
        if name in found
        for key, value in vars(provenance).items()
        if getattr(found[name], key) != value
    ]
    if found.keys() != wanted.keys():
        differs.append("components")
    if differs:
        raise BadOutput(
            f"{place} is of another run, which differs in: {', '.join(dict.fromkeys(differs))}; "
            f"choose another folder or delete {place}"
        )
