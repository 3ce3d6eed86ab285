"""ToMe: merge the most similar pairs of tokens, by bipartite soft matching."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from mmg_bench.methods._merge import frame_groups, group_sums, in_raster_order, unit
from mmg_bench.methods._ops import descending
from mmg_bench.methods.base import Method, Positions, check_choice
from mmg_bench.tokens import PrunedTokens, VideoTokens


class Merging(NamedTuple):
    """State of frames during merging, n tokens each."""

    tokens: Tensor
    """`[T, n, D]`, float32: size-weighted means."""
    sizes: Tensor
    """`[T, n]`: how many input tokens each stands for."""
    assign: Tensor
    """`[T, N]`: the row that each input token was merged into."""
    anchors: Tensor
    """`[T, n]`: the input token that each row stands at, the target of its merges."""


Round = Callable[[Merging, int], Merging]
"""One round of merging: r tokens fewer in every frame."""


def unmerged(features: Tensor) -> Merging:
    """The initial state: every token of `features [T, N, D]` on its own."""
    index = torch.arange(features.shape[1], device=features.device).repeat(len(features), 1)
    return Merging(features.float(), torch.ones_like(index), index, index)


def merge_once(state: Merging, r: int) -> Merging:
    """One round of bipartite soft matching: r tokens fewer in every frame, r at most n // 2.

    Each token at an even place (A) proposes its most similar token at an odd place (B); the r most similar proposals
    are merged into B. The result lists the other A tokens by descending similarity, then all B tokens in order. With
    r = 0 it is `state` itself.
    """
    if not r:
        return state
    direction = unit(state.tokens)
    a_count = (direction.shape[1] + 1) // 2
    similarity, partner = (direction[:, ::2] @ direction[:, 1::2].mT).max(-1)  # [T, A] both
    order = descending(similarity)
    source, alone = order[:, :r], order[:, r:]  # [T, r], [T, A - r]
    target = partner.gather(1, source)  # [T, r], places in B

    def merge_in(x: Tensor) -> Tensor:  # x [T, n, C]
        frames = torch.arange(len(x), device=x.device).unsqueeze(1)
        a, b = x[:, ::2], x[:, 1::2]
        absorbed, _ = group_sums(a[frames, source], target, b.shape[1])
        return torch.cat([a[frames, alone], b + absorbed], 1)

    sizes = merge_in(state.sizes.unsqueeze(-1).float())  # [T, n - r, 1]
    tokens = merge_in(state.tokens * state.sizes.unsqueeze(-1)) / sizes

    row = torch.empty_like(state.sizes)  # [T, n]: where each current token goes
    row[:, 1::2] = torch.arange(row.shape[1] // 2, device=row.device) + a_count - r
    of_a = torch.empty_like(order)
    of_a.scatter_(1, alone, torch.arange(a_count - r, device=row.device).expand_as(alone))
    of_a.scatter_(1, source, target + a_count - r)
    row[:, ::2] = of_a
    anchors = torch.cat([state.anchors[:, ::2].gather(1, alone), state.anchors[:, 1::2]], 1)
    return Merging(tokens, sizes.squeeze(-1).long(), row.gather(1, state.assign), anchors)


def merge_to(features: Tensor, target: int, once: Round = merge_once) -> tuple[Merging, list[int]]:
    """Merge every frame of `features [T, N, D]` down to `target` >= 1 tokens; also the tokens removed per round."""
    state = unmerged(features)
    rounds: list[int] = []
    while (count := state.tokens.shape[1]) > target:
        rounds.append(min(count - target, count // 2))
        state = once(state, rounds[-1])
    return state, rounds


def merged_frames(tokens: VideoTokens, budget: int, once: Round = merge_once) -> PrunedTokens:
    """Merge all frames to `budget` tokens in total, shared evenly; the result is in raster order."""
    flat = torch.arange(tokens.total, device=tokens.features.device).view(tokens.frames, -1)  # [T, N]
    features, positions = [], []
    for run, count in frame_groups(budget, tokens.frames):
        merged, _ = merge_to(tokens.features[run], count, once)
        features.append(merged.tokens.flatten(0, 1))
        positions.append(flat[run].gather(1, merged.anchors).flatten())
    return in_raster_order(torch.cat(features), torch.cat(positions), tokens.features)


@dataclass(frozen=True)
class ToMe(Method):
    """Token Merging (Bolya et al., ICLR 2023), applied to the tokens of each frame, or of the video, before the model.

    Idea: split the tokens into two alternating sets, match each token of the first with its most similar one of the
    second, and merge the most similar pairs into size-weighted means. Repeat until the budget is met.

    Source: arXiv 2210.09461; facebookresearch/ToMe af95e4b (tome/merge.py).
    Parameters: see the field; r, the tokens removed in a round, is as large as possible (half of them) until the
    budget is reached. Frame budgets are B/T tokens, remainder to the earliest frames; below one token per frame, later
    frames have none.
    Quirk kept: in later rounds odd and even refer to the merged sequence, whose order is not raster.
    Deviations: ToMe merges between the blocks of a vision transformer, with its keys as the metric; here the final
    tokens are merged, by their own cosine. The result enters the model in raster order of the merging targets.
    """

    scope: str = "frame"
    """`frame`: within each frame; `video`: over all T*N tokens as one sequence, so also across frames."""

    name: ClassVar[str] = "tome"
    positions: ClassVar[Positions] = "contiguous"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, "scope", ("frame", "video"))

    def select(self, tokens: VideoTokens) -> PrunedTokens:
        if self.scope == "video":
            return merged_frames(VideoTokens(tokens.flat[None], (1, tokens.total)), self.budget(tokens))
        return merged_frames(tokens, self.budget(tokens))
