"""The blueprint: which layers of a model are quantized and how, short enough for a config.json.

An entry says `{"blocks": "transformer_blocks.0-27", "layers": ["attn1.to_q"], ...}` followed by
the layer's own config. Layers that share one input stage name the first of them: `"input":
{"same_as": "attn1.to_q"}`, a path inside the same block.
"""

from __future__ import annotations

import json
import re
from typing import Any

from torch import nn

from fewbit.errors import BrokenFile, FewbitError
from fewbit.input_stage import InputStage
from fewbit.linear import QLinear

Entry = dict[str, Any]
MOST_LAYERS = 100_000


def blueprint_of(model: nn.Module, inside: str = "") -> list[Entry]:
    """How `model`, or its block `inside`, is quantized; equal neighbours fold into one entry."""
    first_user: dict[tuple[int, str, int], str] = {}  # of a stage, in each block
    rows: dict[str, dict[tuple[str, str], list[int]]] = {}
    for name, layer in quantized_layers(model, inside).items():
        stem, index, path = _split(name)
        config = layer.config()
        if layer.stage is not None:
            first = first_user.setdefault((id(layer.stage), stem, index), name)
            if first != name:
                config["input"] = {"same_as": _split(first)[2]}
        rows.setdefault(json.dumps(config), {}).setdefault((stem, path), []).append(index)
    return [entry for config, places in rows.items() for entry in _entries(config, places)]


def apply_blueprint(model: nn.Module, entries: list[Entry]) -> None:
    """Put empty quantized layers where the blueprint says, on the device the linears are on."""
    stages: dict[str, InputStage] = {}
    sharers_last = sorted(expand(entries).items(), key=lambda item: _shared(item[1]) is not None)
    for name, config in sharers_last:
        linear = _linear_at(model, name, config)
        with linear.weight.device:
            layer = _build(name, config, stages)
        if layer.bias is not None:
            layer.bias.data = layer.bias.data.to(linear.weight.dtype)
        model.set_submodule(name, layer)


def expand(entries: list[Entry]) -> dict[str, dict[str, Any]]:
    """Layer name -> its config, every name once."""
    configs: dict[str, dict[str, Any]] = {}
    for entry in entries:
        blocks = _blocks(entry)
        config = {key: value for key, value in entry.items() if key not in ("blocks", "layers")}
        for block in blocks:
            for path in entry["layers"]:
                name = f"{block}.{path}"
                if name in configs:
                    raise BrokenFile(f"the blueprint describes {name[:200]!r} twice")
                if len(configs) == MOST_LAYERS:
                    raise BrokenFile(f"the blueprint describes more than {MOST_LAYERS} layers")
                configs[name] = _absolute(config, block)
    return configs


def quantized_layers(model: nn.Module, inside: str = "") -> dict[str, QLinear]:
    """By name, of the whole model or of the block called `inside`."""
    prefix = f"{inside}." if inside else ""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, QLinear) and name.startswith(prefix)
    }


def stored_as_is(model: nn.Module) -> set[str]:
    """The tensors whose dtype is part of the format: all of a quantized layer but its bias."""
    return {
        f"{name}.{part}"
        for name, layer in quantized_layers(model).items()
        for part in layer.state_dict()
        if part != "bias"
    }


def _entries(config: str, places: dict[tuple[str, str], list[int]]) -> list[Entry]:
    """One entry for all layers that have this config in the same range of blocks."""
    paths: dict[str, list[str]] = {}
    for (stem, path), indices in places.items():
        for low, high in _ranges(indices):
            blocks = f"{stem}.{low}" if low == high else f"{stem}.{low}-{high}"
            paths.setdefault(blocks, []).append(path)
    return [
        {"blocks": blocks, "layers": names, **json.loads(config)} for blocks, names in paths.items()
    ]


def _split(name: str) -> tuple[str, int, str]:
    """`transformer_blocks.3.attn1.to_q` -> (`transformer_blocks`, 3, `attn1.to_q`)."""
    match = re.fullmatch(r"(.*?)\.(\d+)\.(.+)", name)
    if not match:
        raise FewbitError(f"{name} is quantized but is not inside a numbered block")
    return match[1], int(match[2]), match[3]


def _ranges(indices: list[int]) -> list[tuple[int, int]]:
    ranges: list[tuple[int, int]] = []
    for index in sorted(indices):
        if ranges and ranges[-1][1] == index - 1:
            ranges[-1] = ranges[-1][0], index
        else:
            ranges.append((index, index))
    return ranges


def _blocks(entry: Entry) -> list[str]:
    fields = entry if isinstance(entry, dict) else {}
    match = re.fullmatch(r"([\w.]+)\.(\d{1,4})(?:-(\d{1,4}))?", str(fields.get("blocks")))
    layers = fields.get("layers")
    if not match or not isinstance(layers, list) or not all(isinstance(x, str) for x in layers):
        raise BrokenFile(f"a blueprint entry names no blocks and layers: {str(entry)[:120]}")
    low, high = int(match[2]), int(match[3] or match[2])
    if low > high:
        raise BrokenFile(f"a blueprint entry counts its blocks backwards: {entry['blocks']}")
    return [f"{match[1]}.{index}" for index in range(low, high + 1)]


def _absolute(config: dict[str, Any], block: str) -> dict[str, Any]:
    shared = _shared(config)
    return config if shared is None else {**config, "input": {"same_as": f"{block}.{shared}"}}


def _shared(config: dict[str, Any]) -> str | None:
    """The layer whose input stage this one uses."""
    stage = config.get("input")
    return stage.get("same_as") if isinstance(stage, dict) else None


def _linear_at(model: nn.Module, name: str, config: dict[str, Any]) -> nn.Linear:
    try:
        linear = model.get_submodule(name)
    except AttributeError:
        raise BrokenFile(f"the blueprint describes {name}, which the model has not") from None
    if not isinstance(linear, nn.Linear):
        raise BrokenFile(f"the blueprint describes {name}, which is no linear layer")
    if config.get("shape") != [linear.out_features, linear.in_features]:
        raise BrokenFile(
            f"the blueprint gives {name} the shape {config.get('shape')}, "
            f"the model has {[linear.out_features, linear.in_features]}"
        )
    return linear


def _build(name: str, config: dict[str, Any], stages: dict[str, InputStage]) -> QLinear:
    try:
        if "input" in config:
            stages[name] = _stage(name, config["input"], stages)
        return QLinear.from_config(config, stages.get(name))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BrokenFile(f"the blueprint of {name} cannot be read: {error!r}") from None


def _stage(name: str, config: dict[str, Any], stages: dict[str, InputStage]) -> InputStage:
    if "same_as" not in config:
        return InputStage.from_config(config)
    if config["same_as"] not in stages:
        raise BrokenFile(f"{name} shares the input of {config['same_as']}, which has none")
    return stages[config["same_as"]]
