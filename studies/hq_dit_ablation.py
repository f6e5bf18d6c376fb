"""What does each ingredient of HQ-DiT bring?   python studies/hq_dit_ablation.py"""

from demo import fidelity, psnr, quantized, write_table

CASES: dict[str, dict[str, object]] = {
    "hq-dit": {},
    "as published": {"preset": "published"},
    "as published, no rotation": {"preset": "published", "hadamard": False},
    "all transforms everywhere": {"transform": "all"},
    "no smoothing": {"smooth": None},
    "no rotation": {"hadamard": False},
    "selection by error": {"selection": "mse"},
    "no selection": {"selection": "off"},
    "selection per channel": {"selection_per": "channel"},
    "no gptq": {"gptq": False},
    "no propagate": {"propagate": False},
    "no clip": {"clip": False},
    "adaLN fp4": {"adaln": "same"},
    "adaLN kept": {"adaln": "keep"},
}

rows = []
for name, recipe, settings in (
    ("rtn", "rtn", {}),
    *((name, "hq-dit", settings) for name, settings in CASES.items()),
):
    pipe, report = quantized(recipe, **settings)
    rows.append((name, fidelity(pipe).sqnr, psnr(pipe), report.bytes))
    print(*rows[-1], flush=True)
write_table(
    "hq_dit_ablation",
    "Ingredients of HQ-DiT, w4a4",
    "The shapes demo, 128 calibration rows. SQNR of the noise prediction over 128 rows of "
    "held-out trajectories; mean PSNR of 16 same-seed pictures against full precision; bytes of "
    "the whole transformer. One picture's PSNR scatters by several dB from one setting to the "
    "next, the mean of 16 by more than 1 dB.",
    ("setting", "trajectory SQNR, dB", "picture PSNR, dB", "bytes"),
    rows,
    plotted=("trajectory SQNR, dB", "picture PSNR, dB"),
)
