"""PruneVid: merge what is static in time, cluster what is redundant in space, keep what the question attends to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from mmg_bench.methods._inside import layers_at
from mmg_bench.methods._merge import centre_scores, group_means, in_raster_order, unit
from mmg_bench.methods._ops import descending, frame_means, largest_remainder, squared_distances
from mmg_bench.methods.base import Method, Positions, check_range
from mmg_bench.tokens import LayerTokens, PrunedTokens, Selection, VideoTokens

SELECTED_LAYER, OFFICIAL_DEPTH = 10, 32
SMALL_GROUP = 14
"""Groups of at most this many tokens are left alone (fixed in the official code)."""


class Clusters(NamedTuple):
    """Clusters of a batch of G groups of n points."""

    assign: Tensor
    """`[G, n]`: the cluster of each point; clusters are in descending score order."""
    centres: Tensor
    """`[G, m]`: the points that are centres, m the largest count; a group uses its first ones."""


class Merged(NamedTuple):
    """A video after stage 1: per window its static tokens, then its dynamic ones frame by frame."""

    tokens: Tensor
    """`[K, D]`, float32: each the mean of the tokens assigned to it."""
    assign: Tensor
    """`[T, N]`: the row of `tokens` that a token went into."""
    anchors: Tensor
    """`[K]`: flat position of each row's centre; of static rows in the window's first frame."""


def cluster(x: Tensor, counts: Sequence[int], k: int) -> Clusters:
    """DPC-KNN clusters of each group of `x [G, n, D]`: `counts[g]` centres, every point to the nearest of them.

    Where every group is to have as many clusters as points, each point is its own, in order.
    """
    groups, size, width = x.shape
    if all(count == size for count in counts):
        own = torch.arange(size, device=x.device).expand(groups, -1)
        return Clusters(own, own)
    squared = squared_distances(x) / width  # [G, n, n]
    centres = descending(centre_scores(squared, k))[:, : max(counts)]  # [G, m]
    ranks = torch.arange(centres.shape[1], device=x.device)
    unused = ranks >= torch.tensor(counts, device=x.device).unsqueeze(1)  # [G, m]
    distance = squared.gather(2, centres.unsqueeze(1).expand(-1, size, -1))  # [G, n, m]
    assign = distance.masked_fill(unused.unsqueeze(1), torch.inf).argmin(2)  # [G, n]
    # A centre is its own cluster even when it equals another one.
    own = torch.where(unused, assign.gather(1, centres), ranks)
    return Clusters(assign.scatter(1, centres, own), centres)


def temporal_labels(features: Tensor, clusters: int, k: int) -> list[int]:
    """The cluster of each frame's mean token, of `features [T, N, D]`."""
    labels: list[int] = cluster(frame_means(features).unsqueeze(0), [clusters], k).assign[0].tolist()
    return labels


def refine(labels: Sequence[int]) -> list[int]:
    """Make clusters contiguous: of each label keep the longest run(s), and give the others to a neighbour.

    A label without a run of two frames is given up. Each stretch of freed frames, left to right, takes the label of
    the longer adjacent run (equal: the left one; no neighbour: 0).
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


def static_positions(window: Tensor, tau: float) -> Tensor:
    """Where the mean cosine between all pairs of frames of `window [w, N, D]` exceeds `tau`: `[N]` bool.

    One frame alone has no pairs, and nothing static (in the official code 0 / 0 or rounding noise / 0 decides).
    """
    frames = len(window)
    if frames == 1:
        return torch.zeros(window.shape[1], dtype=torch.bool, device=window.device)
    total = unit(window).sum(0).square().sum(-1)  # [N]: the sum of all pairwise cosines, self included
    return (total - frames) / (frames * (frames - 1)) > tau


def merge_windows(
    features: Tensor,
    lengths: Sequence[int],
    is_static: Tensor,
    static_counts: Sequence[int],
    dynamic_counts: Sequence[int],
    k: int,
) -> Merged:
    """Merge `features [T, N, D]` given the windows' `lengths` and static positions (`is_static [windows, N]`).

    `static_counts` and `dynamic_counts`: tokens to leave of each window's static positions and of each frame's dynamic
    ones. Static positions are averaged over time first; then both are replaced by the means of their clusters.
    """
    frames, size, _ = features.shape
    device = features.device
    flat = torch.arange(frames * size, device=device).view(frames, size)  # [T, N]
    assign = torch.full_like(flat, -1)
    tokens: list[Tensor] = []
    anchors: list[Tensor] = []
    start = rows = 0
    for length, static, static_count in zip(lengths, is_static, static_counts, strict=True):
        frame = slice(start, start + length)
        window, where = features[frame].float(), flat[frame]
        groups = (
            (static, window[:, static].mean(0, keepdim=True), where[:1, static], [static_count]),
            (~static, window[:, ~static], where[:, ~static], list(dynamic_counts[frame])),
        )
        for here, x, position, counts in groups:  # here [N], x [G, n, D], position [G, n], counts [G]
            if sum(counts) == 0:
                continue
            clusters = cluster(x, counts, k)
            means, _ = group_means(x, clusters.assign, max(counts))  # [G, m, D]
            count = torch.tensor(counts, device=device).unsqueeze(1)  # [G, 1]
            used = torch.arange(max(counts), device=device) < count  # [G, m]
            tokens.append(means[used])
            anchors.append(position.gather(1, clusters.centres)[used])
            row = torch.where(count > 0, rows + count.cumsum(0) - count + clusters.assign, -1)  # [G, n]
            assign[frame, here] = row.expand(length, -1)
            rows += sum(counts)
        start += length
    return Merged(torch.cat(tokens), assign, torch.cat(anchors))


def group_numbers(
    lengths: Sequence[int], static: Sequence[int], dynamic: Sequence[int], device: torch.device
) -> Tensor:
    """Number of the group of each row of `Merged.tokens`, given the counts of each window and frame: `[K]` int64."""
    sizes: list[int] = []
    start = 0
    for length, count in zip(lengths, static, strict=True):
        sizes += [count, *dynamic[start : start + length]]
        start += length
    counts = torch.tensor(sizes, device=device)
    return torch.arange(len(counts), device=device).repeat_interleave(counts)


def group_sizes(lengths: Sequence[int], is_static: Tensor) -> tuple[list[int], list[int]]:
    """Static tokens of each window, once merged over time, and dynamic tokens of each frame."""
    static: list[int] = is_static.sum(1).tolist()
    size = is_static.shape[1]
    return static, [size - s for length, s in zip(lengths, static, strict=True) for _ in range(length)]


def counts_by_budget(sizes: Sequence[int], budget: int) -> list[int]:
    """Counts that add up to `budget`, or to all tokens where those are fewer.

    The cluster ratio that meets the budget, groups of up to 14 tokens being left alone; where that would leave a
    larger group without a token, all groups share alike. Fractions by largest remainder.
    """
    budget = min(budget, sum(sizes))
    large = [n if n > SMALL_GROUP else 0 for n in sizes]
    rest = budget - (sum(sizes) - sum(large))
    if rest < sum(n > 0 for n in large):
        return largest_remainder([n * budget / sum(sizes) for n in sizes], budget, sizes)
    shares = [rest * m / sum(large) if m else n for n, m in zip(sizes, large, strict=True)]
    return largest_remainder(shares, budget, sizes)


def rank_in_groups(attention: Tensor, group: Tensor, alpha: float) -> Tensor:
    """Stage 2: of each group of size g the int(g * alpha) tokens of highest attention: ascending indices `[K]`.

    `attention [heads, queries, n]`: without rotary embedding and causal mask, queries all text behind the video; its
    maximum over both is the score. `group [n]`: group numbers from 0. Where nothing would be left, the best token.
    """
    score = attention.amax((0, 1))  # [n]
    order = descending(score)
    by_group = order[group[order].argsort(stable=True)]  # groups one after another, best first
    sizes = torch.bincount(group)
    starts = sizes.cumsum(0) - sizes
    rank = torch.arange(len(score), device=score.device) - starts[group[by_group]]
    kept = by_group[rank < (sizes[group[by_group]].double() * alpha).long()]
    return kept.sort().values if len(kept) else order[:1]


@dataclass(frozen=True)
class PruneVid(Method):
    """PruneVid (Huang et al., 2024): spatial-temporal token merging, then selection by the question.

    Idea: cluster frames into windows; in a window average over time the positions that hardly change; cluster the
    static tokens of each window and the dynamic tokens of each frame, and replace clusters by their means. Behind a
    middle layer of the language model keep of each group what the question's tokens attend to, in all caches too.

    Source: arXiv 2412.16117; Visual-AI/PruneVid b12600c (merge_frames_dynamic, VTPWindowCache). `retention_ratio` is
    what stage 1 leaves; `inner` switches stage 2 off.
    Parameters: see the fields. The official knob is a `cluster_ratio`; here it follows from `retention_ratio`, so
    that the total meets the budget (`counts_by_budget`).
    Quirks kept: groups of up to 14 tokens stay whole; of a label with several longest runs all are kept.
    Deviations: rows enter the model in raster order of their cluster centres; k is lowered to the number of points
    and there is at least one temporal cluster, where the official code raises (T < 7, T * ratio < 1).
    """

    tau: float = 0.8
    """A position is static in a window if its mean pairwise cosine exceeds this."""
    temporal_segment_ratio: float = 0.25
    """Temporal clusters, as a share of the frames."""
    k: int = 7
    """Nearest neighbours in the density."""
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

    def select(self, tokens: VideoTokens) -> PrunedTokens:
        clusters = max(1, int(tokens.frames * self.temporal_segment_ratio))
        lengths = window_lengths(refine(temporal_labels(tokens.features, clusters, self.k)))
        is_static = torch.stack([static_positions(w, self.tau) for w in tokens.features.split(lengths)])
        static, dynamic = group_sizes(lengths, is_static)
        counts = counts_by_budget(static + dynamic, self.budget(tokens))
        static, dynamic = counts[: len(static)], counts[len(static) :]
        merged = merge_windows(tokens.features, lengths, is_static, static, dynamic, self.k)
        # window by window, static tokens first: groups as stage 2 wants them
        group = group_numbers(lengths, static, dynamic, merged.anchors.device)
        return in_raster_order(merged.tokens, merged.anchors, tokens.features, state=group, window_lengths=lengths)

    def layers(self, depth: int) -> tuple[int, ...]:
        """Officially behind layer 10 of 32, that is before layer 11; at the same share of another depth."""
        return layers_at([SELECTED_LAYER + 1], OFFICIAL_DEPTH, depth) if self.inner else ()

    def select_inside(self, tokens: LayerTokens) -> Selection:
        every = torch.arange(len(tokens.text), device=tokens.features.device)
        attention = tokens.attention(every, rotary=False, causal=False)
        return Selection(rank_in_groups(attention, tokens.state, self.alpha))
