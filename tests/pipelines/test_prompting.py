"""What pipelines must be told besides the prompt."""

from types import SimpleNamespace

import pytest

from fewbit.pipelines import prompting
from fewbit.pipelines.prompting import own_manner, own_prompts


class Reader:
    def __call__(self, prompt, use_resolution_binning=True, clean_caption=True): ...


class Plain:
    def __call__(self, prompt): ...


@pytest.mark.parametrize(
    ("libraries", "manner"),
    [
        (["bs4", "ftfy"], {"use_resolution_binning": False}),
        (["bs4"], {"use_resolution_binning": False, "clean_caption": False}),
    ],
)
def test_pipelines_are_told_to_leave_what_they_cannot_do(monkeypatch, libraries, manner):
    monkeypatch.setattr(prompting, "find_spec", lambda name: name if name in libraries else None)
    assert own_manner(Reader()) == manner
    assert own_manner(Plain()) == {}


def test_prompts_are_those_of_the_tokenizer_if_it_has_any():
    listing = SimpleNamespace(tokenizer=SimpleNamespace(init_kwargs={"prompts": ["a", "b"]}))
    assert own_prompts(listing) == ["a", "b"]
    assert own_prompts(SimpleNamespace(tokenizer=SimpleNamespace(init_kwargs={}))) == []
    assert own_prompts(SimpleNamespace(tokenizer=None)) == []
    assert own_prompts(Plain()) == []
