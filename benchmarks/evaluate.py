"""How long it takes to judge the shapes demo: 2,000 pictures of one model, and five recipes.

    python benchmarks/evaluate.py [--pictures N] [--compared N] [--recipes LIST]

Two smaller runs tell what each picture costs and what is paid once, and so how long PICTURES take;
`--whole` draws them all. CPU seconds are those of this process, all its threads together; they say
something on a busy machine too, wall seconds only on an idle one.
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
from fewbit.judge.alike import Named
from fewbit.judge.compare import asked, compare
from fewbit.judge.evaluation import Judges, Setting, evaluate
from fewbit.judge.features import net_for
from fewbit.judge.frechet import frechet_distance
from fewbit.judge.moments import FeatureMoments
from fewbit.judge.reference import real_for

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
    parser.add_argument("--whole", action="store_true", help="draw them all")
    parser.add_argument("--compared", type=int, default=256, help="pictures of each recipe")
    parser.add_argument("--recipes", default=RECIPES)
    arguments = parser.parse_args()
    figures = {
        "evaluate": evaluating(arguments.pictures, arguments.whole),
        "frechet_2048": asdict(took(frechet)),
        "compare": comparing(arguments.recipes, arguments.compared),
    }
    for name, found in figures.items():
        print(name, found)
    print(write_result("evaluate", figures))


def evaluating(pictures: int, whole: bool) -> dict[str, Any]:
    reference, model = pipeline(), pipeline()
    fewbit.quantize(model, "rtn", bits="w8a8", progress=False)
    counts = (pictures,) if whole else (SETS, 2 * SETS)
    runs = {count: took(lambda count=count: examine(reference, model, count)) for count in counts}
    told = {"runs": {str(count): asdict(spent) for count, spent in runs.items()}}
    if whole:
        return told
    less, more = runs.values()
    reckoned = {
        clock: getattr(less, clock)
        + (pictures - SETS) / SETS * (getattr(more, clock) - getattr(less, clock))
        for clock in ("cpu", "wall")
    }
    return {**told, "pictures": pictures, "reckoned": reckoned}


def examine(reference: Any, model: Any, count: int) -> None:
    net = net_for(reference, None)
    setting = Setting(count, 0, STEPS, GUIDANCE, (), TOGETHER)
    judges = Judges(net, real_for(None, net))
    names = Named(model, "rtn:w8a8"), Named(reference, MODEL)
    with tempfile.TemporaryDirectory() as folder:
        evaluate(*names, setting, Path(folder), judges, progress=True)


def comparing(recipes: str, count: int) -> dict[str, Any]:
    setting = Setting(count, 0, STEPS, GUIDANCE, (), TOGETHER)
    net = net_for(pipeline(), None)
    judges = Judges(net, real_for(None, net))
    with tempfile.TemporaryDirectory() as folder:
        wanted = asked(recipes)
        spent = took(
            lambda: compare(
                Named(pipeline(), MODEL),
                pipeline,
                wanted,
                setting,
                judges,
                Path(folder),
                progress=True,
            )
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
