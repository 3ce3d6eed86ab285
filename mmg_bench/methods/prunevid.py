"""PruneVid: merge static tokens over time, cluster redundant ones in space, keep those the question attends to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from mmg_bench.methods._inside import layers_at
from mmg_bench.methods._merge import group_means, group_scores, in_raster_order, nearest_centres, unit
from mmg_bench.methods._ops import (
    descending,
    first_of_rows,
    frame_means,
    largest_remainder,
    on_device,
    squared_distances,
)
from mmg_bench.methods.base import Method, Positions, check_flag, check_range
from mmg_bench.tokens import LayerTokens, PrunedTokens, Selection, VideoTokens

SELECTED_LAYER, OFFICIAL_DEPTH = 10, 32
SMALL_GROUP = 14
"""Groups of at most this many tokens are not merged (fixed in the official code)."""


class Clusters(NamedTuple):
    """Clusters of a batch of G groups of up to n points."""

    centres: Tensor
    """`[G, m]`: the points that are centres, m the largest count; a group uses the first of its row."""
    assign: Tensor
    """`[G, n]`: the cluster of each point; clusters are in descending score order. Padded with -1."""


class Merged(NamedTuple):
    """A video after stage 1, in groups: the static tokens of each of W windows, then the dynamic ones of each frame."""

    tokens: Tensor
    """`[K, D]`, float32: each the mean of a cluster."""
    anchors: Tensor
    """`[K]`: flat position of each row's centre; static rows are placed in the window's first frame."""
    group: Tensor
    """`[K]`: the group of each row, 0..W + T - 1."""
    place: Tensor
    """`[W + T, n]`: the points of each group, as positions within a frame."""
    assign: Tensor
    """`[W + T, n]`: their clusters, as in `Clusters`."""


def cluster(
    x: Tensor, counts: Sequence[int], k: int, sizes: Sequence[int] | None = None, whole: Sequence[bool] | None = None
) -> Clusters:
    """DPC-KNN clusters of each group of `x [G, n, D]`: `counts[g]` centres, every point goes to the nearest.

    The first `sizes[g]` rows of a group are its points (None: all). If `whole[g]` (None: for no group), each point is
    its own cluster, in the points' order.
    """
    groups, size, width = x.shape
    device = x.device
    sizes = [size] * groups if sizes is None else sizes
    whole = [False] * groups if whole is None else whole
    slots = torch.arange(size, device=device)
    count, points, near, alone = on_device(
        [counts, sizes, [max(1, min(k, n)) for n in sizes], [int(w) for w in whole]], device
    ).unsqueeze(2)  # [G, 1] each
    valid = slots < points  # [G, n]
    squared = squared_distances(x) / width  # [G, n, n]
    score = group_scores(squared, valid, near.squeeze(1), min(k, size))
    score = torch.where(valid & (alone > 0), -slots.float(), score)
    return Clusters(*nearest_centres(squared, score, valid, count, max(counts)))


def temporal_labels(features: Tensor, clusters: int, k: int) -> list[int]:
    """The cluster of each frame of `features [T, N, D]`, by its mean token."""
    labels: list[int] = cluster(frame_means(features).unsqueeze(0), [clusters], k).assign[0].tolist()
    return labels


def refine(labels: Sequence[int]) -> list[int]:
    """Make clusters contiguous: keep the longest run(s) of each label, and give the others to a neighbour.

    A label without a run of two frames is dropped. Each stretch of freed frames, left to right, takes the label of the
    longer adjacent run (ties: the left one; no neighbour: 0).
    """
    runs = [(label, len(list(members))) for label, members in groupby(labels)]
    longest = {label: max(n for other, n in runs if other == label) for label, _ in runs}
    refined = [label if n == longest[label] > 1 else -1 for label, n in runs for _ in range(n)]
    start = 0
    for length in window_lengths(refined):
        if refined[start] == -1:
            left, right = refined[:start][::-1], refined[start + length :]
            nearer = left if first_run(left) >= first_run(right) else right
            refined[start : start + length] = [nearer[0] if nearer else 0] * length
        start += length
    return refined


def first_run(labels: Sequence[int]) -> int:
    """Length of the run of equal labels at the beginning; 0 for no labels."""
    return window_lengths(labels)[0] if labels else 0


def window_lengths(labels: Sequence[int]) -> list[int]:
    """Lengths of the runs of equal labels."""
    return [len(list(members)) for _, members in groupby(labels)]


def static_in_windows(features: Tensor, lengths: Sequence[int], tau: float) -> Tensor:
    """Mask of positions whose mean cosine over all pairs of a window's frames exceeds `tau`: bool `[windows, N]`.

    `features [T, N, D]`. A single frame has no pairs, so nothing is static (officially 0 / 0 or rounding noise / 0
    decides).
    """
    frames = on_device(lengths, features.device).unsqueeze(1)  # [windows, 1]
    sums = torch.stack([window.sum(0) for window in unit(features).split(list(lengths))])
    total = sums.square_().sum(-1)  # [windows, N]: the sum of all pairwise cosines, self included
    return ((total - frames) / (frames * (frames - 1)).clamp_min(1) > tau) & (frames > 1)


def merge_windows(
    features: Tensor,
    lengths: Sequence[int],
    is_static: Tensor,
    static_counts: Sequence[int],
    dynamic_counts: Sequence[int],
    k: int,
) -> Merged:
    """Merge `features [T, N, D]` given the windows' `lengths` and static positions (`is_static [windows, N]`).

    `static_counts` and `dynamic_counts`: tokens to keep of each window's static positions and of each frame's dynamic
    ones. Static positions are averaged over time first; then both are replaced by the means of their clusters.
    All W + T groups, first the windows', then the frames', are clustered at once.
    """
    frames, size, _ = features.shape
    device = features.device
    window = on_device([w for w, length in enumerate(lengths) for _ in range(length)], device)  # [T]
    starts = list(accumulate(lengths, initial=0))[:-1]
    first_frame = on_device([*starts, *range(frames)], device).unsqueeze(1)  # [W + T, 1]

    sizes = [n for part in group_sizes(lengths, is_static) for n in part]
    is_static = is_static.to(device, non_blocking=True)
    counts = [*static_counts, *dynamic_counts]
    whole = [count == size <= SMALL_GROUP for count, size in zip(counts, sizes, strict=True)]

    member = torch.cat([is_static, ~is_static[window]])  # [W + T, N]
    place = descending(member.byte())[:, : max(sizes)]  # [W + T, n], its members first
    means = torch.stack([part.mean(0, dtype=torch.float32) for part in features.split(list(lengths))])
    groups, split = len(member), len(lengths)
    number = torch.arange(groups, device=device).unsqueeze(1)  # [W + T, 1]
    still, moving = means[number[:split], place[:split]], features[number[:frames], place[split:]]
    x = torch.cat([still, moving.float()])  # [W + T, n, D]
    clusters = cluster(x, counts, k, sizes, whole)
    merged, _ = group_means(x, clusters.assign, max(counts))  # [W + T, m, D]
    anchors = first_frame * size + place.gather(1, clusters.centres)  # [W + T, m]
    row = first_of_rows(counts, device)
    return Merged(merged.flatten(0, 1)[row], anchors.flatten()[row], row // max(counts), place, clusters.assign)


def group_sizes(lengths: Sequence[int], is_static: Tensor) -> tuple[list[int], list[int]]:
    """Numbers of static tokens in each window, after merging over time, and of dynamic tokens in each frame."""
    static: list[int] = is_static.sum(1).tolist()
    size = is_static.shape[1]
    return static, [size - s for length, s in zip(lengths, static, strict=True) for _ in range(length)]


def counts_by_budget(sizes: Sequence[int], budget: int) -> list[int]:
    """Counts that add up to `budget`, or to the number of tokens if that is smaller.

    Groups of up to 14 tokens stay whole; all larger ones have the cluster ratio that meets the budget. If one of these
    would then get no token, all groups share the budget in proportion. Fractions by largest remainder.
    """
    budget = min(budget, sum(sizes))
    large = [n if n > SMALL_GROUP else 0 for n in sizes]
    rest = budget - (sum(sizes) - sum(large))
    if rest < sum(n > 0 for n in large):
        return largest_remainder([n * budget / sum(sizes) for n in sizes], budget, sizes)
    shares = [rest * m / sum(large) if m else n for n, m in zip(sizes, large, strict=True)]
    return largest_remainder(shares, budget, sizes)


def rank_in_groups(attention: Tensor, group: Tensor, alpha: float) -> Tensor:
    """Stage 2: the int(g * alpha) tokens of highest attention in each group of size g: ascending indices `[K]`.

    `attention [heads, queries, n]`: without rotary embedding and causal mask, from all text after the video; its
    maximum over heads and queries is the score. `group [n]`: group numbers from 0.
    """
    score = attention.amax((0, 1))  # [n]
    order = descending(score)
    by_group = order[group[order].argsort(stable=True)]  # groups one after another, best first
    sizes = torch.bincount(group)
    starts = sizes.cumsum(0) - sizes
    rank = torch.arange(len(score), device=score.device) - starts[group[by_group]]
    return by_group[rank < (sizes[group[by_group]].double() * alpha).long()].sort().values


@dataclass(frozen=True)
class PruneVid(Method):
    """PruneVid (Huang et al., ACL 2025): spatial-temporal token merging, then selection by the question.

    Idea: cluster frames into windows. In a window, average over time the positions that hardly change. Cluster the
    static tokens of each window and the dynamic tokens of each frame, and replace clusters by their means. After a
    middle layer of the language model, keep the tokens of each group that the question attends to, in all caches too.

    Source: arXiv 2412.16117; Visual-AI/PruneVid b12600c (merge_frames_dynamic, VTPWindowCache). `retention_ratio` is
    the share that stage 1 keeps; `outer=false` switches it off, `inner=false` stage 2.
    Parameters: see the fields. The official knob is a `cluster_ratio`; here it follows from `retention_ratio`, so
    that the total meets the budget (`counts_by_budget`).
    Quirks kept: groups of up to 14 tokens stay whole; if a label has several longest runs, all are kept.
    Deviations: rows enter the model in raster order of their cluster centres; k is lowered to the number of points
    and there is at least one temporal cluster, where the official code raises (T < 7, T * ratio < 1). If stage 2 would
    keep nothing, because int(size * alpha) is 0 for every group, it keeps the token of highest attention.
    """

    tau: float = 0.8
    """A position is static in a window if its mean pairwise cosine exceeds this."""
    temporal_segment_ratio: float = 0.25
    """Temporal clusters, as a share of the frames."""
    k: int = 7
    """Nearest neighbours in the density."""
    outer: bool = True
    """Whether to run stage 1, before the language model; if not, all tokens enter it, as one group of stage 2."""
    inner: bool = True
    """Whether stage 2 prunes inside the language model."""
    alpha: float = 0.4
    """Share of each group that stage 2 keeps."""

    name: ClassVar[str] = "prunevid"
    positions: ClassVar[Positions] = "contiguous"
    inside_positions: ClassVar[Positions] = "original"
    prunes_caches: ClassVar[bool] = True
    exact: ClassVar[bool] = False
    """Merging static tokens over time can leave fewer tokens than a large budget asks for."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "tau", -1, 1)
        check_range(self, "temporal_segment_ratio", 0, 1, low_open=True)
        check_range(self, "k", 1, 10_000, integer=True)
        check_range(self, "alpha", 0, 1, low_open=True)
        check_flag(self, "inner")
        check_flag(self, "outer")
        if not (self.outer or self.inner):
            raise ValueError("prunevid: outer=False and inner=False leave nothing to do: switch one on, or use dense")

    def select(self, tokens: VideoTokens) -> PrunedTokens:
        if not self.outer:
            every = torch.arange(tokens.total, device=tokens.features.device)
            return PrunedTokens(tokens.flat[every], every, state=torch.zeros_like(every))
        clusters = max(1, int(tokens.frames * self.temporal_segment_ratio))
        lengths = window_lengths(refine(temporal_labels(tokens.features, clusters, self.k)))
        is_static = static_in_windows(tokens.features, lengths, self.tau).cpu()  # its counts decide what follows
        static, dynamic = group_sizes(lengths, is_static)
        counts = counts_by_budget(static + dynamic, self.budget(tokens))
        static, dynamic = counts[: len(static)], counts[len(static) :]
        merged = merge_windows(tokens.features, lengths, is_static, static, dynamic, self.k)
        return in_raster_order(
            merged.tokens, merged.anchors, tokens.features, state=merged.group, window_lengths=lengths
        )

    def layers(self, depth: int) -> tuple[int, ...]:
        """Officially after layer 10 of 32, that is before layer 11; scaled to another depth."""
        return layers_at([SELECTED_LAYER + 1], OFFICIAL_DEPTH, depth) if self.inner else ()

    def select_inside(self, tokens: LayerTokens) -> Selection:
        every = torch.arange(len(tokens.text), device=tokens.features.device)
        attention = tokens.attention(every, rotary=False, causal=False)
        kept = rank_in_groups(attention, tokens.state, self.alpha)
        return Selection(kept if len(kept) else descending(attention.amax((0, 1)))[:1])
