"""The key-value cache, which transformers calls `cache` since 5.24 and `past_key_values` before."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import transformers
from torch import Tensor
from transformers.cache_utils import StaticLayer
from transformers.masking_utils import create_causal_mask

_NAMES = ("cache", "past_key_values")


def _name() -> str:
    """The one of the two names in use here. Raises ImportError if the installed version uses neither."""
    known = inspect.signature(create_causal_mask).parameters
    for name in _NAMES:
        if name in known:
            return name
    raise ImportError(
        f"transformers {transformers.__version__} names the key-value cache neither {' nor '.join(_NAMES)}: "
        "install an older version"
    )


CACHE = _name()
"""Name of the cache as an argument of models and masks, and as a field of model outputs."""


def cache_of(arguments: Mapping[str, Any]) -> Any:
    """The cache among a call's keyword arguments, under its own name or its old one; None if there is none."""
    return next((arguments[name] for name in _NAMES if name in arguments), None)


def is_static(cache: Any) -> bool:
    """Whether a cache has its full size from the start, whatever it holds; False for None."""
    return cache is not None and any(isinstance(layer, StaticLayer) for layer in cache.layers)


def held(layer: Any, length: int, who: str) -> tuple[Tensor, Tensor]:
    """Keys and values `[B, key-value heads, length, width]` of a cache layer, unconverted.

    Raises ValueError, naming the method `who` that reads them, if the layer holds them otherwise, such as quantised.
    """
    if layer.keys.dim() != 4 or layer.keys.shape[2] != length:
        raise ValueError(
            f"{who} reads the cache, and {type(layer).__name__} does not store all keys unchanged: leave "
            "cache_implementation unset"
        )
    return layer.keys, layer.values
