"""Manifest, digests, storing once, and the one validation."""

import json
import threading
import time

import pytest
import tiny_transformers as tiny
import torch
from safetensors.torch import save_file

import fewbit.storage.tensors
from fewbit.errors import BadModel, BrokenFile
from fewbit.storage.header import Header, read_header
from fewbit.storage.manifest import Manifest, as_json, check_values, manifest_of, validate
from fewbit.storage.reader import Artefact
from fewbit.storage.tensors import checked_tensors, checksum, digest, stored_once


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dit")
    tiny.quantized(bits="w2a16", asymmetric=True).save_pretrained(folder)
    return folder


def forged(header, text):
    """A manifest that is consistent in itself, as an attacker would write it."""
    import hashlib

    metadata = {"fewbit": text, "fewbit_sha256": hashlib.sha256(text.encode()).hexdigest()}
    return Header(header.path, header.tensors, metadata)


@pytest.mark.parametrize("summary", [digest, checksum])
def test_digest_and_checksum_cover_dtype_shape_and_bytes(summary):
    zeros = torch.zeros(2, 3)
    others = [zeros.T, zeros.int(), zeros + 1, torch.zeros(6), torch.zeros(2, 3, 1)]
    assert len({summary(tensor) for tensor in (zeros, *others)}) == 6
    assert summary(zeros.T.contiguous().T) == summary(zeros)


def test_digest_and_checksum_are_what_other_programs_compute():
    # printf 'F32 [1]\n\0\0\200\77' | sha256sum
    assert digest(torch.ones(1)).startswith("cc43abf3")
    # printf 'F32 [1]\n\0\0\200\77' | gzip -c | tail -c8 | head -c4 | xxd -e
    assert checksum(torch.ones(1)) == "8ae9de4c"


def test_an_equal_checksum_is_not_yet_an_equal_tensor(monkeypatch):
    monkeypatch.setattr(fewbit.storage.tensors, "checksum", lambda tensor: "00000000")
    state = {"a": torch.ones(2), "b": torch.zeros(2), "c": torch.ones(2), "d": torch.zeros(2)}
    kept, aliases = stored_once(state)
    assert kept.keys() == {"a", "b"}
    assert aliases == {"c": "a", "d": "b"}


def test_tensors_without_elements_and_of_odd_sizes_come_back(tmp_path):
    tensors = {"none": torch.empty(0, 3), "bytes": torch.arange(7, dtype=torch.uint8)}
    tensors |= {"wide": torch.rand(3, dtype=torch.float64), "half": torch.rand(5).half()}
    save_file(tensors, tmp_path / "x.safetensors")
    header = read_header(tmp_path / "x.safetensors")
    with checked_tensors([header], {name: checksum(t) for name, t in tensors.items()}) as read:
        pass
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())


def test_equal_tensors_are_stored_under_their_first_name():
    state = {"a": torch.ones(2), "b": torch.zeros(2), "c": torch.ones(2), "d": torch.ones(1, 2)}
    kept, aliases = stored_once(state)
    assert kept.keys() == {"a", "b", "d"}
    assert aliases == {"c": "a"}


def test_reading_refuses_altered_data(folder, tmp_path):
    artefact = Artefact.open(folder)
    (header,) = artefact.headers
    with artefact.tensors() as tensors:
        pass
    assert tensors.keys() == header.tensors.keys()
    name = "transformer_blocks.1.ff.net.2.codes"
    raw = bytearray(header.path.read_bytes())
    raw[header.tensors[name].start] ^= 1
    (tmp_path / header.path.name).write_bytes(raw)
    altered = read_header(tmp_path / header.path.name)
    with (
        pytest.raises(BrokenFile, match=rf"{altered.path}: the data of {name} was altered"),
        checked_tensors([altered], artefact.manifest.crc32),
    ):
        pass


def test_what_fails_while_tensors_are_checked_comes_first_and_stops_it(folder, monkeypatch):
    artefact, checked, running = Artefact.open(folder), [], threading.active_count()

    def slow(tensors):
        checked.extend(tensors)
        time.sleep(0.05)
        return real(tensors)

    real = fewbit.storage.tensors.checksums
    monkeypatch.setattr(fewbit.storage.tensors, "BATCH", 1)
    monkeypatch.setattr(fewbit.storage.tensors, "checksums", slow)
    with pytest.raises(KeyError), artefact.tensors() as tensors:
        raise KeyError
    assert 0 < len(checked) < len(tensors)
    assert threading.active_count() == running


def test_threads_of_a_forgotten_check_end_with_their_work(folder):
    running = threading.active_count()
    forgotten = Artefact.open(folder).tensors()
    forgotten.__enter__()
    while threading.active_count() > running:  # for ever, if they wait for more
        time.sleep(0.01)


def test_floats_are_aligned_as_torch_aligns_its_own(folder):
    artefact = Artefact.open(folder)
    with artefact.tensors() as tensors:
        floats = [tensor for tensor in tensors.values() if tensor.is_floating_point()]
    assert all(tensor.data_ptr() % 64 == 0 for tensor in floats)


def test_what_is_written_to_a_tensor_does_not_reach_its_file(folder):
    artefact = Artefact.open(folder)
    (header,) = artefact.headers
    before = header.path.read_bytes()
    with artefact.tensors() as tensors:
        pass
    for tensor in tensors.values():
        tensor.zero_()
    assert header.path.read_bytes() == before


def test_the_manifest_survives_its_own_writing(folder):
    artefact = Artefact.open(folder)
    again = Header(folder, {}, artefact.manifest.to_metadata())
    assert Manifest.from_headers([again]) == artefact.manifest


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"schema_version": 2}, "schema version '2'"),
        ({"schema_version": "1"}, "schema version"),
        ({"layers": {}}, "layers must be a list"),
        ({"aliases": []}, "aliases must be a dict"),
        ({"crc32": {"x": 1}}, "tables of strings"),
        ({"aliases": {"x": "nowhere"}}, "not stored"),
        ({"provenance": {}}, "exactly the fields recipe"),
        ({"more": 1}, "exactly the fields"),
    ],
    ids=str,
)
def test_a_forged_manifest_is_refused(folder, change, complaint):
    header = read_header(tiny.weights(folder))
    text = json.dumps({**json.loads(header.metadata["fewbit"]), **change})
    with pytest.raises(BrokenFile, match=complaint) as error:
        Manifest.from_headers([forged(header, text)])
    assert str(header.path) in str(error.value)


@pytest.mark.parametrize(
    ("recipe", "complaint"),
    [
        ({"method": ["rtn"], "bits": "w4a4", "settings": {}}, "recipe: method must be a str"),
        ({"method": "rtn", "bits": 4, "settings": {}}, "recipe: bits must be a str, got '4'"),
        ({"method": "rtn", "bits": "w4a4", "settings": 5}, "recipe: settings must be a dict"),
        ({}, "recipe must hold exactly the fields method, bits, settings"),
    ],
    ids=str,
)
def test_a_recipe_that_is_none_is_refused(folder, recipe, complaint):
    with pytest.raises(BrokenFile, match=complaint):
        with_recipe(folder, recipe)


@pytest.mark.parametrize(
    "recipe",
    [
        {"method": "magic", "bits": "w4a4", "settings": {}},
        {"method": "rtn", "bits": "w3a3", "settings": {"x": 1}},
    ],
    ids=str,
)
def test_a_recipe_that_only_others_know_is_read(folder, recipe):
    assert with_recipe(folder, recipe).provenance.recipe == recipe


def with_recipe(folder, recipe):
    header = read_header(tiny.weights(folder))
    content = json.loads(header.metadata["fewbit"])
    content["provenance"]["recipe"] = recipe
    return Manifest.from_headers([forged(header, json.dumps(content))])


def test_an_altered_manifest_is_refused(folder):
    header = read_header(tiny.weights(folder))
    text = header.metadata["fewbit"].replace('"seed": 0', '"seed": 1')
    metadata = {**header.metadata, "fewbit": text}
    with pytest.raises(BrokenFile, match="manifest was altered"):
        Manifest.from_headers([Header(header.path, header.tensors, metadata)])


def test_shards_of_two_artefacts_do_not_mix(folder):
    header = read_header(tiny.weights(folder))
    other = forged(header, header.metadata["fewbit"] + " ")
    with pytest.raises(BrokenFile, match="do not belong to one artefact"):
        Manifest.from_headers([header, Header(folder / "other", {}, other.metadata)])


def test_a_model_whose_scale_is_no_number_is_not_written():
    for bad in (0.0, -1.0, float("nan"), float("inf")):
        model = tiny.quantized(bits="w8a8")
        model.transformer_blocks[0].attn1.to_q.scales[1, 0] = bad
        with pytest.raises(BrokenFile, match=r"blocks\.0\.attn1\.to_q\.scales"):
            manifest_of(model, model.config)


def test_zero_points_and_codes_out_of_range():
    model = tiny.quantized(bits="w2a16", asymmetric=True)
    check_values(model)
    model.transformer_blocks[0].ff.net[2].zeros[3, 0] = 4
    with pytest.raises(BrokenFile, match=r"ff\.net\.2\.zeros .* above 3"):
        check_values(model)


def test_codes_that_are_no_numbers():
    from fewbit.formats import QTensor, Spec
    from fewbit.layers.linear import QLinear

    packed = QTensor.quantize(torch.ones(2, 8), Spec.parse("e4m3/row/fp32"))
    model = torch.nn.Sequential(QLinear(packed, None, None))
    check_values(model)
    packed.packed[0, 0] = 0x7F
    with pytest.raises(BrokenFile, match=r"0\.codes"):
        check_values(model)


def test_validate_names_what_is_missing_extra_or_of_another_kind(folder):
    artefact, model = Artefact.open(folder), tiny.quantized(bits="w2a16", asymmetric=True)
    (header,) = artefact.headers
    name = "transformer_blocks.0.attn1.to_q.scales"

    def check(tensors):
        validate(model, artefact.manifest, [Header(header.path, tensors, {})])

    check(header.tensors)
    stored = dict(header.tensors)
    wrong = type(stored[name])
    for bad in (
        wrong(torch.float16, stored[name].shape, 0),
        wrong(torch.float32, (1, 64), 0),
    ):
        with pytest.raises(BrokenFile, match=name):
            check({**stored, name: bad})
    kept = "proj_out_2.bias"
    with pytest.raises(BrokenFile, match=kept):
        check({**stored, kept: wrong(torch.int32, stored[kept].shape, 0)})
    with pytest.raises(BrokenFile, match="'extra'"):
        check({**stored, "extra": stored[name]})
    del stored[name]
    with pytest.raises(BrokenFile, match=f"lacks the tensor '{name}'"):
        check(stored)


def test_configurations_that_json_cannot_hold():
    assert as_json({"a": (1, 2), "_b": object(), "quantization_config": 1}) == {"a": [1, 2]}
    for value in (torch.float32, float("nan"), {1, 2}):
        with pytest.raises(BadModel, match="JSON"):
            as_json({"a": value})
