"""V2Drop: drop the visual tokens that the language model's layers change least, in three stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mmg_bench.methods._inside import InsideMethod, layers_at, most_attended
from mmg_bench.methods.base import Positions, check_range
from mmg_bench.tokens import LayerTokens, Selection

OFFICIAL_LAYERS = {32: (3, 17, 22), 28: (3, 16, 22)}
"""Depth of the language model -> layers before which tokens are dropped, for LLaVA-1.5-7B and Qwen2-VL-7B."""


def variation(features: Tensor, previous: Tensor) -> Tensor:
    """How far one layer moved each token: L2 distance of `[n, D]` and `[n, D]`, float32 `[n]`."""
    return torch.linalg.vector_norm(features.float() - previous.float(), dim=-1)


def shares_for(ratio: float, lengths: Sequence[int]) -> tuple[float, float, float]:
    """Shares of their input that three stages keep so that the mean over their `lengths` in layers is `ratio`.

    (s, s, 0), as officially on LLaVA; if even s = 1 is too little, (1, 1, the share that the mean still needs).
    """
    first, second, third = lengths
    wanted = ratio * sum(lengths)
    if wanted > first + second:
        return 1.0, 1.0, (wanted - first - second) / third
    share = (-first + (first**2 + 4 * second * wanted) ** 0.5) / (2 * second)  # first * s + second * s^2 = wanted
    return share, share, 0.0


@dataclass(frozen=True)
class V2Drop(InsideMethod):
    """V2Drop (Chen et al., CVPR 2026): variation-aware vision token dropping.

    Idea: a token that a layer hardly changes does not take part in the model's computation. Before each of three layers
    keep the visual tokens that the previous layer moved furthest (L2). Attention is not used.

    Source: arXiv 2509.01552; xuyang-liu16/V2Drop 219e03e (`V2DropLlamaModel.forward`; `DART.forward` of its Qwen2-VL).
    Parameters: see the fields. `retention_ratio` is the mean over the layers from the first stage on, as in pdrop. All
    tokens enter the earlier layers; tables also show the mean over all layers. With `first` and `second` given, the
    ratio has no effect.
    Deviations: distances are float32 whatever the model's dtype; equal ones by the lower index.
    """

    first: float | None = None
    """Share of the tokens that the first stage keeps: officially 0.5 (LLaVA), 0.25 (Qwen2-VL); None: by the ratio."""
    second: float | None = None
    """Share of these that the second keeps: officially 0.5 or 0.05; None if `first` is. The third keeps one token."""

    name: ClassVar[str] = "v2drop"
    positions: ClassVar[Positions] = "original"

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("first", "second"):
            if getattr(self, field) is not None:
                check_range(self, field, 0, 1, low_open=True)
        if (self.first is None) != (self.second is None):
            raise ValueError(
                f"V2Drop.first={self.first!r}, second={self.second!r}: give both shares, or neither (they then "
                "follow from retention_ratio)"
            )

    def layers(self, depth: int) -> tuple[int, ...]:
        """Officially 3, 17, 22 of 32 and 3, 16, 22 of 28; for another depth, scaled from 32."""
        return OFFICIAL_LAYERS.get(depth) or layers_at(OFFICIAL_LAYERS[32], 32, depth)

    def select_inside(self, tokens: LayerTokens) -> Selection:
        if self.first is not None and self.second is not None:
            shares = (self.first, self.second, 0.0)
        else:
            one, two, three = self.layers(tokens.depth)
            shares = shares_for(self.retention_ratio, (two - one, three - two, tokens.depth - three))
        share = round(shares[tokens.stage], 12)  # a rounding error below 0.5 would keep one token less
        count = max(1, int(len(tokens.features) * share))
        return Selection(most_attended(variation(tokens.features, tokens.previous), count))
