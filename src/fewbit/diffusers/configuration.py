"""A model that diffusers makes from a configuration is plain, whatever the configuration says.

diffusers copies `quantization_config` into the new model. That holds no packed weights, and
`from_pretrained`, which puts them in, says so itself when it has done it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusers.configuration_utils import ConfigMixin

SAID, METHOD = "quantization_config", "quant_method"

_extract: Any = ConfigMixin.extract_init_dict.__func__


def _extract_plain(cls: Any, config_dict: Mapping[str, Any], **kwargs: Any) -> Any:
    """diffusers' own, called by `from_config`, of a configuration without what fewbit said."""
    plain = {k: v for k, v in config_dict.items() if k != SAID or not _is_ours(v)}
    return _extract(cls, plain, **kwargs)


def _is_ours(said: Any) -> bool:
    method = said.get(METHOD) if isinstance(said, Mapping) else getattr(said, METHOD, None)
    return bool(method == "fewbit")


ConfigMixin.extract_init_dict = classmethod(_extract_plain)
