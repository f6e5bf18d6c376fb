"""Two pipelines whose same-seed pictures can be compared, or a sentence that says why not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from fewbit.errors import BadArgument, BadModel


@dataclass(frozen=True)
class Named:
    """A pipeline and what to call it."""

    pipe: Any
    name: str

    @property
    def kind(self) -> str:
        return type(self.pipe).__name__


def refuse_unlike(model: Named, reference: Named) -> None:
    """Same seeds say something only where all but the network is the same."""
    for one in (model, reference):
        if isinstance(one.pipe, nn.Module):
            raise BadModel(
                f"{one.name} is no pipeline but a transformer alone ({one.kind}); pictures also "
                "need a VAE and a scheduler: give a pipeline folder (one with model_index.json)"
            )
    if model.kind != reference.kind:
        raise BadArgument(
            f"{model.name} is a {model.kind} and {reference.name} a {reference.kind}; "
            "compare pipelines of one kind"
        )
    ours, theirs = (_scheduler(one.pipe) for one in (model, reference))
    differs = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
    if differs:
        raise BadArgument(
            f"the schedulers of {model.name} and {reference.name} differ in {', '.join(differs)}; "
            "give both pipelines the same scheduler"
        )


def _scheduler(pipe: Any) -> dict[str, Any]:
    public = {key: value for key, value in pipe.scheduler.config.items() if not key.startswith("_")}
    return {"class": type(pipe.scheduler).__name__, **public}
