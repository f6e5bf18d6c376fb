"""The step caches of diffusers work on quantized models, whose blocks have other classes."""

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("diffusers")
pytestmark = pytest.mark.usefixtures("one_thread")

import tiny_transformers as tiny  # noqa: E402
from diffusers.hooks import (  # noqa: E402
    FirstBlockCacheConfig,
    TaylorSeerCacheConfig,
    apply_first_block_cache,
    apply_taylorseer_cache,
)
from diffusers.models.cache_utils import CacheMixin  # noqa: E402

from fewbit.engine.decibel import sqnr  # noqa: E402
from fewbit.layers.bind import unbind  # noqa: E402
from fewbit.layers.swap import answer_of, own_class  # noqa: E402

MODELS = ("DiTTransformer2DModel", "PixArtTransformer2DModel")
PARTS = TaylorSeerCacheConfig(
    cache_interval=2,
    disable_cache_before_step=1,
    cache_identifiers=[r".*blocks\.\d+\.(attn.*|ff)$"],
)


def run_cached(times: int, name: str, apply: Any, config: Any) -> list[Tensor]:
    model = tiny.quantized(name)
    tiny.run(model)  # its blocks are bound
    apply(model, config)
    with CacheMixin.cache_context(model, "both"):  # which these classes do not inherit
        return [tiny.run(model) for _ in range(times)]


@pytest.mark.parametrize("name", MODELS)
def test_a_first_block_cache_that_never_hits_changes_nothing(name: str) -> None:
    expected = tiny.run(tiny.quantized(name))
    for found in run_cached(2, name, apply_first_block_cache, FirstBlockCacheConfig(-1.0)):
        assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_a_first_block_cache_that_always_hits_gives_the_last_step_anew(name: str) -> None:
    expected = tiny.run(tiny.quantized(name))
    for found in run_cached(2, name, apply_first_block_cache, FirstBlockCacheConfig(1e9)):
        assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_taylor_seer_predicts_what_does_not_change(name: str) -> None:
    expected = tiny.run(tiny.quantized(name))
    for found in run_cached(4, name, apply_taylorseer_cache, PARTS):
        assert sqnr(expected, found) > 40  # the blocks run part by part, and a level may turn


def test_a_class_is_its_own_before_and_after_it_is_bound() -> None:
    model = tiny.quantized("DiTTransformer2DModel")
    block = model.transformer_blocks[0]
    assert answer_of(block) is not None
    swapped, own = type(block), own_class(type(block))
    unbind(model)
    assert type(block) is own is not swapped
    assert own_class(own) is own
