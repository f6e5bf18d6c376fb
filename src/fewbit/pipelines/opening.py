"""What may be called a model: a demo's name, a folder, an original checkpoint file, a hub id.

The command line and the Python door open and inspect it alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fewbit import demo
from fewbit.errors import BadArgument, BadModel, BrokenFile, FewbitError, first_sentence
from fewbit.files import checked_path
from fewbit.models import denoises, load_original, transformer_of
from fewbit.models.component import DENOISERS
from fewbit.storage.folder import (
    component_folders,
    diffusers_class,
    is_quantized,
    load_module,
    skeleton,
)
from fewbit.storage.foreign.loading import dialect_of, load_foreign
from fewbit.storage.header import read_header
from fewbit.storage.hub import HUB_ID, downloaded
from fewbit.storage.reader import CONFIG, PIPELINE_INDEX
from fewbit.storage.regular_file import refuse_special_files
from fewbit.storage.strict_json import read_table

CHECKPOINTS = (".pt", ".pth", ".safetensors")
_FOREIGN = (
    OSError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    NameError,
    ImportError,
    RuntimeError,
)


def open_model(
    text: str | Path,
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


def load(path: str | Path, like: Any = None) -> Any:
    """Load what `save` wrote, in the dtype it was saved in, or a file of another runtime.

    Files of ComfyUI (`.safetensors`) and GGUF are read as they are stored: no weight is unpacked.

    Args:
        path: A folder that `save` wrote, the hub id of one that `push` sent, the name of a demo, or
            a file of another runtime.
        like: For a folder of a class that neither fewbit nor diffusers knows, an instance in full
            precision. For a file, which does not say what its layers belong to, the model: an
            instance or a pipeline of it, whose layers are replaced, or its configuration, which is
            a table or a folder with `config.json`.
    """
    if isinstance(path, str) and path in demo.names():
        return demo.load(path)
    place = locate(path)
    if isinstance(place, str):
        place = downloaded(place)
    if place.is_file():
        return _load_file(place, like)
    if not isinstance(like, nn.Module | None):
        raise BadArgument(f"a folder is loaded like a module, got {type(like).__name__}")
    return load_folder(place, like)


def _load_file(file: Path, like: Any) -> Any:
    """A pipeline is given back whole, its first network that denoises filled from the file."""
    dialect_of(file)
    if like is None:
        raise BadArgument(
            f"{file} does not say what model it belongs to; give like=, an instance of the model, "
            "a pipeline, or a folder with its config.json"
        )
    if isinstance(like, str | Path | Mapping):
        return load_foreign(file, _empty_like(like))
    load_foreign(file, transformer_of(like))
    return like


def _empty_like(like: str | Path | Mapping[str, Any]) -> nn.Module:
    """The model of a configuration, without weights."""
    if isinstance(like, Mapping):
        return skeleton(Path("the configuration"), like)
    folder = checked_path("like", like)
    folder = folder / DENOISERS[0] if (folder / PIPELINE_INDEX).exists() else folder
    return skeleton(folder, read_table(folder / CONFIG))


def load_folder(folder: Path, model: nn.Module | None = None) -> Any:
    """The pipeline or module that `save` wrote, in the dtype it was saved in."""
    if (folder / PIPELINE_INDEX).exists():
        return _load_pipeline(folder)
    if not (folder / CONFIG).exists():
        raise BrokenFile(f"{folder} is no folder of a quantized model: it has no {CONFIG}")
    return load_module(folder, model)


def locate(text: str | Path) -> Path | str:
    """An existing file or folder, or a hub id. A path that does not exist is never a hub id."""
    if isinstance(text, str) and text in demo.names():
        return demo.path(text)
    path = checked_path("the model", text).expanduser()
    if path.exists():
        return path
    name = str(text)
    looks_like_id = HUB_ID.fullmatch(name) and path.suffix not in CHECKPOINTS
    if looks_like_id and not path.parent.exists():
        return name
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


def check_folder(folder: Path) -> None:
    """There is a transformer in it, all is regular files, and every weight file is whole."""
    refuse_special_files(folder)
    is_pipeline = (folder / PIPELINE_INDEX).exists()
    if is_pipeline and not any(map(denoises, component_folders(folder))):
        raise BadModel(f"{folder} is a pipeline without a transformer/{CONFIG}")
    if not is_pipeline and not (folder / CONFIG).exists():
        raise BadModel(
            f"{folder} holds no transformer: neither {PIPELINE_INDEX} (a pipeline) "
            f"nor {CONFIG} (a transformer) is in it"
        )
    for file in sorted(folder.rglob("*.safetensors")):
        read_header(file)


def _load_pipeline(folder: Path) -> Any:
    """Everything that is not quantized is diffusers' to load."""
    from diffusers import DiffusionPipeline

    refuse_special_files(folder)
    folders = component_folders(folder)
    loaded: dict[str, Any] = {
        name: load_module(place) for name, place in folders.items() if is_quantized(place)
    }
    if not loaded:
        raise BrokenFile(f"{folder} holds no quantized network")
    dtype = next(iter(loaded.values())).dtype
    try:
        return DiffusionPipeline.from_pretrained(folder, **loaded, dtype=dtype)
    except Exception as error:  # a broken file makes a foreign loader fail in any way
        raise BrokenFile(f"diffusers cannot load the pipeline of {folder}: {error}") from None


def _open(place: Path | str, dtype: torch.dtype, heads: int | None) -> Any:
    if isinstance(place, str):
        return _from_hub(place, dtype)
    if place.is_file():
        return load_original(place, heads=heads).to(dtype)
    return _from_folder(place, dtype)


def _from_folder(folder: Path, dtype: torch.dtype) -> Any:
    check_folder(folder)
    if (folder / PIPELINE_INDEX).exists():
        from diffusers import DiffusionPipeline as cls
    else:
        cls = diffusers_class(str(read_table(folder / CONFIG).get("_class_name")))
    if cls is None:
        return load_folder(folder)
    return _from_pretrained(cls, folder, dtype, f"diffusers cannot open {folder}")


def _from_hub(name: str, dtype: torch.dtype) -> Any:
    from diffusers import DiffusionPipeline

    complaint = f"cannot get {name} from the Hugging Face hub or its local cache"
    return _from_pretrained(DiffusionPipeline, name, dtype, complaint)


def _from_pretrained(cls: Any, where: Path | str, dtype: torch.dtype, complaint: str) -> Any:
    import diffusers
    import transformers

    for library in (diffusers, transformers):  # of assembling the parts; a download keeps its own
        library.utils.logging.disable_progress_bar()
    try:
        return cls.from_pretrained(where, dtype=dtype)
    except FewbitError:
        raise
    except _FOREIGN as error:
        raise BrokenFile(f"{complaint}: {first_sentence(error)}") from None


def _refuse_holes(model: Any, text: str | Path) -> None:
    """diffusers only warns of a weight that no file holds, and leaves it without a value."""
    for part in _modules(model):
        for name, tensor in part.state_dict().items():
            if tensor.is_meta:
                raise BrokenFile(f"{text} lacks the weight {name} of {type(part).__name__}")


def _modules(model: Any) -> list[nn.Module]:
    parts = [model] if isinstance(model, nn.Module) else model.components.values()
    return [part for part in parts if isinstance(part, nn.Module)]
