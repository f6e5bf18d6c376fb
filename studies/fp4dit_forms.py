"""What do floats bring over integers, and what each ingredient of FP4DiT?

python studies/fp4dit_forms.py
"""

from cases import measured
from demo import write_table

STEPS = 300  # of 2500, so that most cases take a minute or two
CASES = {
    "w4a6": {},
    "w4a6, integers": {"preset": "integer"},
    "w4a6, nearest rounding": {"steps": 0},
    "w4a6, not scale-aware": {"scale_aware": False},
    "w4a6, formats by role": {"formats": "role"},
    "w4a6, all in e2m1": {"formats": "role", "first": "e2m1"},
    "w4a6, all in e1m2": {"formats": "role", "first": "e1m2", "others": "e1m2"},
    "w4a6, int4 with e2m3 inputs": {"preset": "integer", "inputs": "float"},
    "w4a6, int6 inputs alone": {"inputs": "integer"},
    "w4a6, static inputs per tensor": {"ranges": "tensor"},
    "w4a8": {"bits": "w4a8"},
    "w4a8, integers": {"bits": "w4a8", "preset": "integer"},
    "w4a8, nearest rounding": {"bits": "w4a8", "steps": 0},
    "w4a6, 2500 steps": {"steps": 2500},
    "w4a6, integers, 2500 steps": {"steps": 2500, "preset": "integer"},
}

rows = []
for name, settings in CASES.items():
    found = measured("fp4dit", **{"steps": STEPS, **settings})
    rows.append((name, found.sqnr, found.psnr, found.bits))
write_table(
    "fp4dit_forms",
    "FP4DiT against integers, and its ingredients",
    f"The shapes demo, 512 calibration rows, {STEPS} steps for each block (the default is 2500). "
    "SQNR over 128 rows of held-out trajectories; PSNR of 16 pictures. Integers: int4 weights in "
    "the same groups with the same training, int6 or int8 inputs token by token.\n\n"
    "Floats win where inputs have 6 bits, and it is the inputs alone: int4 weights with E2M3 "
    "inputs are as good as FP4 weights with them, and FP4 weights with int6 inputs as bad as int4 "
    "ones. A token's values spread over more binades than 31 equal steps can tell apart. What w4a8 "
    "leaves, 32.6 dB, is the error of the weights; beyond it E2M3 inputs add one of 34.4 dB and "
    "int6 inputs one of 30.6 dB. The weights' error, which both have, makes of these 4 dB the 2 in "
    "the table. More steps fit the rounding of the weights to either error of the inputs and bring "
    "the two a little nearer to each other.\n\n"
    "With 8 bits either form of input is nearly exact and what is left is the weights: E1M2 has "
    "the levels of int4 but for one, so the two are as good as each other. E3M0, the published "
    "format before the GELU, has three levels in the upper half of its range where E2M1 has four "
    "and int4 eight; weights in groups of 96 are normal enough to miss them.",
    ("setting", "trajectory SQNR, dB", "picture PSNR, dB", "bits per weight"),
    rows,
    plotted=("trajectory SQNR, dB", "picture PSNR, dB"),
)
