"""Nothing a stranger wrote into a file moves the cursor, hides text or renames a window."""

import copy
import hashlib
import json
import shutil
import struct
import traceback
import warnings
from pathlib import Path

import pytest
import tiny_transformers as tiny
from click.testing import CliRunner

import fewbit
from fewbit.cli import main
from fewbit.errors import BadArgument, FewbitError, printable
from fewbit.progress import Meter

EVIL = "a\x1b]0;owned\x07b\x9bc\x7fd‮e\r"


def harmless(text: str) -> bool:
    return all(c.isprintable() or c in "\n\t" for c in text)


def test_what_a_terminal_would_execute_is_spelled():
    assert printable(EVIL) == r"a\u001b]0;owned\u0007b\u009bc\u007fd\u202ee\u000d"
    assert printable("é × 图\tline\n") == "é × 图\tline\n"
    assert printable("\ud800\U000e0001") == r"\ud800\U000e0001"
    assert printable(printable(EVIL)) == printable(EVIL)


def test_an_error_is_one_harmless_line():
    error = BadArgument(f"first {EVIL}\nsecond\x85third")
    assert harmless(str(error))
    assert "\n" not in str(error)
    assert copy.copy(error).args == error.args


def test_a_label_of_progress_is_harmless(capsys):
    assert harmless(Meter(EVIL).label)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed")
    fewbit.save(tiny.quantized(), folder)
    return folder


def config(folder: Path, change) -> None:
    place = folder / "config.json"
    content = json.loads(place.read_text())
    change(content)
    place.write_text(json.dumps(content))


def header(folder: Path, change) -> None:
    """Change the header of the weights; what the manifest says is signed again."""
    [place] = folder.glob("*.safetensors")
    data = place.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    content = json.loads(data[8 : 8 + length])
    manifest = json.loads(content["__metadata__"]["fewbit"])
    change(content, manifest)
    text = json.dumps(manifest)
    digest = hashlib.sha256(text.encode()).hexdigest()
    content["__metadata__"] |= {"fewbit": text, "fewbit_sha256": digest}
    made = json.dumps(content).encode()
    place.write_bytes(struct.pack("<Q", len(made)) + made + data[8 + length :])


def renamed_tensor(content, manifest):
    name = next(name for name in content if name != "__metadata__")
    content[EVIL] = content.pop(name)


def renamed_layer(content, manifest):
    manifest["layers"][0]["layers"][0] = EVIL


SPOILED = {
    "class": lambda f: config(f, lambda c: c.update(_class_name=EVIL)),
    "config value": lambda f: config(f, lambda c: c.update(activation_fn=EVIL)),
    "config key": lambda f: header(f, lambda c, m: m["architecture"].update({EVIL: 1})),
    "tensor": lambda f: header(f, renamed_tensor),
    "layer": lambda f: header(f, renamed_layer),
    "alias": lambda f: header(f, lambda c, m: m["aliases"].update({EVIL: EVIL})),
    "checksum": lambda f: header(f, lambda c, m: m["crc32"].update({EVIL: "0"})),
    "method": lambda f: header(f, lambda c, m: m["provenance"]["recipe"].update(method=EVIL)),
    "setting": lambda f: header(
        f, lambda c, m: m["provenance"]["recipe"]["settings"].update({EVIL: 1})
    ),
    "blocks": lambda f: header(f, lambda c, m: m["layers"][0].update(blocks=EVIL)),
    "format": lambda f: header(f, lambda c, m: m["layers"][0].update(weight=EVIL)),
}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
def test_a_strangers_file_cannot_speak_to_the_terminal(packed, tmp_path, spoil):
    folder = shutil.copytree(packed, tmp_path / "model")
    spoil(folder)
    with pytest.raises(FewbitError) as caught:
        fewbit.load(folder)
    assert harmless("".join(traceback.format_exception(caught.value)))
    for verb in (["inspect"], ["inspect", "--json"], ["doctor"]):
        result = CliRunner().invoke(main, [*verb, str(folder)])
        assert result.exception is None or isinstance(result.exception, SystemExit), (
            result.exception
        )
        assert harmless(result.output)


def test_what_libraries_log_of_a_strangers_file_is_harmless(packed, tmp_path, capfd):
    folder = shutil.copytree(packed, tmp_path / "model")
    config(folder, lambda c: c.update({"note": EVIL}))
    fewbit.load(folder)
    CliRunner().invoke(main, ["doctor", str(folder)])
    assert harmless("".join(capfd.readouterr()))


def test_what_a_verb_prints_is_harmless(packed, monkeypatch):
    """Also what is no error: a summary, a table, a warning of some library."""

    def inspect(*_, **__):
        warnings.warn(EVIL, stacklevel=1)
        return EVIL

    monkeypatch.setattr(fewbit, "inspect", inspect)
    result = CliRunner().invoke(main, ["inspect", str(packed)])
    assert result.exit_code == 0
    assert printable(EVIL) in result.stdout
    assert result.stderr.startswith("warning: a")
    assert harmless(result.output)
