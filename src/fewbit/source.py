"""What may be called a model: a demo's name, a folder, an original checkpoint file, a hub id."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fewbit import demo
from fewbit.api import load
from fewbit.errors import BadArgument, BadModel, BrokenFile, FewbitError
from fewbit.folder import CONFIG, PIPELINE_INDEX, diffusers_class, read_config
from fewbit.header import read_header
from fewbit.models import load_original

CHECKPOINTS = (".pt", ".pth", ".safetensors")
_FOREIGN = (OSError, ValueError, TypeError, LookupError, AttributeError, ImportError, RuntimeError)


def open_model(
    text: str,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    heads: int | None = None,
) -> Any:
    """The pipeline or module that `text` names; `heads` is for original checkpoint files."""
    place = locate(text)
    if heads is not None and not (isinstance(place, Path) and place.is_file()):
        raise BadArgument(f"heads are given for an original checkpoint file only, not for {text}")
    model = _open(place, dtype, heads)
    _refuse_holes(model, text)
    return model.to(device)


def locate(text: str) -> Path | str:
    """An existing file or folder, or a hub id. A path that does not exist is never a hub id."""
    if text in demo.names():
        return demo.path(text)
    path = Path(text).expanduser()
    if path.exists():
        return path
    looks_like_id = re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", text) and path.suffix not in CHECKPOINTS
    if looks_like_id and not path.parent.exists():
        return text
    raise BrokenFile(
        f"{text} does not exist; a model is a folder, a checkpoint file, a hub id (org/name) "
        f"or a demo ({', '.join(demo.names())})"
    )


def device_named(name: str) -> torch.device:
    """`auto` is CUDA where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise BadArgument(f"device cuda is not there: torch {torch.__version__} sees no GPU")
    return torch.device(name)


def _open(place: Path | str, dtype: torch.dtype, heads: int | None) -> Any:
    if isinstance(place, str):
        return _from_hub(place, dtype)
    if place.is_file():
        return load_original(place, heads=heads).to(dtype)
    if (place / PIPELINE_INDEX).exists():
        return _pipeline(place, dtype)
    if (place / CONFIG).exists():
        return _module(place, dtype)
    raise BadModel(
        f"{place} holds no transformer: neither {PIPELINE_INDEX} (a pipeline) "
        f"nor {CONFIG} (a transformer) is in it"
    )


def _pipeline(folder: Path, dtype: torch.dtype) -> Any:
    if not (folder / "transformer" / CONFIG).exists():
        raise BadModel(f"{folder} is a pipeline without a transformer/{CONFIG}")
    from diffusers import DiffusionPipeline

    return _from_folder(DiffusionPipeline, folder, dtype)


def _module(folder: Path, dtype: torch.dtype) -> nn.Module:
    cls = diffusers_class(str(read_config(folder).get("_class_name")))
    return load(folder) if cls is None else _from_folder(cls, folder, dtype)


def _from_folder(cls: Any, folder: Path, dtype: torch.dtype) -> Any:
    for file in sorted(folder.rglob("*.safetensors")):
        read_header(file)
    return _from_pretrained(cls, folder, dtype, f"diffusers cannot open {folder}")


def _from_hub(name: str, dtype: torch.dtype) -> Any:
    from diffusers import DiffusionPipeline

    complaint = f"cannot get {name} from the Hugging Face hub or its local cache"
    return _from_pretrained(DiffusionPipeline, name, dtype, complaint)


def _from_pretrained(cls: Any, where: Path | str, dtype: torch.dtype, complaint: str) -> Any:
    from diffusers.utils import logging

    logging.disable_progress_bar()  # of assembling the parts; a download keeps its own
    try:
        return cls.from_pretrained(where, dtype=dtype)
    except FewbitError:
        raise
    except _FOREIGN as error:
        raise BrokenFile(f"{complaint}: {_first_line(error)}") from error


def _refuse_holes(model: Any, text: str) -> None:
    """diffusers only warns of a weight that no file holds, and leaves it without a value."""
    for part in _modules(model):
        for name, tensor in part.state_dict().items():
            if tensor.is_meta:
                raise BrokenFile(f"{text} lacks the weight {name} of {type(part).__name__}")


def _modules(model: Any) -> list[nn.Module]:
    parts = [model] if isinstance(model, nn.Module) else model.components.values()
    return [part for part in parts if isinstance(part, nn.Module)]


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
