"""Thousands of artefacts of all recipes, each broken in one way: what comes of loading them.

python benchmarks/hostile.py               7,000; killed, it goes on where it was at that commit
python benchmarks/hostile.py --only 123    one of them, with its traceback

An artefact must load as it was, or be refused in a sentence. One whose checksums were made to fit
may load as another model, which must run. Every one has a seed of its own, its number.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import socket
import struct
import tempfile
import traceback
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import DiTTransformer2DModel
from environment import RESULTS, commit, write_result
from torch import Tensor

import fewbit
from fewbit.errors import FewbitError

COUNT = 7000
SECONDS, BYTES = 20, 4 << 30  # that one may take, the rest of the process aside
RECIPES: dict[str, dict[str, Any]] = {
    "rtn:w4a4": {},
    "rtn:nvfp4": {},
    "hq-dit:w4a4": {"samples": 8},
    "hq-dit:w4a4 per channel": {"samples": 8, "selection_per": "channel", "smooth": 0.5},
    "fp4dit:w4a8": {"samples": 8, "steps": 2, "batch": 4, "softmax": "fp8", "group": 16},
    "vq4dit:w2a16": {"samples": 8, "steps": 2, "batch": 4},
    "tq-dit:w8a8": {"groups": 3, "samples": 12, "rounds": 1, "candidates": 4},
}
SHARDED = "rtn:w4a4"
WEIGHTS, CONFIG = "diffusion_pytorch_model.safetensors", "config.json"
INDEX = f"{WEIGHTS}.index.json"
STRANGE: list[Any] = [
    None, True, False, 0, 1, -1, 3, 7, 1000, 2**20, 2**31, 2**31 - 1, -(2**63), 2**70, 0.5, -0.0,
    1e308, "", "x", "auto", "../x", "a\x1b[31mb", "\x00", "\ud800", "é" * 300, "int8/row/fp32",
    "vq256x4/row/fp16", "e2m1|e1m2/row/fp32", "int4/g7/fp32", "e5m2/row/e8m0", [], {}, [1], [[]],
    {"kind": "hadamard", "width": 2**40, "block": None, "seed": 0}, {"kind": "static"}, {"a": {}},
]  # fmt: skip


class Hang(BaseException):
    pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--only", type=int)
    place = Path(tempfile.gettempdir()) / f"fewbit_hostile_{commit()}"
    parser.add_argument("--work", type=Path, default=place)
    options = parser.parse_args()
    torch.set_num_threads(1)
    wholes = made(options.work / "whole")
    log = options.work / "log.jsonl"
    if options.only is not None:
        print(json.dumps(tried(options.only, wholes, options.work, aloud=True), indent=1))
        return
    done = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    with log.open("a") as out:
        for number in range(len(done), options.count):
            done.append(tried(number, wholes, options.work))
            out.write(json.dumps(done[-1]) + "\n")
            out.flush()
            if len(done) % 500 == 0:
                print(len(done), dict(Counter(one["outcome"] for one in done)), flush=True)
    say(done)


def say(done: list[dict[str, Any]]) -> None:
    kinds = sorted({one["mutation"] for one in done})
    figures = {
        "artefacts": len(done),
        "outcomes": dict(sorted(Counter(one["outcome"] for one in done).items())),
        "by_mutation": {kind: _counts(done, "mutation", kind) for kind in kinds},
        "by_recipe": {name: _counts(done, "recipe", name) for name in RECIPES},
        "faults": [one for one in done if one["outcome"].startswith("FAULT")],
    }
    print(json.dumps({k: v for k, v in figures.items() if k != "by_recipe"}, indent=1))
    write_result("hostile", figures)
    print(RESULTS / "hostile.json")


def _counts(done: list[dict[str, Any]], key: str, value: str) -> dict[str, int]:
    return dict(sorted(Counter(one["outcome"] for one in done if one[key] == value).items()))


class Whole:
    """An artefact as it was written, and what its model holds and gives."""

    def __init__(self, recipe: str, folder: Path) -> None:
        self.recipe, self.folder = recipe, folder
        model = fewbit.load(folder)
        self.state, self.output = model.state_dict(), run(model)


def made(place: Path) -> list[Whole]:
    """One folder for each recipe, and one in shards."""
    for recipe, settings in RECIPES.items():
        folder = place / recipe.replace(":", " ")
        if not folder.exists():
            model, (name, bits) = tiny(), recipe.split()[0].split(":")
            given = {} if name == "rtn" else {"calibration": rows()}
            fewbit.quantize(model, name, bits=bits, progress=False, **given, **settings)
            fewbit.save(model, folder)
            if recipe == SHARDED:
                model.save_pretrained(place / "shards", max_shard_size="8KB")
    folders = {place / recipe.replace(":", " "): recipe for recipe in RECIPES}
    return [Whole(n, f) for f, n in folders.items()] + [Whole(SHARDED, place / "shards")]


def tiny() -> Any:
    torch.manual_seed(0)
    sizes = {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 2, "sample_size": 4}
    return DiTTransformer2DModel(**sizes, num_embeds_ada_norm=10, norm_num_groups=4).eval()


def rows() -> list[dict[str, Tensor]]:
    noise = torch.Generator().manual_seed(1)
    return [
        {
            "hidden_states": torch.randn(1, 4, 4, 4, generator=noise),
            "timestep": torch.tensor([80 * row + 1]),
            "class_labels": torch.tensor([row % 10]),
        }
        for row in range(12)
    ]


def run(model: Any) -> Tensor:
    with torch.no_grad():
        output: Tensor = model(**rows()[3]).sample
    return output


def tried(number: int, wholes: list[Whole], work: Path, aloud: bool = False) -> dict[str, Any]:
    rng = random.Random(number)
    whole = rng.choice(wholes)
    mutation = rng.choice(list(MUTATIONS))
    folder = work / "broken"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole.folder, folder)
    MUTATIONS[mutation](folder, rng)
    stock = mutation in SAFE_FOR_DIFFUSERS and rng.random() < 0.1
    signal.signal(signal.SIGALRM, _hang)
    signal.alarm(SECONDS)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        model = DiTTransformer2DModel.from_pretrained(folder) if stock else fewbit.load(folder)
        outcome, said = judged(model, whole, forged=mutation in FORGED)
    except FewbitError as error:
        outcome, said = judged_words(str(error))
    except Hang:
        outcome, said = "FAULT hang", ""
    except Exception as error:
        outcome, said = judged_raw(error, stock), f"{type(error).__name__}: {error!s:.300}"
        if aloud:
            traceback.print_exc()
    finally:
        signal.alarm(0)
    if (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 > BYTES:
        outcome = "FAULT memory"
    one = {"number": number, "recipe": whole.recipe, "mutation": mutation, "outcome": outcome}
    return {**one, "stock": stock, "said": said}


def judged(model: Any, whole: Whole, forged: bool) -> tuple[str, str]:
    state = model.state_dict()
    same = state.keys() == whole.state.keys() and all(
        torch.equal(tensor.contiguous().view(-1).view(torch.uint8), _bytes(whole.state[name]))
        for name, tensor in state.items()
    )
    output = run(model)
    if same and torch.equal(output, whole.output):
        return "equal", ""
    if not forged:
        return "FAULT altered", ""
    return ("another model", "") if bool(output.isfinite().all()) else ("another, not finite", "")


def judged_words(said: str) -> tuple[str, str]:
    if not said.isprintable():
        return "FAULT control characters", repr(said)
    return ("refused", said) if len(said) < 1000 else ("FAULT long message", said[:1000])


def judged_raw(error: Exception, stock: bool) -> str:
    """Of what stock diffusers reads itself it may say what it likes."""
    last = traceback.extract_tb(error.__traceback__)[-1].filename
    theirs = stock and str(Path(fewbit.__file__).parent) not in last
    return "refused by diffusers" if theirs else "FAULT raw error"


def _hang(*_: object) -> None:
    raise Hang


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)


# What is done to a folder.


def header_bytes(folder: Path, rng: random.Random) -> None:
    path = _weights(folder, rng)
    raw = path.read_bytes()
    end = 8 + struct.unpack("<Q", raw[:8])[0]
    path.write_bytes(_scrambled(raw[:end], rng) + raw[end:])


def data_bytes(folder: Path, rng: random.Random) -> None:
    path = _weights(folder, rng)
    raw = path.read_bytes()
    begin = 8 + struct.unpack("<Q", raw[:8])[0]
    path.write_bytes(raw[:begin] + _scrambled(raw[begin:], rng))


def json_bytes(folder: Path, rng: random.Random) -> None:
    path = rng.choice(_tables(folder))
    path.write_bytes(_scrambled(path.read_bytes(), rng))


def cut_short(folder: Path, rng: random.Random) -> None:
    path = rng.choice([*_tables(folder), _weights(folder, rng)])
    raw = path.read_bytes()
    path.write_bytes(raw[: rng.randrange(len(raw))])


def json_values(folder: Path, rng: random.Random) -> None:
    path = rng.choice(_tables(folder))
    content = json.loads(path.read_text())
    _swap(content, rng)
    path.write_text(json.dumps(content))


def header_entries(folder: Path, rng: random.Random) -> None:
    """A value or a name of the header, its texts aside."""
    path = _weights(folder, rng)
    header, data = _split(path)
    metadata = header.pop("__metadata__")
    _swap(header, rng)
    _join(path, {"__metadata__": metadata, **header}, data)


def metadata(folder: Path, rng: random.Random) -> None:
    path = _weights(folder, rng)
    header, data = _split(path)
    _swap(header["__metadata__"], rng)
    _join(path, header, data)


def manifest(folder: Path, rng: random.Random) -> None:
    """Any value or name in it, signed again."""
    _forge(folder, lambda content: _swap(content, rng))


def blueprint(folder: Path, rng: random.Random) -> None:
    _forge(folder, lambda content: _swap(content["layers"], rng))


def recipe(folder: Path, rng: random.Random) -> None:
    """In the manifest and in the configuration alike."""
    path = folder / CONFIG
    config = json.loads(path.read_text())
    said = config["quantization_config"]
    _swap(said["recipe"], rng)
    said["bits"] = said["recipe"].get("bits")
    path.write_text(json.dumps(config))
    _forge(folder, lambda content: content["provenance"].update(recipe=said["recipe"]))


def architecture(folder: Path, rng: random.Random) -> None:
    """In the manifest and in the configuration alike."""
    path = folder / CONFIG
    config = json.loads(path.read_text())
    own = [key for key in config if not key.startswith("_") and key != "quantization_config"]
    key = rng.choice(own)
    config[key] = rng.choice(STRANGE)
    path.write_text(json.dumps(config))
    _forge(folder, lambda content: content["architecture"].update({key: config[key]}))


def numbers(folder: Path, rng: random.Random) -> None:
    """Tensors with other numbers and fitting checksums."""
    path = _weights(folder, rng)
    header, data = _split(path)
    name = rng.choice([name for name in header if name != "__metadata__"])
    start, end = header[name]["data_offsets"]
    kind, shape = header[name]["dtype"], header[name]["shape"]
    part = bytearray(data[start:end])
    if rng.random() < 0.3:
        part[:] = rng.choice([b"\x00", b"\xff", b"\x7f", b"\x80"]) * len(part)
    for _ in range(rng.randrange(1, 9) if part else 0):
        part[rng.randrange(len(part))] = rng.choice([0, 0x7F, 0x80, 0xFF, rng.randrange(256)])
    _join(path, header, data[:start] + bytes(part) + data[end:])
    line = f"{kind} [{', '.join(map(str, shape))}]\n".encode()
    crc = f"{zlib.crc32(line + bytes(part)):08x}"
    _forge(folder, lambda content: content["crc32"].update({name: crc}))


def empty_tensor(folder: Path, rng: random.Random) -> None:
    """One of no bytes, at any offset, known to the manifest."""
    path = _weights(folder, rng)
    header, data = _split(path)
    names = [name for name in header if name != "__metadata__"]
    at = rng.choice(header[rng.choice(names)]["data_offsets"])
    name = rng.choice([*names, "extra", "transformer_blocks.0.attn1.to_q.zeros"])
    kind = rng.choice(["F32", "U8", "F16", "I64", "F8_E4M3"])
    if name not in names:
        header[name] = {"dtype": kind, "shape": [0, 4], "data_offsets": [at, at]}
    else:
        header[name]["shape"] = [0, *header[name]["shape"][1:]]
    _join(path, header, data)
    crc = f"{zlib.crc32(f'{kind} [0, 4]'.encode() + bytes([10])):08x}"
    _forge(folder, lambda content: content["crc32"].update({name: crc}))


def extra_files(folder: Path, rng: random.Random) -> None:
    name = rng.choice(["model.safetensors", INDEX, "x.safetensors", "pytorch_model.bin", "\x1b[31m",
                       "model_index.json", f"{WEIGHTS}.bin", "modeling.py"])  # fmt: skip
    content = rng.choice([b"", b"{}", b"[]", rng.randbytes(50), b'{"weight_map": {"a": "b"}}'])
    (folder / name).write_bytes(content)


def file_kinds(folder: Path, rng: random.Random) -> None:
    """A pipe, a socket, a device, a folder, a circular link or nothing in the place of a file."""
    path = rng.choice([*_tables(folder), _weights(folder, rng)])
    path.unlink()
    kind = rng.randrange(7)
    if kind == 0:
        os.mkfifo(path)
    elif kind == 1:
        with socket.socket(socket.AF_UNIX) as one, _inside(path.parent):
            one.bind(path.name)  # a socket's whole name has room for 107 bytes
    elif kind < 4:
        path.symlink_to("/dev/zero" if kind == 2 else "/dev/null")
    elif kind == 4:
        path.mkdir()
    elif kind == 5:
        path.symlink_to(path.name)


@contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """The working directory, for as long as the block runs."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


MUTATIONS: dict[str, Callable[[Path, random.Random], None]] = {
    one.__name__: one
    for one in (
        header_bytes, data_bytes, json_bytes, cut_short, json_values, header_entries, metadata,
        manifest, blueprint, recipe, architecture, numbers, empty_tensor, extra_files, file_kinds,
    )
}  # fmt: skip
FORGED = {"manifest", "blueprint", "recipe", "architecture", "numbers", "empty_tensor"}
SAFE_FOR_DIFFUSERS = MUTATIONS.keys() - {"file_kinds", "architecture", "json_values", "json_bytes"}


def _weights(folder: Path, rng: random.Random) -> Path:
    return rng.choice(sorted(folder.glob("diffusion*.safetensors")))


def _tables(folder: Path) -> list[Path]:
    return [folder / name for name in (CONFIG, INDEX) if (folder / name).exists()]


def _scrambled(raw: bytes, rng: random.Random) -> bytes:
    raw, at = bytearray(raw), rng.randrange(len(raw))
    kind = rng.randrange(5)
    if kind == 0:
        raw[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        raw[at] = rng.randrange(256)
    elif kind == 2:
        del raw[at : at + rng.randrange(1, 9)]
    elif kind == 3:
        raw[at:at] = rng.randbytes(rng.randrange(1, 9))
    else:
        other = rng.randrange(len(raw))
        raw[at : at + 4], raw[other : other + 4] = raw[other : other + 4], raw[at : at + 4]
    return bytes(raw)


def _swap(content: Any, rng: random.Random) -> None:
    """A value anywhere in it becomes another, or goes; or a name does."""
    places = list(_places(content))
    if not places:
        return
    holder, key = rng.choice(places)
    kind = rng.randrange(8)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder[rng.choice(["", "x", "same_as", "kind", "a\x1b]0;x\x07", "é", key + "x"])] = (
            holder.pop(key)
        )
    elif kind == 2 and isinstance(holder, list):
        holder.insert(rng.randrange(len(holder) + 1), rng.choice(STRANGE))
    elif kind == 3:
        other, name = rng.choice(places)
        holder[key] = json.loads(json.dumps(other[name])) if name in _keys(other) else None
    else:
        holder[key] = rng.choice(STRANGE)


def _keys(holder: Any) -> Any:
    return holder if isinstance(holder, dict) else range(len(holder))


def _places(content: Any) -> Any:
    if isinstance(content, dict | list):
        for key in _keys(content):
            yield content, key
            yield from _places(content[key])


def _split(path: Path) -> tuple[dict[str, Any], bytes]:
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def _join(path: Path, header: dict[str, Any], data: bytes) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def _forge(folder: Path, change: Callable[[Any], object]) -> None:
    """The manifest changed alike in every file, and signed again."""
    files = sorted(folder.glob("diffusion*.safetensors"))
    header, _ = _split(files[0])
    content = json.loads(header["__metadata__"]["fewbit"])
    change(content)
    text = json.dumps(content)
    sha256 = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
    for file in files:
        header, data = _split(file)
        header["__metadata__"].update(fewbit=text, fewbit_sha256=sha256)
        _join(file, header, data)


if __name__ == "__main__":
    main()
