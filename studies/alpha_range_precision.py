"""How does α trade range for precision?   python studies/alpha_range_precision.py

A small α makes s_w = max|W| / Quantile(|W|, α) large and asks for more exponent bits.
"""

from collections import Counter

from demo import RESULTS, fidelity, quantized, write_table
from plot import lines

from fewbit.layers.linear import quantized_layers

ALPHAS = (0.02, 0.05, 0.1, 0.25, 0.5)
FORMATS = ("e3m0", "e2m1", "e1m2")


def shares(transformer: object) -> Counter[str]:
    """Which formats the block linears took, those with a choice of options aside."""
    specs = [layer.spec for layer in quantized_layers(transformer).values()]
    return Counter(str(spec.format) for spec in specs if str(spec.format) in FORMATS)


rows = []
for alpha in ALPHAS:
    pipe, _ = quantized("hq-dit", preset="published", alpha=alpha)
    chosen = shares(pipe.transformer)
    channel, _ = quantized("hq-dit", preset="published", alpha=alpha, selection_per="channel")
    rows.append(
        (alpha, *(chosen[fmt] for fmt in FORMATS), fidelity(pipe).sqnr, fidelity(channel).sqnr)
    )
    print(*rows[-1], flush=True)
by_error = fidelity(quantized("hq-dit", preset="published", selection="mse")[0]).sqnr
write_table(
    "alpha_range_precision",
    "α: range against precision",
    "The shapes demo, w4a4 as published, 128 calibration rows, 128 held-out rows. How many of the "
    "36 block linears take which float when one is chosen per layer; trajectory SQNR in dB with "
    f"the format per layer and per output channel. By error, per layer: {by_error:.2f} dB.",
    ("α", *FORMATS, "per layer, dB", "per channel, dB"),
    rows,
)
lines(
    RESULTS / "alpha_range_precision.svg",
    "Format selection by ratio",
    "α",
    "trajectory SQNR, dB",
    {
        "per layer": [(row[0], row[4]) for row in rows],
        "per channel": [(row[0], row[5]) for row in rows],
        "by error": [(alpha, by_error) for alpha in ALPHAS],
    },
)
