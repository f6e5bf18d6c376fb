"""All figures of benchmarks/results on one page: `python benchmarks/report.py` writes it.

The page is docs/measured.md. A figure stands there only if a file of results holds it, so a new
run and this command are enough to bring the page up to date.
"""

from __future__ import annotations

import ast
import json
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
STUDIES = ROOT / "studies" / "results"
PAGE = ROOT / "docs" / "measured.md"

HEAD = """\
# Measured

Every figure on this page comes from a file in `benchmarks/results` or `studies/results`. The
script `benchmarks/report.py` writes the page, and a test compares the two. Beside each figure
stands the command that repeats it. The sections below the first table say when, on which machine
and at which commit each was measured.

A "step" is one denoising step of the whole transformer. A "trajectory" figure is the SQNR of the
noise prediction over held-out denoising trajectories, in dB: higher is better. All timings are
medians.
"""


def main() -> None:
    PAGE.write_text(page())
    print(PAGE.relative_to(ROOT))


def page() -> str:
    found = results()
    sections = [HEAD, "## Summary\n", table(("what", "figure", "command"), summary(found))]
    sections += ["## Speed\n", "\n".join(_speed(found))]
    sections += ["## Everything else\n", "\n".join(_others(found))]
    return "\n".join(sections).rstrip() + "\n"


def results() -> dict[str, Any]:
    return {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}


def tables_of(path: Path) -> dict[str, list[str]]:
    """The rows of all tables in a Markdown file, by their first cells."""
    rows = [line.strip().strip("|").split("|") for line in path.read_text().splitlines()
            if line.startswith("|")]  # fmt: skip
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}


def study(name: str) -> dict[str, list[str]]:
    return tables_of(STUDIES / f"{name}.md")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def summary(found: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    return [*_sizes(found), *_speeds(found), *_runs(found), *_qualities()]


def _sizes(found: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    plain = found["foundation"]["figures"]["rtn_dit_xl_2"]
    foundation = "`python benchmarks/foundation.py`"
    yield (
        "`rtn` w4a4 of a model of DiT-XL/2's size, float32",
        f"{plain['seconds']:.0f} s on two cores of a Zen 3. The peak is "
        f"{plain['peak_rss_over_fp32_bytes']:.2f} times the fp32 weights: they stay until the end, "
        "so that a failure can give them back",
        foundation,
    )
    before, after = (plain[key] / 1e6 for key in ("fp32_bytes", "bytes"))
    yield "that model in memory", f"{before:.0f} MB before, {after:.0f} MB after", foundation
    memory = found["memory"]["figures"]
    same, whole = memory["adaln same"], memory["adaln int8"]
    yield (
        "a DiT-XL/2 at w4a4 at work, the rest in bfloat16",
        f"{whole['bytes'] / 1e6:.0f} MB as the recipes have it, with modulations in 8 bits; "
        f'{same["bytes"] / 1e6:.0f} MB with modulations in 4 bits (`adaln="same"`), '
        f"{same['times_less']:.1f} times less than fp32",
        "`python benchmarks/memory.py`",
    )
    rows = {row["name"]: row for row in found["loading"]["figures"]["rows"]}
    files = {name: f"{row['file'] / 1e6:.0f} MB" for name, row in rows.items()}
    loading = "`python benchmarks/loading.py`"
    yield (
        "that model on disk",
        f"fp16 {files['fp16']}, w4a4 {files['w4a4']}, w2 {files['w2']}",
        loading,
    )
    for what, key in (("in the page cache", "ready"), ("not in the page cache", "cold")):
        seconds = (f"{name} {rows[name][key]:.2f} s" for name in ("w4a4", "w8a8", "mxfp4", "fp16"))
        yield (
            f"loading it until each weight was read once, the file {what} (fp16 is not checked)",
            ", ".join(seconds),
            loading,
        )


def _speeds(found: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    names = {
        "bf16": "eager bf16",
        "fp32 onednn": "oneDNN fp32",
        "fp32": "eager fp32",
        "openvino bf16": "OpenVINO bf16",
        "torchao int8": "torchao int8",
    }
    cases = {
        "bench_dit-xl-2_block_1": "a block of a DiT-XL/2 at w4a4 on one core of a Zen 5",
        "bench_dit-xl-2_step_2": "a step of a DiT-XL/2 at w4a4 on two cores",
    }
    for name, what in cases.items():
        faster = _faster(found[name], "ours native")
        times = (f"{faster[base]:.1f} times {title}" for base, title in names.items()
                 if base in faster)  # fmt: skip
        yield what, ", ".join(times), _command(name, found[name])
    pure = tables_of(RESULTS / "pure_torch.md")
    fast = pure["a step, weights unpacked"][1]
    yield (
        "the same in pure torch, against eager bf16",
        f"a block {_faster(found['bench_dit-xl-2_block_1'], 'ours torch')['bf16']:.2f} times; a "
        f"step {pure['a step, against eager bf16'][1]}, with weights unpacked by "
        f'`fewbit.prepare(model, "fast")` {fast}. It is slower than bf16 on two cores, because its '
        "many small passes gain less from the second core than one large product",
        _command("bench_dit-xl-2_step_2", found["bench_dit-xl-2_step_2"]),
    )
    for name, result in found.items():
        if name.startswith("bench") and result["asked"]["recipe"] != "hq-dit:w4a4":
            asked, faster = result["asked"], _faster(result, "ours native")
            what = f"a {asked['level']} at `{asked['recipe']}` with {_threads(result)}"
            yield what, f"{faster['bf16']:.2f} times eager bf16", _command(name, result)


def _runs(found: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    size = "of a model of DiT-XL/2's size"
    hq, tq = found["hq_dit"]["figures"], found["tq_dit"]["figures"]
    yield (
        f"`hq-dit` {hq['bits']} {size}, {hq['rows']} samples",
        f"{hq['minutes_for_28_blocks']:.0f} min, {hq['peak_gib']:.1f} GiB",
        "`python benchmarks/hq_dit.py`",
    )
    yield (
        f"`tq-dit` {tq['bits']} {size}, {tq['rows']} samples",
        f"{tq['minutes_for_28_blocks']:.0f} min on a busy machine, {tq['peak_gib']:.1f} GiB",
        "`python benchmarks/tq_dit.py`",
    )
    demo, large = (found["fp4dit"]["figures"][key] for key in ("demo", "dit_xl_2"))
    fp4dit = "`python benchmarks/fp4dit.py`"
    yield (
        f"`fp4dit`, {demo['steps']} steps for a block of the demo",
        f"{demo['seconds_for_a_block']:.0f} s",
        fp4dit,
    )
    yield (
        "`fp4dit`, 500 steps for a block of a DiT-XL/2",
        f"{large['seconds_for_a_block_of_500_steps'] / 60:.1f} min, reckoned from "
        f"{large['steps']} steps; {large['peak_gib_with_all_blocks']:.1f} GiB",
        fp4dit,
    )


def _qualities() -> Iterator[tuple[str, str, str]]:
    hq = {name: row[0] for name, row in study("hq_dit_ablation").items()}
    yield (
        "`hq-dit` w4a4 on `shapes`, trajectory",
        f"{_tenths(hq['hq-dit'])} dB; as published, without smoothing, "
        f"{_tenths(hq['as published'])}; plain rounding {_tenths(hq['rtn'])}",
        "`python studies/hq_dit_ablation.py`",
    )
    for bits in ("w8a8", "w6a6"):
        tq = {name: row[0] for name, row in study(f"tq_dit_ablation_{bits}").items()}
        yield (
            f"`tq-dit` {bits} on `shapes`, trajectory; measured when its time groups still had "
            "equal lengths",
            f"{_tenths(tq['tq-dit'])} dB; the static baseline {_tenths(tq['static baseline'])}",
            f"`python studies/tq_dit_ablation.py {bits}`",
        )
    forms = {name: row[0] for name, row in study("fp4dit_forms").items()}
    yield (
        "`fp4dit` w4a6 on `shapes`, trajectory",
        f"{_tenths(forms['w4a6, 2500 steps'])} dB; after 300 of 2500 steps "
        f"{_tenths(forms['w4a6'])}; int4 and int6 with the same training "
        f"{_tenths(forms['w4a6, integers, 2500 steps'])} and "
        f"{_tenths(forms['w4a6, integers'])}; plain rounding "
        f"{_tenths(forms['w4a6, nearest rounding'])}",
        "`python studies/fp4dit_forms.py`",
    )
    scenes = {name: row[2] for name, row in study("fp4dit_scenes").items()}
    yield (
        "`fp4dit` w4a8 on `scenes`, 300 of 2500 steps: how much of what captions say is in the "
        "pictures",
        f"{_tenths(scenes['w4a8'])} %; in full precision {_tenths(scenes['full precision'])} %",
        "`python studies/fp4dit_scenes.py`",
    )
    vq = study("vq4dit_bits")
    yield (
        "`vq4dit` 2 bits on `shapes`",
        f"trajectory {_tenths(vq['vq4dit, 2 bits'][1])} dB (plain k-means "
        f"{_tenths(vq['plain k-means, 2 bits'][1])}); "
        f"{_whole(vq['vq4dit, 2 bits'][3].rstrip('%'))} % of pictures recognised",
        "`python studies/vq4dit_bits.py`",
    )


def _tenths(figure: str) -> Decimal:
    return Decimal(figure).quantize(Decimal("0.1"), ROUND_HALF_UP)


def _whole(percent: str) -> Decimal:
    return Decimal(percent).quantize(Decimal(1), ROUND_HALF_UP)


def _faster(result: Mapping[str, Any], arm: str) -> dict[str, float]:
    """How many times an arm of a bench is as fast as each of the others."""
    (one,) = result["tables"]
    row = next(row for row in one["rows"] if row["arm"] == arm)
    return {base: ratio["median"] for base, ratio in row["faster"].items()}


def _speed(found: Mapping[str, Any]) -> Iterator[str]:
    yield (
        "A ratio is the median over rounds in which all ways took turns, with the least and the "
        "most of the rounds. `~` marks a ratio whose rounds do not agree on which is faster. The "
        "dB are those of the output against full precision, on random weights.\n"
    )
    for name, result in found.items():
        if "asked" in result:
            yield from _section(name, result)
            for one in result["tables"]:
                yield _bench_table(one)
            yield from (f"Left out: {arm}, {why}.\n" for arm, why in result["left_out"].items())


def _bench_table(one: Mapping[str, Any]) -> str:
    bases = list(dict.fromkeys(base for row in one["rows"] for base in row["faster"]))
    head = ("way", "median ms", "least ms", "spread", *(f"times {base}" for base in bases),
            "MB of weights", "dB")  # fmt: skip
    return f"{one['title']}:\n\n" + table(head, [_bench_row(row, bases) for row in one["rows"]])


def _bench_row(row: Mapping[str, Any], bases: Sequence[str]) -> list[str]:
    ratios = [row["faster"].get(base) for base in bases]
    return [
        row["arm"],
        f"{row['median_ms']:.1f}",
        f"{min(row['times']['wall']):.1f}",
        f"{100 * row['spread']:.0f} %",
        *("" if ratio is None else _ratio(ratio) for ratio in ratios),
        f"{row['resident_bytes'] / 1e6:.0f}",
        "" if row["sqnr_db"] is None else f"{row['sqnr_db']:.1f}",
    ]


def _ratio(ratio: Mapping[str, Any]) -> str:
    mark = "" if ratio["counts"] else "~"
    return f"{mark}{ratio['median']:.2f} ({ratio['least']:.2f} to {ratio['most']:.2f})"


def _others(found: Mapping[str, Any]) -> Iterator[str]:
    for name, result in found.items():
        if "figures" in result:
            yield from _section(name, result)
            yield from _tables(result["figures"])
    yield (
        "Why pure torch is not yet as fast as bfloat16 on two cores, and what was tried, stands in "
        "`benchmarks/results/pure_torch.md`.\n"
    )


def _section(name: str, result: Mapping[str, Any]) -> Iterator[str]:
    here = result["environment"]
    features = f" ({', '.join(here['cpu_features'])})" if "cpu_features" in here else ""
    changes = " with uncommitted changes" if here["uncommitted_changes"] else ""
    yield f"### {_title(name, result)}\n"
    yield (
        f"{_command(name, result)}  \n"
        f"{here['date']}; {here['cpu']}{features}; {_threads(result)}; torch "
        f"{here['torch']}, Python {here['python']}; commit {here['commit']}{changes}; "
        f"`benchmarks/results/{name}.json`\n"
    )


def _threads(result: Mapping[str, Any]) -> str:
    number = result["environment"]["threads"]
    return "one thread" if number == 1 else f"{number} threads"


def _title(name: str, result: Mapping[str, Any]) -> str:
    if asked := result.get("asked"):
        return f"{asked['recipe']}: a {asked['level']} of {asked['model']} ({name})"
    first = ast.get_docstring(ast.parse(_script(name).read_text())) or name
    return f"{re.split(': `|[.]', first.splitlines()[0])[0]} ({name})"


def _command(name: str, result: Mapping[str, Any]) -> str:
    if asked := result.get("asked"):
        recipe = "" if asked["recipe"] == "hq-dit:w4a4" else f" --recipe {asked['recipe']}"
        arms = " --arms 'bf16,ours torch,ours torch fast'" if name.endswith("_torch") else ""
        threads = result["environment"]["threads"]
        return (
            f"`fewbit bench {asked['model']} --level {asked['level']} --threads {threads}"
            f"{recipe}{arms}`"
        )
    isa = f"FEWBIT_ISA={result['figures']['isa']} " if "isa" in result["figures"] else ""
    return f"`{isa}python benchmarks/{_script(name).name}`"


def _script(name: str) -> Path:
    return ROOT / "benchmarks" / f"{name.partition('-')[0]}.py"


def _tables(figures: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Single figures as one table, then a table for each group of alike ones."""
    single = {key: value for key, value in figures.items() if not _nested(value)}
    if single:
        yield table(("figure", "value"), [(key, _value(one)) for key, one in single.items()])
    for key, value in figures.items():
        here = f"{path}{key}"
        if isinstance(value, list) and _nested(value):
            yield f"{here}:\n\n{_alike([row['name'] for row in value], value)}"
        elif isinstance(value, dict) and value:
            flat = all(isinstance(one, dict) and not _deep(one) for one in value.values())
            if flat:
                yield f"{here}:\n\n{_alike(list(value), list(value.values()))}"
            else:
                yield f"{here}:\n"
                yield from _tables(value, f"{here}, ")


def _nested(value: Any) -> bool:
    return isinstance(value, dict) or (
        isinstance(value, list) and bool(value) and isinstance(value[0], dict)
    )


def _deep(figures: Mapping[str, Any]) -> bool:
    return any(_nested(value) for value in figures.values())


def _alike(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row if key != "name"))
    cells = [[name, *(_value(row.get(key, "")) for key in columns)]
             for name, row in zip(names, rows, strict=True)]  # fmt: skip
    return table(("", *columns), cells)


def _value(value: Any) -> str:
    if isinstance(value, list):
        if not value:
            return "none"
        middle = statistics.median(value)
        return f"{len(value)}: {min(value):g} to {max(value):g}, median {middle:g}"
    return f"{value:.5g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
