"""Registering with diffusers, whichever is imported first, each in a process of its own."""

import subprocess
import sys

import pytest

REGISTERED = """
from diffusers.quantizers import auto
assert auto.AUTO_QUANTIZER_MAPPING["fewbit"].__module__ == "fewbit.diffusers.plugin"
assert auto.AUTO_QUANTIZATION_CONFIG_MAPPING["fewbit"] is __import__("fewbit").FewbitConfig
"""
TAKEN = """
from diffusers.quantizers import auto
auto.AUTO_QUANTIZER_MAPPING["fewbit"] = auto.AUTO_QUANTIZATION_CONFIG_MAPPING["fewbit"] = "mine"
import fewbit
assert auto.AUTO_QUANTIZER_MAPPING["fewbit"] == "mine"
assert auto.AUTO_QUANTIZATION_CONFIG_MAPPING["fewbit"] == "mine"
"""
ADAPTS = """
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
assert PEFT_TYPE_TO_TUNER_MAPPING["LORA"].__module__ == "fewbit.diffusers.peft_plugin"
"""
FOUND_BY_THE_REAL_LOADER = """
import fewbit, diffusers.quantizers.auto as auto, inspect
assert auto.__spec__.origin.endswith("auto.py")
assert "class DiffusersAutoQuantizer" in inspect.getsource(auto)
"""


@pytest.mark.parametrize(
    "code",
    [
        "import fewbit, diffusers" + REGISTERED,
        "import diffusers, fewbit" + REGISTERED,
        "import diffusers.quantizers.auto, fewbit" + REGISTERED,
        "from diffusers import DiTTransformer2DModel\nimport fewbit" + REGISTERED,
        "import fewbit, fewbit.diffusers.plugin" + REGISTERED,
        "import fewbit, peft" + ADAPTS,
        "import peft, fewbit" + ADAPTS,
        "import fewbit, diffusers.loaders, peft" + REGISTERED + ADAPTS,
        TAKEN,
        FOUND_BY_THE_REAL_LOADER,
        "import fewbit, sys\nassert 'diffusers' not in sys.modules and 'torch' not in sys.modules",
    ],
)
def test_in_a_fresh_process(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
