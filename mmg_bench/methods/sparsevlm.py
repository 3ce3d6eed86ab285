"""SparseVLM and SparseVLM+: drop visual tokens by the attention of the text tokens that match the video best."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from mmg_bench.methods._inside import InsideMethod, layers_at, most_attended
from mmg_bench.methods._merge import group_sums, supplied
from mmg_bench.methods._ops import descending, dpc_scores, positions_of, squared_distances
from mmg_bench.methods.base import Positions, check_choice
from mmg_bench.tokens import LayerTokens, PrunedTokens, Selection, VideoTokens

PRUNED_AFTER, OFFICIAL_DEPTH = (2, 6, 15), 32
OFFICIAL_TOTAL = 576
OFFICIAL_BUDGETS = {  # version -> mean tokens over the layers, of 576 -> tokens that each stage leaves
    1: {64: (66, 30, 17), 96: (238, 48, 26), 128: (303, 110, 36), 192: (300, 200, 110), 576: (576, 576, 576)},
    2: {64: (66, 34, 20), 96: (246, 54, 28), 128: (238, 108, 60), 192: (300, 200, 118), 576: (576, 576, 576)},
}
PRIORITY_HEADS = 14
"""Number of heads that version 2 uses; the official code fixes it for every model."""


def stage_budgets(version: int, ratio: float, total: int) -> list[int]:
    """Tokens of `total` that each stage keeps: the official lists, linear between and proportional below them."""
    table = OFFICIAL_BUDGETS[version]
    wanted = ratio * OFFICIAL_TOTAL
    knots = [(0, (0, 0, 0)), *table.items()]
    (low, below), (high, above) = next(pair for pair in pairwise(knots) if wanted <= pair[1][0])
    part = (wanted - low) / (high - low)
    return [max(1, round((b + part * (a - b)) * total / OFFICIAL_TOTAL)) for b, a in zip(below, above, strict=True)]


def text_raters(visual: Tensor, text: Tensor) -> Tensor:
    """The rating text tokens, whose mean affinity to `visual [M, D]` exceeds the average over `text [L, D]`.

    Affinity: softmax over the text of v.t, unscaled. Ascending indices `[R]` int64; all if none exceeds the average.
    """
    affinity = (visual.float() @ text.float().T).softmax(-1).mean(0)  # [L]
    raters = (affinity > affinity.mean()).nonzero().squeeze(1)
    return raters if len(raters) else torch.arange(len(text), device=text.device)


def rotary_bias(text: Tensor, visual: Tensor) -> Tensor:
    """Attention `[L, n]` of the rotary embedding alone: products of rotated vectors of ones, over sqrt(width)."""
    return text @ visual.T / text.shape[-1] ** 0.5


def priority_heads(attention: Tensor) -> Tensor:
    """The heads of `attention [heads, R, n]` that attend most to the video: `[14]` or fewer, ascending."""
    return most_attended(attention.sum((1, 2)), PRIORITY_HEADS)


def recycle(features: Tensor, score: Tensor, dropped: Tensor) -> tuple[Tensor, Tensor]:
    """Merge the best of the dropped tokens: sums / counts `[C, D]` float32, and the centres `[C]` among the n.

    `features [n, D]`, `score [n]`, `dropped [M]` indices. The top m = int(0.3 M) + 1 by score form int(m / 10) + 1
    clusters by DPC-KNN with as many neighbours; each token joins the nearest centre.
    """
    candidates = dropped[descending(score[dropped])[: int(0.3 * len(dropped)) + 1]]
    x = features[candidates].float()
    clusters = int(len(x) / 10) + 1
    centres = descending(dpc_scores(x.unsqueeze(0), min(clusters, len(x)))[0])[:clusters]  # [C]
    label = squared_distances(x.unsqueeze(0))[0][:, centres].argmin(1)
    label[centres] = torch.arange(len(centres), device=label.device)
    sums, counts = group_sums(x, label, len(centres))
    return sums / (counts.unsqueeze(1) + 1e-6), candidates[centres]


@dataclass(frozen=True)
class SparseVLM(InsideMethod):
    """SparseVLM (Zhang et al., ICML 2025), and SparseVLM+ as `version=2`.

    Idea: text tokens that match the video rate its tokens by their attention. After each of three layers, the lowest
    are dropped, and the best of the dropped are merged into a few (version 1). Version 2 divides the attention by
    that of the rotary embedding alone, uses the 14 heads that attend most to the video, and merges nothing.

    Source: arXiv 2410.04417; Gumpest/SparseVLMs 26a5f48 (`LlamaDynamicvitModel.forward`, `score.py`). Parameters: see
    the fields. `retention_ratio` is the mean over the layers of a model of 32, as in its paper: the official lists for
    64, 96, 128 and 192 of 576 tokens, scaled, and interpolated linearly; tables show the realised mean.
    Quirks kept: raters are chosen once, from the input embeddings; a stage keeps at most all but one of its tokens;
    merged tokens come after the kept ones, and position ids are renumbered (version 1) or kept (version 2).
    Deviations: attention is recomputed only for the raters' rows; equal scores by the lower index; at least one token
    is kept.
    """

    version: int = 1
    """1, or 2 for SparseVLM+."""

    name: ClassVar[str] = "sparsevlm"
    needs: ClassVar[frozenset[str]] = frozenset({"query"})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, "version", (1, 2))

    @property
    def positions(self) -> Positions:  # type: ignore[override]
        """Renumbered in version 1, kept in version 2."""
        return "contiguous" if self.version == 1 else "original"

    def layers(self, depth: int) -> tuple[int, ...]:
        """Officially after layers 2, 6 and 15 of 32, that is before 3, 7 and 16; scaled to another depth."""
        return layers_at([layer + 1 for layer in PRUNED_AFTER], OFFICIAL_DEPTH, depth)

    def select(self, tokens: VideoTokens) -> PrunedTokens:
        whole = super().select(tokens)
        raters = text_raters(tokens.flat, supplied(tokens, "query"))
        return PrunedTokens(whole.features, whole.positions, notes={"raters": len(raters)}, state=raters)

    def select_inside(self, tokens: LayerTokens) -> Selection:
        raters = tokens.state
        attention = tokens.attention(raters)  # [heads, R, n]
        if self.version == 2:
            attention = attention / rotary_bias(*tokens.attention.phases())[raters]
            attention = attention[priority_heads(attention)]
        score = attention.mean((0, 1))  # [n]
        budget = stage_budgets(self.version, self.retention_ratio, tokens.total)[tokens.stage]
        return prune_stage(tokens.features, score, budget, merge=self.version == 1, state=raters)


def prune_stage(features: Tensor, score: Tensor, budget: int, merge: bool, state: Tensor | None = None) -> Selection:
    """Keep the `budget` best of n tokens (at most n - 1), then the merged ones: see `recycle`."""
    count = len(score)
    if count == 1:
        return Selection(torch.zeros(1, dtype=torch.int64, device=score.device), state=state)
    kept = most_attended(score, min(budget, count - 1))
    if not merge:
        return Selection(kept, state=state)
    dropped = torch.ones(count, dtype=torch.bool, device=score.device)
    dropped[kept] = False
    merged, centres = recycle(features, score, positions_of(dropped, count - len(kept)))
    values = torch.cat([features[kept].float(), merged])
    return Selection(torch.cat([kept, centres]), values.to(features.dtype), state)
