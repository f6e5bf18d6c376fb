"""Which backend is taken, what forces one, and what is said when it cannot be."""

import pytest
import torch

from fewbit.errors import BadArgument
from fewbit.kernels.choose import BACKENDS, VARIABLE, backend_for, backend_named, choose

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _unforced(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
def test_a_backend_is_forced_or_says_why_not(backend, monkeypatch):
    monkeypatch.setenv(VARIABLE, backend.name)
    why_not = backend.why_not(CPU)
    if why_not is None:
        assert backend_for(torch.zeros(1)) is backend
        assert choose(CPU).why == "FEWBIT_BACKEND says so"
    else:
        with pytest.raises(BadArgument, match=f"forces '{backend.name}', which cannot run: "):
            backend_for(torch.zeros(1))


def test_an_unknown_name_lists_the_known(monkeypatch):
    monkeypatch.setenv(VARIABLE, "gpu")
    with pytest.raises(BadArgument, match="'gpu'; allowed: cuda, native, reference, torch"):
        backend_for(torch.zeros(1))


def test_the_first_that_can_is_taken_and_the_others_say_why_not():
    choice = choose(CPU)
    able = [backend for backend in BACKENDS if backend.why_not(CPU) is None]
    assert choice.backend is able[0]
    assert choice.why == "the fastest here" or "native cannot: " in choice.why


def test_a_device_that_nobody_knows_takes_the_definition():
    assert choose(torch.device("meta")).backend.name == "reference"


def test_what_is_trained_takes_the_definition():
    x = torch.zeros(1, requires_grad=True)
    assert backend_for(x).name == "reference"
    with torch.no_grad():
        assert backend_for(x) is choose(CPU).backend


def test_without_onednn_the_definition_remains(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert "without oneDNN" in str(backend_named("torch").why_not(CPU))
