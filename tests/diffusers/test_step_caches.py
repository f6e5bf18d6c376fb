"""The step caches of diffusers work on quantized models, whose blocks have other classes."""

from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")
pytestmark = pytest.mark.usefixtures("one_thread")

import tiny_transformers as tiny  # noqa: E402
from diffusers.hooks import (  # noqa: E402
    FirstBlockCacheConfig,
    TaylorSeerCacheConfig,
    apply_first_block_cache,
    apply_taylorseer_cache,
)
from diffusers.hooks.hooks import CacheContext, _set_cache_context  # noqa: E402

from fewbit.engine.decibel import sqnr  # noqa: E402
from fewbit.layers.bind import unbind  # noqa: E402
from fewbit.layers.swap import answer_of, own_class  # noqa: E402

MODELS = ("DiTTransformer2DModel", "PixArtTransformer2DModel")
PARTS = TaylorSeerCacheConfig(
    cache_interval=2,
    disable_cache_before_step=1,
    cache_identifiers=[r".*blocks\.\d+\.(attn.*|ff)$"],
)


def cached(name: str, apply: Any, config: Any) -> Any:
    model = tiny.quantized(name)
    tiny.run(model)  # its blocks are bound
    apply(model, config)
    _set_cache_context(model, CacheContext("both"))
    return model


@pytest.mark.parametrize("name", MODELS)
def test_a_first_block_cache_that_never_hits_changes_nothing(name: str) -> None:
    expected = tiny.run(tiny.quantized(name))
    model = cached(name, apply_first_block_cache, FirstBlockCacheConfig(threshold=-1.0))
    for _ in range(2):
        assert torch.allclose(tiny.run(model), expected, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_a_first_block_cache_that_always_hits_gives_the_last_step_anew(name: str) -> None:
    expected = tiny.run(tiny.quantized(name))
    model = cached(name, apply_first_block_cache, FirstBlockCacheConfig(threshold=1e9))
    first, second = tiny.run(model), tiny.run(model)
    assert torch.allclose(first, expected, atol=1e-5)
    assert torch.allclose(second, expected, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_taylor_seer_predicts_what_does_not_change(name: str) -> None:
    expected = tiny.run(tiny.quantized(name))
    model = cached(name, apply_taylorseer_cache, PARTS)
    for _ in range(4):
        assert sqnr(expected, tiny.run(model)) > 40  # the blocks run part by part, level by level


def test_a_class_is_its_own_before_and_after_it_is_bound() -> None:
    model = tiny.quantized("DiTTransformer2DModel")
    block = model.transformer_blocks[0]
    assert answer_of(block) is not None
    swapped, own = type(block), own_class(type(block))
    unbind(model)
    assert type(block) is own is not swapped
    assert own_class(own) is own
