"""What a network of a pipeline is called with first: enough to see how it is built."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Generator, nn

from fewbit.errors import BadCalibration, FewbitError
from fewbit.models import networks_of
from fewbit.pipelines.asking import Enough, Manner
from fewbit.pipelines.quiet import without_bar


class _Seen(Enough):
    pass


def first_call(pipe: Any, manner: Manner) -> dict[str, Any]:
    """The keyword arguments of the first forward, as the pipeline gives them for one image.

    Networks of one class take turns and are called alike: whichever is first will do.
    """
    seen: dict[str, Any] = {}

    def look(network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        names = inspect.signature(network.forward).parameters
        seen.update({**dict(zip(names, args, strict=False)), **kwargs})
        raise _Seen

    kind = type(manner.network(pipe))
    alike = [network for network in networks_of(pipe).values() if type(network) is kind]
    hooks = [network.register_forward_pre_hook(look, with_kwargs=True) for network in alike]
    try:
        with torch.random.fork_rng(range(torch.cuda.device_count())), without_bar(pipe):
            manner.ask(pipe, manner.subjects[:1], [Generator("cpu").manual_seed(0)])
    except _Seen:
        pass
    except FewbitError:
        raise
    except Exception as error:  # whatever a foreign pipeline makes of what it is told
        raise BadCalibration(
            f"{type(pipe).__name__} cannot run as it is asked to: {error!r:.300}; give "
            "calibration=fewbit.Calibration(call={...}), what it must be told besides"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
        pipe.maybe_free_model_hooks()
    return seen
