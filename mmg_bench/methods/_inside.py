"""Helpers shared by the methods that prune inside the language model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from mmg_bench.methods._ops import descending
from mmg_bench.methods.base import Method, check_range
from mmg_bench.tokens import PrunedTokens, VideoTokens, keep_all


class InsideMethod(Method):
    """Base class of methods that keep all tokens before the language model and prune only inside it."""

    exact: ClassVar[bool] = False

    def select(self, tokens: VideoTokens) -> PrunedTokens:
        return keep_all(tokens)


def layers_at(official: Sequence[int], official_depth: int, depth: int) -> tuple[int, ...]:
    """The official layers, scaled to another depth: distinct, ascending, in 1..depth - 1.

    Raises ValueError if the model has too few layers.
    """
    layers: list[int] = []
    for layer in official:
        layers.append(max(round(layer * depth / official_depth), layers[-1] + 1 if layers else 1))
    if layers and layers[-1] >= depth:
        raise ValueError(
            f"a language model of {depth} layers has no room for {len(layers)} pruning stages (layers {layers})"
        )
    return tuple(layers)


def check_layer(method: Method, field: str, depth: int) -> int:
    """The layer given by `field`, for a model of `depth` layers. Raises ValueError unless it is in 1..depth - 1."""
    check_range(method, field, 1, depth - 1, integer=True)
    layer: int = getattr(method, field)
    return layer


def most_attended(attention: Tensor, count: int) -> Tensor:
    """Ascending indices of the `count` highest of `[n]`, ties by the lower index: int64 `[count]`."""
    return descending(attention)[:count].sort().values
