"""The blueprint: which layers of a model are quantized and how, short enough for a config.json.

An entry says `{"blocks": "transformer_blocks.0-27", "layers": ["attn1.to_q"], ...}` followed by
the layer's own config; without `blocks` it names layers outside of them by their full paths. Layers
that share one input stage name the first of them: `"input": {"same_as": "attn1.to_q"}`, a path
inside the same block. An entry with `attentions` in the place of `layers` says how modules that
hold an attention round the operands of its matmuls.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any

from torch import Tensor, nn

from fewbit.activations.clock import share_clock
from fewbit.errors import BrokenFile, FewbitError
from fewbit.layers.attention import CHILD, QAttention, quantize_attention, quantized_attentions
from fewbit.layers.linear import QLinear, quantized_layers
from fewbit.layers.stage import InputStage
from fewbit.models.hidden import show_at

Entry = dict[str, Any]
MOST_LAYERS = 100_000
LONGEST_PATH = 200  # characters
LAYERS, ATTENTIONS = "layers", "attentions"  # what an entry may name
SHARED = "same_as"


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
                config["input"] = {SHARED: _split(first)[2]}
        rows.setdefault(json.dumps(config), {}).setdefault((stem, path), []).append(index)
    entries = [
        entry for config, places in rows.items() for entry in _entries(LAYERS, config, places)
    ]
    return entries + _attention_entries(model, inside)


def apply_blueprint(model: nn.Module, entries: list[Entry]) -> None:
    """Put empty quantized layers where the blueprint says, on the device the linears are on."""
    stages: dict[str, InputStage] = {}
    for name in expand(entries):
        show_at(model, name)
    modules = by_name(model)
    attentions = expand(entries, ATTENTIONS)
    sharers_last = sorted(expand(entries).items(), key=lambda item: _shared(item[1]) is not None)
    for name, config in sharers_last:
        linear = _linear_at(modules, name, config)
        with linear.weight.device:
            layer = _build(name, config, stages)
        if layer.bias is not None:
            layer.bias.data = layer.bias.data.to(linear.weight.dtype)
        layer.model_dtype = linear.weight.dtype
        parent, _, own = name.rpartition(".")
        setattr(modules[parent], own, layer)
    for name, config in attentions.items():
        _put_attention(modules, name, config)
    share_clock(model)


def expand(entries: list[Entry], kind: str = LAYERS) -> dict[str, dict[str, Any]]:
    """Name of a layer (or of an attention) -> its config, every name once."""
    configs: dict[str, dict[str, Any]] = {}
    for entry in entries:
        blocks = _blocks(entry)
        config = {key: value for key, value in entry.items() if key not in ("blocks", kind)}
        for block in blocks:
            for path in entry.get(kind, ()):
                name = _inside(block, path)
                if name in configs:
                    raise BrokenFile(f"the blueprint describes {name[:200]!r} twice")
                if len(configs) == MOST_LAYERS:
                    raise BrokenFile(f"the blueprint describes more than {MOST_LAYERS} layers")
                configs[name] = _absolute(config, block)
    return configs


def by_name(model: nn.Module) -> dict[str, nn.Module]:
    """All modules, under each of their names."""
    return dict(model.named_modules(remove_duplicate=False))


def quantized_tensors(model: nn.Module, inside: str = "") -> dict[str, Tensor]:
    """All that quantized layers and attentions store, by the names in the whole model."""
    parts: dict[str, nn.Module] = {**quantized_layers(model, inside)}
    for name, matmuls in quantized_attentions(model, inside).items():
        parts[f"{name}.{CHILD}"] = matmuls
    return {
        f"{name}.{key}": tensor
        for name, part in parts.items()
        for key, tensor in part.state_dict().items()
    }


def stored_as_is(model: nn.Module) -> set[str]:
    """The tensors whose dtype is part of the format: all of a quantized layer but its bias."""
    parts = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, QLinear | QAttention)
    ]
    tensors = {
        f"{inner}.{tensor}"
        for name, part in parts
        for inner, module in part.named_modules(prefix=name)
        for tensor in (*module._parameters, *module._buffers)
    }
    return tensors - {f"{name}.bias" for name, _ in parts}


def _attention_entries(model: nn.Module, inside: str) -> list[Entry]:
    rows: dict[str, dict[tuple[str, str], list[int]]] = {}
    for name, matmuls in quantized_attentions(model, inside).items():
        stem, index, path = _split(name)
        rows.setdefault(json.dumps(matmuls.config()), {}).setdefault((stem, path), []).append(index)
    return [
        entry for config, places in rows.items() for entry in _entries(ATTENTIONS, config, places)
    ]


def _entries(kind: str, config: str, places: dict[tuple[str, str], list[int]]) -> list[Entry]:
    """One entry for all layers or attentions of this config in the same range of blocks."""
    paths: dict[str, list[str]] = {}
    for (stem, path), indices in places.items():
        for low, high in _ranges(indices):
            blocks = f"{stem}.{low}" if low == high else f"{stem}.{low}-{high}"
            paths.setdefault(blocks if stem else "", []).append(path)
    return [
        {**({"blocks": blocks} if blocks else {}), kind: names, **json.loads(config)}
        for blocks, names in paths.items()
    ]


def _split(name: str) -> tuple[str, int, str]:
    """`transformer_blocks.3.attn1.to_q` -> (`transformer_blocks`, 3, `attn1.to_q`); what is in no
    numbered block is its own path."""
    match = re.fullmatch(r"(.*?)\.(\d+)\.(.+)", name)
    return (match[1], int(match[2]), match[3]) if match else ("", 0, name)


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
    outside = "blocks" not in fields
    match = re.fullmatch(r"([\w.]+)\.(\d{1,4})(?:-(\d{1,4}))?", str(fields.get("blocks")))
    lists = [fields[kind] for kind in (LAYERS, ATTENTIONS) if kind in fields]
    names = lists[0] if len(lists) == 1 else None
    fits = isinstance(names, list) and all(map(_is_path, names))
    if not fits or not (match or outside):
        raise BrokenFile(f"a blueprint entry names no blocks and layers: {entry!r:.120}")
    if match is None:
        return [""]
    low, high = int(match[2]), int(match[3] or match[2])
    if low > high:
        raise BrokenFile(f"a blueprint entry counts its blocks backwards: {entry['blocks']}")
    return [f"{match[1]}.{index}" for index in range(low, high + 1)]


def _is_path(name: object) -> bool:
    return isinstance(name, str) and len(name) <= LONGEST_PATH and name.isprintable()


def _absolute(config: dict[str, Any], block: str) -> dict[str, Any]:
    shared = _shared(config)
    return config if shared is None else {**config, "input": {SHARED: _inside(block, shared)}}


def _inside(block: str, path: str) -> str:
    return f"{block}.{path}" if block else path


def _shared(config: dict[str, Any]) -> str | None:
    """The layer whose input stage this one uses."""
    stage = config.get("input")
    if not isinstance(stage, dict) or SHARED not in stage:
        return None
    if stage.keys() != {SHARED} or not _is_path(stage[SHARED]):
        raise BrokenFile(f"a blueprint entry shares the input of no layer: {stage!r:.120}")
    shared: str = stage[SHARED]
    return shared


def _linear_at(modules: Mapping[str, nn.Module], name: str, config: dict[str, Any]) -> nn.Linear:
    linear = _module_at(modules, name)
    if not isinstance(linear, nn.Linear):
        raise BrokenFile(f"the blueprint describes {name}, which is no linear layer")
    shape = [linear.out_features, linear.in_features]
    if config.get("shape") != shape or not all(shape):
        raise BrokenFile(
            f"the blueprint gives {name} the shape {config.get('shape')!r:.80}, "
            f"the model has {shape}"
        )
    return linear


def _module_at(modules: Mapping[str, nn.Module], name: str) -> nn.Module:
    if name not in modules:
        raise BrokenFile(f"the blueprint describes {name}, which the model has not")
    return modules[name]


def _build(name: str, config: dict[str, Any], stages: dict[str, InputStage]) -> QLinear:
    with _reading(name):
        if "input" in config:
            stages[name] = _stage(config["input"], stages)
            stages[name].check_width(config["shape"][1])
        layer = QLinear.from_config(config, stages.get(name))
        _refuse_other(layer.config(), _unshared(config, stages.get(name)))
    return layer


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """Whatever a forged description makes a constructor do is a fault of the file."""
    try:
        yield
    except FewbitError as error:
        raise BrokenFile(f"the blueprint of {name} cannot be read: {str(error)[:300]}") from None
    except KeyError as missing:
        raise BrokenFile(f"the blueprint of {name} lacks {missing.args[0]!r:.80}") from None
    except Exception as error:
        raise BrokenFile(f"the blueprint of {name} cannot be read: {error!r:.300}") from None


def _refuse_other(built: dict[str, Any], said: dict[str, Any]) -> None:
    """What was built describes itself as the file does: nothing was left out or taken for
    something else."""
    if json.dumps(built, sort_keys=True) != json.dumps(said, sort_keys=True):
        raise BrokenFile(f"it says {str(said)[:120]!r}, understood was {str(built)[:120]!r}")


def _unshared(config: dict[str, Any], stage: InputStage | None) -> dict[str, Any]:
    """The same with a shared input written out."""
    if stage is None or _shared(config) is None:
        return config
    return {**config, "input": stage.config()}


def _put_attention(modules: Mapping[str, nn.Module], name: str, config: dict[str, Any]) -> None:
    module = _module_at(modules, name)
    if hasattr(module, CHILD):
        raise BrokenFile(f"the blueprint quantizes the attention of {name} twice")
    with _reading(name), next(chain(module.parameters(), module.buffers())).device:
        matmuls = QAttention.from_config(config)
        _refuse_other(matmuls.config(), config)
        matmuls.check_heads(getattr(module, "heads", None))
    quantize_attention(module, matmuls)


def _stage(config: dict[str, Any], stages: dict[str, InputStage]) -> InputStage:
    if SHARED not in config:
        return InputStage.from_config(config)
    if config[SHARED] not in stages:
        raise BrokenFile(f"it shares the input of {config[SHARED]}, which has none")
    return stages[config[SHARED]]
