"""FrameFusion: merge tokens that repeat between frames, layer by layer while many do, then keep the most attended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from mmg_bench.methods._inside import most_attended
from mmg_bench.methods._merge import bag_means
from mmg_bench.methods._ops import descending, positions_of
from mmg_bench.methods.base import Method, check_flag, check_range
from mmg_bench.tokens import LayerTokens, PrunedTokens, Selection, VideoTokens

OFFICIAL_DEPTH = 28


class Progress(NamedTuple):
    """State of the reduction of one video."""

    tokens_per_frame: int
    """N."""
    removed: tuple[float, ...] = ()
    """Share of the tokens that each merge has removed so far."""
    merging: bool = True
    """Whether the next stage merges; otherwise it prunes."""
    finished: bool = False
    """Whether the reduction is complete."""


def share_to_remove(removed: Sequence[float], cost: float, depth: int) -> float:
    """The share to remove now so that `depth` layers see `cost` of the tokens on average, in [0, 1].

    `removed`: the shares removed so far, one per layer, each relative to the tokens that remained at that point.
    """
    left, seen = 1.0, 0.0
    for share in removed:
        left *= 1 - share
        seen += left
    rest = depth * cost - seen
    return min(1.0, max(0.0, 1 - rest / ((depth - len(removed)) * left)))


def place_by_place(features: Tensor, positions: Tensor, tokens_per_frame: int) -> tuple[Tensor, Tensor]:
    """Sort tokens `[n, D]` at flat `positions [n]` by their place in the frame, then by time.

    Returns that order, int64 `[n]`, and the cosine of each token with the previous one in it, `[n]`, rounded as in the
    official code; -1.5 if it is undefined because a token has length zero, -2 for the first token of a place.
    """
    place, frame = positions % tokens_per_frame, positions // tokens_per_frame
    order = (place * (frame.max() + 1) + frame).argsort()
    place = place[order]
    x = features.detach()[order].float()
    norm = torch.linalg.vector_norm(x, dim=-1)
    cosine = (x[1:] * x[:-1]).sum(-1) / (norm[1:] * norm[:-1])  # [n - 1]
    cosine = cosine.nan_to_num_(nan=-1.5).masked_fill_(place[1:] != place[:-1], -2)
    return order, torch.cat([cosine.new_full((1,), -2), cosine])


def most_alike(similarity: Tensor, count: int) -> Tensor:
    """Mask of the `count` highest of `[n]`, ties by the lower place: bool `[n]`."""
    return torch.zeros_like(similarity, dtype=torch.bool).index_fill(0, descending(similarity)[:count], True)


def merge_runs(features: Tensor, order: Tensor, joins: Tensor, count: int, state: Progress) -> Selection:
    """Merge each of the `count` tokens that `joins [n]` (in `order`) marks into the one before it, in runs.

    The first token of each run stays and becomes the run's mean, in float32. If none joins, features do not change.
    """
    if not count:
        return Selection(torch.arange(len(order), device=order.device), state=state)
    stays = order[positions_of(~joins, len(order) - count)]  # [K], first tokens of the runs
    run = torch.empty_like(order).scatter(0, order, (~joins).cumsum(0) - 1)  # [n]
    means = bag_means(features, run, len(stays))
    stays, raster = stays.sort()
    return Selection(stays, means[raster], state)


@dataclass(frozen=True)
class FrameFusion(Method):
    """FrameFusion (Fu et al., ICCV 2025).

    Idea: before the language model, and after the attention of its first layers, merge tokens that resemble the
    previous token at their place in the frame, until few do. Then, after the next attention, drop the tokens that the
    prompt's last token attends to least.

    Source: arXiv 2501.01986; thu-nics/FrameFusion fbec1d2 (framefusion/main.py). Parameters: see the fields.
    `retention_ratio` is the official `cost`: the share of tokens that a layer sees, averaged over the layers. How many
    enter layer 0 depends on the video.
    Deviations: attention is recomputed for one row; float32 whatever the model's dtype; the cost counts the model's
    own layers (officially 28 for every model); at least one token is kept; if the layers that merge already exceed the
    cost (officially an error), the next stage keeps one token; ties go to the lower place; newline tokens are not
    touched.
    """

    similarity_lower_bound: float = 0.6
    """Cosine from which a token is merged with the previous one at its place."""
    ratio_lower_bound: float = 0.1
    """Share of mergeable tokens below which merging ends and the next stage prunes."""
    inner: bool = True
    """Whether to continue inside the language model; otherwise merge the most similar tokens before it, down to
    the ratio, but not below the N tokens of one frame."""

    name: ClassVar[str] = "framefusion"
    exact: ClassVar[bool] = False
    before_mlp: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "similarity_lower_bound", -1, 1)
        check_range(self, "ratio_lower_bound", 0, 1)
        check_flag(self, "inner")

    def select(self, tokens: VideoTokens) -> PrunedTokens:
        flat, size = tokens.flat, tokens.tokens_per_frame
        everything = torch.arange(tokens.total, device=flat.device)
        if self.inner:
            # nothing is merged yet, so the depth changes only the last bit: use the official one
            left = self._merge(flat, everything, Progress(size), OFFICIAL_DEPTH)
        else:
            order, similarity = place_by_place(flat, everything, size)
            count = tokens.total - max(self.budget(tokens), size)  # the first token of each place cannot merge
            left = merge_runs(flat, order, most_alike(similarity, count), count, Progress(size, finished=True))
        features = flat if left.features is None else left.features.to(flat.dtype)
        return PrunedTokens(features, left.index, state=left.state)

    def layers(self, depth: int) -> tuple[int, ...]:
        """All layers but the first, since any of them may be the last to merge or prune."""
        return tuple(range(1, depth)) if self.inner else ()

    def finished(self, state: Progress) -> bool:
        return state.finished

    def select_inside(self, tokens: LayerTokens) -> Selection:
        state: Progress = tokens.state
        if state.merging:
            return self._merge(tokens.features, tokens.positions, state, tokens.depth)
        attention = tokens.attention()[:, 0].mean(0)  # [n]
        share = share_to_remove(state.removed, self.retention_ratio, tokens.depth)
        kept = most_attended(attention, max(1, round(len(attention) * (1 - share))))
        return Selection(kept, state=state._replace(finished=True))

    def _merge(self, features: Tensor, positions: Tensor, state: Progress, depth: int) -> Selection:
        """Merge all tokens that repeat; if they are too many, only the most similar, which completes the reduction."""
        order, similarity = place_by_place(features, positions, state.tokens_per_frame)
        joins = similarity >= self.similarity_lower_bound  # [n], in order
        count = int(joins.sum())
        share, most = count / len(order), share_to_remove(state.removed, self.retention_ratio, depth)
        if share < most:
            merging = share >= self.ratio_lower_bound and most < 1  # an exceeded cost is left to the next stage
            after = state._replace(removed=(*state.removed, share), merging=merging)
            return merge_runs(features, order, joins, count, after)
        count = int(most * len(order))
        return merge_runs(features, order, most_alike(similarity, count), count, state._replace(finished=True))
