"""A pipeline without its progress bar, for work that is no picture of the user's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def without_bar(pipe: Any) -> Iterator[None]:
    """The bar is configured again afterwards as it was."""
    bar = vars(pipe).get("_progress_bar_config")
    pipe.set_progress_bar_config(disable=True)
    try:
        yield
    finally:
        vars(pipe).pop("_progress_bar_config", None)
        if bar is not None:
            pipe._progress_bar_config = bar
