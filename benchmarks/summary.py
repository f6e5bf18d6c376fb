"""The figures that a reader asks for first, each as one sentence made of the results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from figures import RESULTS, command, faster, study, tables_of, threads


def summary(found: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    return [*_sizes(found), *_speeds(found), *_runs(found), *_qualities()]


def _sizes(found: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    plain = found["foundation"]["figures"]["rtn_dit_xl_2"]
    foundation = "`python benchmarks/foundation.py`"
    yield (
        "`rtn` w4a4 of a model of DiT-XL/2's size, float32",
        f"{plain['seconds']:.0f} s on a Zen 3 with {threads(found['foundation'])}. The peak is "
        f"{plain['peak_rss_over_fp32_bytes']:.2f} times the fp32 weights, of which those of "
        "finished blocks are parked in a file, so that a failure can give them back",
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
        "openvino int8": "OpenVINO int8",
        "openvino bf16": "OpenVINO bf16",
        "torchao int8": "torchao int8",
    }
    cases = {
        "bench_dit-xl-2_block_1": "a block of a DiT-XL/2 at w4a4 on one core of a Zen 5",
        "bench_dit-xl-2_step_2": "a step of a DiT-XL/2 at w4a4 on two cores",
    }
    for name, what in cases.items():
        ratios = faster(found[name], "ours native")
        times = (f"{ratios[base]:.1f} times {title}" for base, title in names.items()
                 if base in ratios)  # fmt: skip
        yield what, ", ".join(times), command(name, found[name])
    pure = tables_of(RESULTS / "pure_torch.md")
    fast = pure["a step, weights unpacked"][1]
    yield (
        "the same in pure torch, against eager bf16",
        f"a block {faster(found['bench_dit-xl-2_block_1'], 'ours torch')['bf16']:.2f} times; a "
        f"step {pure['a step, against eager bf16'][1]}, with weights unpacked by "
        f'`fewbit.prepare(model, "fast")` {fast}. It is slower than bf16 on two cores, because its '
        "many small passes gain less from the second core than one large product",
        command("bench_dit-xl-2_step_2", found["bench_dit-xl-2_step_2"]),
    )
    for name, result in found.items():
        if name.startswith("bench") and result["asked"]["recipe"] != "hq-dit:w4a4":
            asked, ratios = result["asked"], faster(result, "ours native")
            what = f"a {asked['level']} at `{asked['recipe']}` with {threads(result)}"
            times = (f"{ratios[base]:.2f} times {title}" for base, title in names.items()
                     if base in ratios)  # fmt: skip
            yield what, ", ".join(times), command(name, result)


def _runs(found: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    size = "of a model of DiT-XL/2's size"
    for recipe in ("hq-dit", "tq-dit"):
        name = f"quantizing-{recipe}"
        run = found[name]["figures"]
        yield (
            f"`{recipe}` {run['recipe'].partition(':')[2]} {size}, {run['rows']} samples",
            f"{run['minutes_for_28_blocks']:.0f} min on a busy machine, {run['peak_gib']:.1f} GiB",
            command(name, found[name]),
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
    for demo in ("shapes", "scenes"):
        best = study(f"best_{demo}")
        names = ("best balanced", "best small", "best four", "best tiny", "hq-dit w4a8")
        shown = (f"{n} {_tenths(best[n][1])} dB at {best[n][0]} bits a weight" for n in names)
        yield (
            f"presets of `best` on `{demo}`, trajectory",
            "; ".join(shown),
            f"`python studies/best.py {demo}`",
        )
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
            f"`tq-dit` {bits} on `shapes`, trajectory",
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
