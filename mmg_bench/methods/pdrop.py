"""PyramidDrop: drop visual tokens in several stages of the language model, ranked by the prompt's last token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from mmg_bench.methods._inside import InsideMethod, layers_at, most_attended
from mmg_bench.methods.base import Positions, check_range
from mmg_bench.tokens import LayerTokens, Selection

OFFICIAL_LAYERS, OFFICIAL_DEPTH = (8, 16, 24), 32


def share_for(ratio: float, lengths: Sequence[int]) -> float:
    """The share s in (0, 1] for which s, s^2, s^3, ... over `lengths` layers have the mean `ratio`, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        mean = sum(n * middle**i for i, n in enumerate(lengths, start=1)) / sum(lengths)
        low, high = (middle, high) if mean < ratio else (low, middle)
    return high


def keep_by_rank(attention: Tensor, total: int, ratio: float) -> Tensor:
    """The int(total * ratio) tokens of highest attention `[n]`, at least one: ascending indices `[K]`."""
    return most_attended(attention, max(1, int(total * ratio)))


@dataclass(frozen=True)
class PDrop(InsideMethod):
    """PyramidDrop (Xing et al., CVPR 2025).

    Idea: redundancy grows with depth. Before each of a few layers, keep a share of the visual tokens, those that the
    last prompt token attends to most by that layer's own queries and keys.

    Source: arXiv 2410.17247; Cooperx521/PyramidDrop 6444f30 (`pdrop_rank_drop`). Parameters: see the fields.
    `retention_ratio` is the mean over the layers from the first stage on (29.2 % with the official 50, 25, 12.5 %),
    like FastV's from its layer on. All tokens enter the earlier layers; tables also show the mean over all layers. That
    mean cannot be below 25 % with the official layers, because a quarter of the layers precede the first stage.
    Deviations: attention is recomputed for one row; equal scores by the lower index; at least one token is kept.
    """

    share: float | None = None
    """Share of its input tokens that each stage keeps (officially 0.5); None: derived from `retention_ratio`."""

    name: ClassVar[str] = "pdrop"
    positions: ClassVar[Positions] = "contiguous"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.share is not None:
            check_range(self, "share", 0, 1, low_open=True)

    def layers(self, depth: int) -> tuple[int, ...]:
        """Officially 8, 16, 24 of 32; scaled to another depth."""
        return layers_at(OFFICIAL_LAYERS, OFFICIAL_DEPTH, depth)

    def select_inside(self, tokens: LayerTokens) -> Selection:
        attention = tokens.attention(own=True)[:, 0].mean(0)  # [n]
        # the official layers are equally spaced, so each stage counts the same
        share = share_for(self.retention_ratio, [1] * len(OFFICIAL_LAYERS)) if self.share is None else self.share
        ratio = round(share ** (tokens.stage + 1), 12)  # the decimal value: 0.7 * 0.7 is a little less than 0.49
        return Selection(keep_by_rank(attention, tokens.total, ratio))
