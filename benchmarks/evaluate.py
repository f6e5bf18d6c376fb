"""How long it takes to judge the shapes demo: 2,000 pictures of one model, and five recipes.

    python benchmarks/evaluate.py [--pictures N] [--measured N] [--recipes LIST]

Two passes over everything would take half an hour, so a part is drawn and scored and the rest is
reckoned from it: drawing and scoring cost the same for each picture, all else is counted once. CPU
seconds are those of this process, all its threads together; wall seconds are also shown, and say
something on an idle machine only.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from environment import write_result

import fewbit
from fewbit import demo
from fewbit.evaluate.alike import Named
from fewbit.evaluate.bootstrap import interval
from fewbit.evaluate.compare import asked, compare
from fewbit.evaluate.evaluation import Examination, Judges, Setting
from fewbit.evaluate.features import net_for
from fewbit.evaluate.frechet import frechet_distance
from fewbit.evaluate.moments import FeatureMoments
from fewbit.evaluate.reference import real_for

MODEL, STEPS, GUIDANCE, TOGETHER = "shapes", 25, 3.0, 48
RECIPES = "rtn,rtn:w8a8,rtn:w4a8,rtn:w6a6,hq-dit"
SETS = 144  # pictures, just enough for the demo's 128 spatial features
INCEPTION = 2048


@dataclass(frozen=True)
class Took:
    cpu: float
    wall: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--measured", type=int, default=SETS, help="drawn and scored for that")
    parser.add_argument("--compared", type=int, default=256, help="pictures of each recipe")
    parser.add_argument("--recipes", default=RECIPES)
    arguments = parser.parse_args()
    figures = {
        "evaluate": evaluating(arguments.pictures, arguments.measured),
        "frechet_2048": asdict(took(frechet)),
        "compare": comparing(arguments.recipes, arguments.compared),
    }
    for name, found in figures.items():
        print(name, found)
    print(write_result("evaluate", figures))


def evaluating(pictures: int, measured: int) -> dict[str, Any]:
    """A first pass of one company tells what is paid once."""
    reference, model = pipeline(), pipeline()
    fewbit.quantize(model, "rtn", bits="w8a8", progress=False)
    once = took(lambda: examine(reference, model, SETS, drawn=False))
    more = took(lambda: examine(reference, model, measured, drawn=True))
    each = (more.cpu - once.cpu) / measured, (more.wall - once.wall) / measured
    return {
        "measured": {"pictures": measured, "once": asdict(once), "with_pictures": asdict(more)},
        "each_picture": {"cpu": each[0], "wall": each[1]},
        "reckoned": {
            "pictures": pictures,
            "cpu": once.cpu + pictures * each[0],
            "wall": once.wall + pictures * each[1],
        },
    }


def examine(reference: Any, model: Any, count: int, drawn: bool) -> None:
    """Without pictures: what is measured inside the networks, and the real ones."""
    net = net_for(reference, None)
    setting = Setting(count, 0, STEPS, GUIDANCE, (), TOGETHER)
    with tempfile.TemporaryDirectory() as folder:
        names = Named(reference, MODEL), Named(model, "rtn:w8a8")
        judges = Judges(net, real_for(None, net))
        examination = Examination(names[0], setting, Path(folder), judges, progress=True)
        if drawn:
            examination.of(names[1])
        else:
            examination.measure_once(names[1])


def comparing(recipes: str, count: int) -> dict[str, Any]:
    setting = Setting(count, 0, STEPS, GUIDANCE, (), TOGETHER)
    net = net_for(pipeline(), None)
    judges = Judges(net, real_for(None, net))
    with tempfile.TemporaryDirectory() as folder:
        wanted = asked(recipes)
        spent = took(
            lambda: compare(MODEL, pipeline, wanted, setting, judges, Path(folder), progress=True)
        )
    return {"recipes": recipes, "pictures": count, **asdict(spent)}


def frechet() -> None:
    random = torch.Generator().manual_seed(0)
    one, other = FeatureMoments(INCEPTION), FeatureMoments(INCEPTION)
    for moments in (one, other):
        moments.add(torch.randn(INCEPTION + 100, INCEPTION, generator=random))
    frechet_distance(one.gaussian(), other.gaussian())


def pipeline() -> Any:
    pipe = demo.load(MODEL)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def took(work: Callable[[], object]) -> Took:
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return Took(round(time.process_time() - cpu, 1), round(time.perf_counter() - wall, 1))


if __name__ == "__main__":
    main()
