"""Registering with diffusers, whichever is imported first, each in a process of its own."""

import json
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


CODES = [
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
]
FORKS = """
import json, os, sys, traceback
import torch._dynamo, transformers
assert not {"fewbit", "diffusers", "peft"} & sys.modules.keys()
for code in json.loads(sys.argv[1]):
    child = os.fork()
    if child == 0:
        try:
            exec(code, {})
        except BaseException:
            print(traceback.format_exc(), file=sys.stderr)
            os._exit(1)
        os._exit(0)
    print(os.waitpid(child, 0)[1], flush=True)
"""


def run(*words):
    return subprocess.run([sys.executable, "-c", *words], capture_output=True, text=True)


@pytest.fixture(scope="module")
def forked():
    """How each of CODES ended, forked from one process that knows torch and transformers, which
    take longer to import than all the rest."""
    done = run(FORKS, json.dumps(CODES))
    return done.stdout.split(), done.stderr


@pytest.mark.parametrize("number", range(len(CODES)))
def test_in_a_fresh_process(forked, number):
    statuses, errors = forked
    assert statuses[number] == "0", errors


def test_fewbit_alone_imports_neither_torch_nor_diffusers():
    code = (
        "import fewbit, sys\nassert 'diffusers' not in sys.modules and 'torch' not in sys.modules"
    )
    done = run(code)
    assert done.returncode == 0, done.stderr
