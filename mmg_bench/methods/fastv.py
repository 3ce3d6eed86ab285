"""FastV: after a few layers of the language model, keep the visual tokens that the prompt's last token attends to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from mmg_bench.methods._inside import InsideMethod, check_layer, most_attended
from mmg_bench.methods.base import Positions, check_range
from mmg_bench.tokens import LayerTokens, Selection


def keep_by_attention(attention: Tensor, ratio: float) -> Tensor:
    """The round(n * ratio) tokens of highest attention `[n]`, at least one: ascending indices `[K]`."""
    return most_attended(attention, max(1, round(len(attention) * ratio)))


@dataclass(frozen=True)
class FastV(InsideMethod):
    """FastV (Chen et al., ECCV 2024): an image is worth half its tokens after layer 2.

    Idea: in deep layers visual tokens receive little attention. Before layer K, drop those that the last prompt token
    attends to least in layer K - 1 (mean over heads).

    Source: arXiv 2403.06764; pkunlp-icler/FastV d165972 (`fastv_forward`). Parameters: `layer` is the paper's K.
    `retention_ratio` is 1 - R of the paper: the share kept from layer K on; all tokens enter the earlier layers.
    Deviations: the official code runs eager attention in layer K - 1, here only that one row is recomputed; equal
    scores by the lower index; at least one token is kept.
    """

    layer: int = 2
    """Layer before which tokens are dropped. 2 in the paper and in the field's tables; the official demo uses 3."""

    name: ClassVar[str] = "fastv"
    positions: ClassVar[Positions] = "original"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "layer", 1, 10_000, integer=True)

    def layers(self, depth: int) -> tuple[int, ...]:
        return (check_layer(self, "layer", depth),)

    def select_inside(self, tokens: LayerTokens) -> Selection:
        attention = tokens.attention()[:, 0].mean(0)  # [n]
        return Selection(keep_by_attention(attention, self.retention_ratio))
