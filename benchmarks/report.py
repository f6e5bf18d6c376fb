"""All figures of benchmarks/results on one page: `python benchmarks/report.py` writes it.

The page is docs/measured.md. A figure stands there only if a file of results holds it, so a new
run and this command are enough to bring the page up to date.
"""

from __future__ import annotations

import ast
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from figures import ROOT, command, results, script, threads
from summary import summary

PAGE = ROOT / "docs" / "measured.md"
ELSEWHERE = ("block_time", "census", "pipelines", "published")  # on the page of reach.py

HEAD = """\
# Measured

Every figure on this page comes from a file in `benchmarks/results` or `studies/results`. The
script `benchmarks/report.py` writes the page, and a test compares the two. Beside each figure
stands the command that repeats it. The sections below the first table say when, on which machine
and at which commit each was measured. The tables of the studies carry no date.

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


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


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
        f"{row['least_ms']:.1f}",
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
        if "figures" in result and name not in ELSEWHERE:
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
        f"{command(name, result)}  \n"
        f"{here['date']}; {here['cpu']}{features}; {threads(result)}; torch "
        f"{here['torch']}, Python {here['python']}; commit {here['commit']}{changes}; "
        f"`benchmarks/results/{name}.json`\n"
    )


def _title(name: str, result: Mapping[str, Any]) -> str:
    if asked := result.get("asked"):
        return f"{asked['recipe']}: a {asked['level']} of {asked['model']} ({name})"
    first = ast.get_docstring(ast.parse(script(name).read_text())) or name
    return f"{re.split(': `|[.]', first.splitlines()[0])[0]} ({name})"


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
