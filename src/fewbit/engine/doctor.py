"""What this machine offers and which path a quantized layer takes on it, and why."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import textwrap
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from fewbit.engine.call import call_for
from fewbit.engine.plan import rules_of
from fewbit.engine.recipe import Recipe
from fewbit.kernels.choose import BACKENDS, Choice, choose
from fewbit.kernels.reference import Reference
from fewbit.layers.linear import QLinear, quantized_layers
from fewbit.methods.method import Rule
from fewbit.models import Layer, components_of, describe, is_known, quantized_components
from fewbit.models.hidden import shown
from fewbit.version import __version__

WIDTH = 80
PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "safetensors", "numpy")
CPU_FEATURES = {  # as we name them -> as Linux does
    "AVX2": "avx2",
    "AVX-512": "avx512f",
    "AVX-VNNI": "avx_vnni",
    "AVX-512 VNNI": "avx512_vnni",
    "AVX-512 BF16": "avx512_bf16",
    "AMX INT8": "amx_int8",
}


@dataclass(frozen=True)
class ExecutionPath:
    """One way a quantized layer can be run."""

    name: str
    taken: bool
    why: str


@dataclass(frozen=True)
class Diagnosis:
    versions: dict[str, str | None]  # None: not installed
    system: str
    cpu: str
    cpu_features: dict[str, bool] | None  # None: this system does not tell
    cpu_capability: str  # what torch's own kernels use
    threads: int
    memory_bytes: int | None
    gpus: list[str]
    cuda_build: str | None
    diffusers: str
    paths: list[ExecutionPath]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        features = self.cpu_features
        lines = {
            "system": self.system,
            "cpu": self.cpu,
            "": "not told by this system"
            if features is None
            else " ".join(f"{'+' if there else '-'}{name}" for name, there in features.items()),
            "threads": f"{self.threads}, torch kernels for {self.cpu_capability}",
            "memory": "unknown"
            if self.memory_bytes is None
            else f"{self.memory_bytes / 1e9:.1f} GB",
            "gpu": ", ".join(self.gpus) or f"none (torch built for {self.cuda_build or 'CPU'})",
            "diffusers": self.diffusers,
        }
        versions = ", ".join(f"{name} {found or '-'}" for name, found in self.versions.items())
        rows = [_beside(f"  {label:<10} ", text) for label, text in lines.items()]
        taken = [
            _beside(f"  {'->' if path.taken else '  '} ", f"{path.name}: {path.why}")
            for path in self.paths
        ]
        return "\n".join([*_folded(versions), *rows, "quantized layers run on", *taken])


def examine() -> Diagnosis:
    return Diagnosis(
        versions={"fewbit": __version__, "python": platform.python_version(), **_versions()},
        system=f"{platform.system()} {platform.release()}, {platform.machine()}",
        cpu=_cpu_line("model name") or platform.processor() or "unknown",
        cpu_features=_cpu_features(),
        cpu_capability=torch.backends.cpu.get_cpu_capability(),
        threads=torch.get_num_threads(),
        memory_bytes=_memory(),
        gpus=[torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        cuda_build=torch.version.cuda,
        diffusers=_diffusers(),
        paths=_paths(),
    )


@dataclass(frozen=True)
class LayerPath:
    """How one quantized layer is computed, and why so."""

    name: str
    weight: str
    input: str | None
    backend: str
    path: str
    why: str


@dataclass(frozen=True)
class LayerPaths:
    layers: tuple[LayerPath, ...]
    heading: str = ""  # of what is not quantized yet

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        """One row for all layers that take the same path."""
        kinds: dict[tuple[str, ...], list[str]] = {}
        for one in self.layers:
            key = (one.weight, one.input or "as it is", one.backend, one.path, one.why)
            kinds.setdefault(key, []).append(one.name)
        rows = (
            _beside(
                f"{len(names):>6} x ",
                f"{weight}, input {rounded}: {backend}, {path} ({why})",
                _few(names),
            )
            for (weight, rounded, backend, path, why), names in kinds.items()
        )
        return "\n".join([*([_beside("", self.heading)] if self.heading else []), *rows])


def examine_layers(model: Any, recipe: str = "best") -> LayerPaths:
    """Of a quantized model, on the device where it is; of another what the recipe would make."""
    components = quantized_components(model)
    if not components:
        return _prospect(model, Recipe.resolve(recipe, None, {}))
    several = len(components) > 1
    return LayerPaths(
        tuple(
            _layer_path(one.inside(name) if several else name, layer)
            for one in components
            for name, layer in quantized_layers(one.network).items()
        )
    )


def _prospect(model: Any, recipe: Recipe) -> LayerPaths:
    components = components_of(model)
    paths, quantized, total = [], 0, 0
    for one in components:
        call = call_for(model, one) if not is_known(one.network) else None
        with shown(one.network):
            structure = describe(one.network, None, call)
        device = next(one.network.parameters()).device
        rules = rules_of(recipe, structure)
        for layer in structure.layers:
            name = one.inside(layer.name) if len(components) > 1 else layer.name
            paths.append(_future(name, layer, rules.get(layer.name), choose(device)))
        quantized += sum(layer.parameters for layer in structure.layers if layer.name in rules)
        total += structure.parameters
    share = quantized / max(total, 1)
    heading = (
        f"not quantized: every layer runs as torch has it. By {recipe} {share:.1%} of the weights "
        "would run packed, so:"
    )
    return LayerPaths(tuple(paths), heading)


def _future(name: str, layer: Layer, rule: Rule | None, choice: Choice) -> LayerPath:
    if rule is None:
        return LayerPath(name, "as it is", None, "torch", "high precision", "it stays")
    path = choice.backend.path(rule.weight, rule.activation, (layer.shape[0], layer.shape[1]))
    rounded = None if rule.activation is None else str(rule.activation)
    return LayerPath(name, str(rule.weight), rounded, choice.backend.name, path, choice.why)


def _layer_path(name: str, layer: QLinear) -> LayerPath:
    choice = choose(layer.scales.device)
    shape = layer.out_features, layer.in_features
    path = choice.backend.path(layer.spec, layer.activation, shape)
    rounded = None if layer.stage is None else str(layer.stage)
    return LayerPath(name, str(layer.spec), rounded, choice.backend.name, path, choice.why)


def _paths() -> list[ExecutionPath]:
    """Every backend in the order in which they are tried; one is taken for each kind of device."""
    devices = [torch.device("cpu")]
    devices += [torch.device("cuda")] if torch.cuda.is_available() else []
    chosen = {choose(device).backend: choose(device).why for device in devices}
    return [_execution_path(backend, chosen, devices[-1]) for backend in BACKENDS]


def _execution_path(
    backend: Reference, chosen: dict[Reference, str], device: torch.device
) -> ExecutionPath:
    if backend in chosen:
        return ExecutionPath(backend.name, True, chosen[backend])
    home = device if backend.name == "cuda" else torch.device("cpu")
    why = backend.why_not(home) or "it could run, another is chosen"
    return ExecutionPath(backend.name, False, why)


def _beside(label: str, *texts: str) -> str:
    """Each text begins a line of its own, all beside the label."""
    width = WIDTH - len(label)
    lines = [line for text in texts for line in textwrap.wrap(text, width, break_on_hyphens=False)]
    return label + f"\n{' ' * len(label)}".join(lines)


def _few(names: list[str], count: int = 3) -> str:
    more = "" if len(names) <= count else f" and {len(names) - count} more"
    return ", ".join(names[:count]) + more


def _versions() -> dict[str, str | None]:
    return {name: _version(name) for name in PACKAGES}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _diffusers() -> str:
    try:
        from diffusers.quantizers.auto import AUTO_QUANTIZER_MAPPING
    except ImportError as error:
        return f"not usable: {error}"
    quantizer = AUTO_QUANTIZER_MAPPING.get("fewbit")
    if quantizer is None:
        return "present, fewbit is not registered"
    ours = quantizer.__module__.startswith("fewbit.")
    return "fewbit is registered" if ours else f"the name fewbit belongs to {quantizer.__module__}"


def _cpu_features() -> dict[str, bool] | None:
    flags = _cpu_line("flags")
    if flags is None:
        return None
    there = set(flags.split())
    return {name: flag in there for name, flag in CPU_FEATURES.items()}


def _cpu_line(key: str) -> str | None:
    file = Path("/proc/cpuinfo")
    for line in file.read_text().splitlines() if file.exists() else ():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return None


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _folded(text: str, width: int = WIDTH - 2) -> list[str]:
    lines = [""]
    for part in text.split(", "):
        if len(lines[-1]) + len(part) + 2 > width:
            lines.append("")
        lines[-1] += f", {part}" if lines[-1] else part
    return lines
