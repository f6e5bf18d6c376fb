"""How big, how fast, how good a quantized model is, in a few lines for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from fewbit.engine.stored_size import Size, told

if TYPE_CHECKING:
    from fewbit.engine.measured import Measured

WIDTH, INDENT = 80, "         "
SCALE = (  # from so many dB on, of the noise prediction on the trajectories of full precision
    (40.0, "pictures cannot be told apart"),
    (30.0, "differences are visible only side by side"),
    (20.0, "pictures are alike, some details differ"),
    (10.0, "pictures differ at first sight"),
    (float("-inf"), "pictures are spoiled"),
)
ENOUGH = SCALE[0][0]
CLOSER = ("w2a8", "w4a4", "w3a8", "w4a8", "w8a8")  # bits of best, the farthest first


def verdict(
    recipe: Mapping[str, Any], size: Size, bf16_bytes: int, measured: Mapping[str, Measured]
) -> list[str]:
    """Size, speed and match of each network, and what to try if that is not enough."""
    texts = [*_sizes(size, bf16_bytes), *_networks(measured)]
    best = max((found.db or 0.0 for found in measured.values()), default=0.0)
    if best < ENOUGH:
        more = closer(recipe) or "more bits, or the worst layers in the keep of a spec"
        texts.append(("closer", more))
    return ["", *(line for text in texts for line in _folded(*text))]


def words_for(db: float) -> str:
    return next(words for least, words in SCALE if db >= least)


def closer(recipe: Mapping[str, Any]) -> str | None:
    """Recipes that come closer to full precision; None where none is known."""
    bits = recipe["bits"]
    if recipe["method"] == "best":
        better = CLOSER[CLOSER.index(bits) + 1 :][:2] if bits in CLOSER else ("w4a8", "w8a8")
    else:
        more = CLOSER[CLOSER.index(bits) :] if bits in CLOSER else ("w4a8", "w8a8")
        better = (bits, "w4a8") if "w4a8" in more[1:] else more
    return " or ".join(f"best:{one}" for one in better) or None


def _sizes(size: Size, bf16_bytes: int) -> Iterator[tuple[str, str]]:
    yield from zip(("size", ""), map(str.strip, told(size, bf16_bytes)), strict=True)


def _networks(measured: Mapping[str, Measured]) -> Iterator[tuple[str, str]]:
    for name, found in measured.items() or {"": None}.items():
        inside = f"{name}: " if len(measured) > 1 else ""
        yield "speed", inside + _speed(found)
        yield "match", inside + _match(found)


def _speed(found: Measured | None) -> str:
    if found is None or found.faster is None:
        why = "" if found is None or not found.why_not else f" ({found.why_not})"
        return f"not measured{why}; `fewbit bench` measures it"
    assert found.seconds is not None
    assert found.bf16_seconds is not None
    return (
        f"{found.faster:.2f}x that of bfloat16 here: {1e3 * found.seconds:.1f} ms a call beside "
        f"{1e3 * found.bf16_seconds:.1f}"
    )


def _match(found: Measured | None) -> str:
    if found is None or found.db is None:
        return "not measured, for there is no calibration data; `fewbit evaluate` measures it"
    return (
        f"{found.db:.1f} dB beside full precision, on inputs that the calibration saw: "
        f"{words_for(found.db)} (from 40 dB none can tell, from 30 only side by side, from 20 they "
        "are alike); on others it may be some dB less, as `fewbit evaluate` says"
    )


def _folded(label: str, text: str) -> list[str]:
    return wrap(
        f"{label:<{len(INDENT) - 2}}{text}",
        WIDTH,
        initial_indent="  ",
        subsequent_indent=INDENT,
        break_on_hyphens=False,
        break_long_words=False,
    )
