"""What do books, and integer factors of groups, bring to weights?   python studies/factors.py"""

from dataclasses import replace

from demo import bits, calibration, fidelity, pipeline, write_table

import fewbit
from fewbit.formats import Spec
from fewbit.methods import hq_dit
from fewbit.methods.method import Rule

INPUTS = Spec.parse("int8/row/fp32")
WEIGHTS = (
    *("e2m1/row/fp32", "book4/row/fp32", "e2m1/g64/factor", "book4/g64/factor", "book4/g32/factor"),
    *("book4/g64/fp16", "e2m0/row/fp32", "book3/row/fp32", "book3/g64/factor"),
    *("int2/row/fp32", "book2/row/fp32", "book2/g64/factor"),
)


def measured(weight: str, **settings: object) -> tuple[float, float]:
    """Decibel of held-out trajectories, and bits."""
    method = replace(hq_dit.METHOD, variants={"swapped": Rule(Spec.parse(weight), INPUTS)})
    pipe = pipeline()
    fewbit.quantize(pipe, method, calibration=calibration(), progress=False, **settings)
    return fidelity(pipe).sqnr, bits(pipe.transformer)


def main() -> None:
    rows = []
    for weight in WEIGHTS:
        nearest = measured(weight, selection="off", gptq=False)[0]
        rows.append((weight, *measured(weight, selection="off"), nearest))
        print(*rows[-1], flush=True)
    write_table(
        "factors",
        "Books, and integer factors of groups, for weights",
        "The shapes demo, hq-dit with its defaults but one format for all weights, inputs in int8 "
        "with a scale for each token. SQNR of the noise prediction over 128 rows of held-out "
        "trajectories. Bits count codes and scales of all layers but the modulation.",
        ("weights", "GPTQ, dB", "bits a weight", "nearest, dB"),
        rows,
        plotted=("GPTQ, dB", "nearest, dB"),
    )


if __name__ == "__main__":
    main()
