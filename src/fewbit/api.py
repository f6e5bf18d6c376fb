"""save, push, export, inspect, prepare, dequantize: what a user calls after quantize."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fewbit.engine.call import usual_call
from fewbit.engine.card import RECIPE, published_card, write_card
from fewbit.engine.graphs.writing import GRAPHS, write_graph
from fewbit.engine.inspection import Inspection, Inspections, inspect_folder, inspect_model
from fewbit.engine.report import Report
from fewbit.errors import BadArgument, BadModel, BadOutput
from fewbit.files import checked_path, new_folder
from fewbit.layers.bind import bind, unbind
from fewbit.layers.dequantize import dequantize_layers
from fewbit.layers.linear import quantized_layers
from fewbit.models import Component, quantized_components
from fewbit.pipelines.opening import check_folder, locate, open_model
from fewbit.storage.folder import holds_quantized, save_module
from fewbit.storage.foreign.writing import TARGETS, write_foreign
from fewbit.storage.hub import CARD, upload
from fewbit.storage.reader import CONFIG, PIPELINE_INDEX
from fewbit.storage.spec_file import Given
from fewbit.storage.strict_json import read_table

MODES = ("compact", "fast")


def save(
    model: Any, path: str | Path, *, report: Report | None = None, overwrite: bool = False
) -> None:
    """Write a quantized pipeline or module as a folder that `load` and diffusers read.

    The folder is filled under a hidden name and takes its name when it is whole.

    Args:
        model: A pipeline or module that `fewbit.quantize` has quantized.
        path: The folder to write.
        report: What `fewbit.quantize` returned. It is saved beside the weights, with a page for
            the eye.
        overwrite: Whether to replace what the folder holds.
    """
    place = checked_path("path", path)
    if not isinstance(report, Report | None):
        raise BadArgument(f"report must be a fewbit.Report, got {type(report).__name__}")
    _quantized(model)
    with new_folder(place, overwrite) as folder:
        if hasattr(model, "save_pretrained"):
            _keep_class_names(model)
            model.save_pretrained(folder)
            _forget_local_paths(folder)
        else:
            save_module(model, folder)
        write_card(model, folder, report)


def push(folder: str | Path, repo: str, *, private: bool = False) -> str:
    """Send a folder that `save` wrote to the Hugging Face hub, in one commit.

    The card there names the base model and has its licence, which is taken from the card of the
    base model. The folder is not changed. `fewbit.load(repo)` brings it back.

    Args:
        folder: The folder.
        repo: The repository, such as `"user/name"`. It is made if it is not there.
        private: Whether a new repository is hidden from others.

    Returns:
        The address of the repository.
    """
    place = checked_path("the folder", folder)
    check_folder(place)
    if not holds_quantized(place):
        raise BadModel(f"{place} holds no network that fewbit has quantized")
    files: dict[str, Path | bytes] = {
        file.relative_to(place).as_posix(): file
        for file in sorted(place.rglob("*"))
        if file.is_file() and not file.relative_to(place).as_posix().startswith(".")
    }
    files[CARD] = published_card(place, repo).encode()
    recipe = read_table(place / RECIPE)
    message = f"Add {recipe.get('method')}:{recipe.get('bits')}, made by fewbit"
    return upload(files, repo, message, private)


def export(
    model: Any,
    path: str | Path,
    format: str,
    *,
    overwrite: bool = False,
    call: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Write a quantized model as a file that another runtime reads, each layer as it is stored.

    A format says how its inputs are rotated and rounded, so that not every recipe fits: the recipe
    `portable` makes the layers of each format, and its bits are called as the formats are. ONNX and
    OpenVINO get a graph of the whole network, for inputs in the shapes of one call.

    Args:
        model: A quantized pipeline, whose first network that denoises is written, or a module.
        path: The file, ending in `.safetensors` for formats of ComfyUI, in `.gguf` for GGUF, in
            `.onnx` or in `.xml` for OpenVINO.
        format: `"comfy-int8"`, `"comfy-w4a8"`, `"comfy-convrot-w4a4"`, `"comfy-nvfp4"`,
            `"gguf-q8_0"`, `"gguf-q5_1"`, `"gguf-q5_0"`, `"gguf-q4_1"`, `"gguf-q4_0"`,
            `"gguf-mxfp4"`, `"onnx"` or `"openvino"`.
        overwrite: Whether to replace a file that is there.
        call: For a graph, the keyword arguments of one forward; a pipeline needs none.

    Returns:
        The files that were written: weights of a graph may lie beside it.
    """
    place = checked_path("path", path)
    if format not in (*TARGETS, *GRAPHS):
        known = ", ".join((*TARGETS, *GRAPHS))
        raise BadArgument(f"unknown format {format!r:.80}; formats: {known}")
    if call is not None and format not in GRAPHS:
        raise BadArgument(f"{format} holds no graph, so call has no meaning; leave it out")
    denoiser = next((one for one in _quantized(model) if one.denoises), None)
    if denoiser is None:
        raise BadModel("no network that denoises is quantized; a file holds the denoiser alone")
    if place.exists() and not overwrite:
        raise BadOutput(f"{place} already exists; choose another or overwrite it")
    if format in GRAPHS:
        given = usual_call(model, denoiser) if call is None else call
        return write_graph(denoiser.network, given, place, format)
    write_foreign(denoiser.network, place, format)
    return [place]


def inspect(
    model: Any, spec: Given = None, *, heads: int | None = None
) -> Inspection | Inspections:
    """Say what a model is made of: each linear layer, its role, its shape, its bytes.

    Of a pipeline these are the networks that denoise and those that are quantized; of more than one
    each has an inspection of its own.

    Args:
        model: A pipeline, a module, a folder, an original checkpoint file, a hub id, or the name
            of a demo. The tensors of a folder are not loaded, and need not be there: a
            `config.json` will do.
        spec: Where the blocks are and what their linear layers do: a `fewbit.ModelSpec`, a table
            of its fields, or the path of a JSON file. Left out, fewbit knows it or finds it out;
            of a pipeline that it does not know it runs the transformer once.
        heads: The number of attention heads, for an original checkpoint of unpublished width.
    """
    if not isinstance(model, str | Path):
        return inspect_model(model, spec)
    place = locate(model)
    if isinstance(place, Path) and place.name == CONFIG:
        place = place.parent
    if not (isinstance(place, Path) and place.is_dir()):
        return inspect_model(open_model(model, heads=heads), spec)
    check_folder(place)
    return inspect_folder(place, spec)


def prepare(model: Any, mode: str = "fast") -> None:
    """Choose how the weights of a quantized model are held in memory.

    No bit of a result changes.

    Args:
        model: A quantized pipeline or module.
        mode: `"compact"` holds the weights packed, and unpacks them at each call where the backend
            needs it. `"fast"` unpacks them once, at the first call, where the backend is quicker
            with weights of 8 bits, and holds them beside the packed ones: on CUDA, in pure torch,
            and in native code for tables (`lut16`) and floats of 5 to 7 bits. A model begins fast
            in native code and compact elsewhere. Native code reads 4 bits packed at the same
            speed, and holds other integers in 8 bits instead of their packed codes in any case.
    """
    if mode not in MODES:
        raise BadArgument(f"unknown mode {mode!r}; allowed: {', '.join(MODES)}")
    for component in _quantized(model):
        unbind(component.network)
        for layer in quantized_layers(component.network).values():
            layer.fast = mode == "fast"
        bind(component.network)


def dequantize(model: Any) -> None:
    """Turn every quantized layer back into a full-precision linear, in place.

    The weights are those of the quantized model: what rounding lost does not come back.

    Args:
        model: A quantized pipeline or module.
    """
    components = quantized_components(model)
    if not components:
        raise BadModel("the model is not quantized; there is nothing to undo")
    for component in components:
        network: Any = component.network
        if hasattr(network, "hf_quantizer"):
            network.dequantize()
        else:
            dequantize_layers(network)


def _quantized(model: Any) -> tuple[Component, ...]:
    components = quantized_components(model)
    if not components:
        raise BadModel("the model is not quantized; call fewbit.quantize(model, recipe) first")
    return components


def _keep_class_names(model: Any) -> None:
    """diffusers reads the names of a DiT's classes but would not write them again."""
    names: dict[int, list[str]] = {}
    for name, number in getattr(model, "labels", {}).items():
        names.setdefault(number, []).append(name)
    if names:
        texts = {str(number): ", ".join(alike) for number, alike in sorted(names.items())}
        model.register_to_config(id2label=texts)


def _forget_local_paths(folder: Path) -> None:
    """Where a part lay on the writer's disk is nobody's business; a hub id stays."""
    for file in (*folder.glob(PIPELINE_INDEX), *folder.rglob(CONFIG)):
        content = json.loads(file.read_text())
        if Path(str(content.get("_name_or_path"))).is_absolute():
            content.pop("_name_or_path")
            file.write_text(json.dumps(content, indent=2) + "\n")
