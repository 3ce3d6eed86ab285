"""Tango: diverse salient tokens of each frame; the rest of a segment in clusters that are near in space and time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from mmg_bench.methods._merge import (
    SALIENCE,
    bag_sums,
    first_members,
    in_raster_order,
    nearest_centres,
    rotated_in_place,
    supplied,
    unit,
)
from mmg_bench.methods._ops import (
    conserve,
    descending,
    first_of_rows,
    largest_remainder,
    log_density,
    on_device,
    peak_distance,
    positions_of,
    squared_distances,
)
from mmg_bench.methods.base import Method, Positions, check_choice, check_flag, check_range
from mmg_bench.methods.holitom import Window, best_windows, group_sizes, static_positions
from mmg_bench.tokens import PrunedTokens, VideoTokens

SINKS = {(14, 14): (11, 12, 27, 28, 41, 169), (13, 13): (11, 26, 157)}
"""Grid of LLaVA-OneVision and of LLaVA-Video -> tokens that the pooling head attends to whatever they show."""


def rotated(directions: Tensor, grid: tuple[int, int], times: Tensor, base_time: float, base_space: float) -> Tensor:
    """ST-RoPE: rotary encodings of time, row and column on a third of the channels each, `[T, N, D]` float32.

    Each third has an even size, the first one takes what is left over. Within a third, the first half turns with the
    second one. `times` `[T]`.
    """
    channels = directions.shape[2]
    third = channels // 6 * 2
    axes = ((channels - 2 * third, base_time), (third, base_space), (third, base_space))
    return rotated_in_place(directions.to(torch.float32, copy=True), grid, times.float(), axes, neighbours=False)


def peaks(squared: Tensor, valid: Tensor, k: Tensor, most: int) -> Tensor:
    """DPC-KNN's log(rho * delta) among the `valid` points of each group, -inf for the others: `[G, n]`.

    `squared [G, n, n]`, `valid [G, n]` bool. rho_i = exp(-mean of the squared distances to the `k [G]` nearest other
    points), at most `most`; a group of one point has none. Of equally dense points the first counts as denser.
    """
    apart = ~(valid.unsqueeze(1) & valid.unsqueeze(2))  # [G, n, n]
    # the k + 1 nearest include the point itself, at distance 0
    density = log_density(squared.masked_fill(apart, torch.inf), k + 1, most + 1)
    density = density * ((k + 1) / k.clamp_min(1)).unsqueeze(1)
    rank = descending(density).argsort(1)
    delta = peak_distance(squared.masked_fill(apart, 0), -rank.float())
    return density + delta.log_().clamp_min_(torch.finfo(delta.dtype).min)


def clusters(x: Tensor, sizes: Sequence[int], counts: Sequence[int], k: int) -> tuple[Tensor, Tensor]:
    """Cluster the first `sizes[g]` points of each group of `x [G, n, D]` around `counts[g]` density peaks.

    Returns the centres by descending score, `[G, max(counts)]`, of which a group uses its first `counts[g]`, and the
    place of each point's centre among them, `[G, n]`, -1 for points that do not count.
    """
    near = [max(0, min(k, size - 1)) for size in sizes]
    size, count, neighbours = on_device([sizes, counts, near], x.device).unsqueeze(2)  # [G, 1] each
    valid = torch.arange(x.shape[1], device=x.device) < size  # [G, n]
    squared = squared_distances(x)
    score = peaks(squared, valid, neighbours.squeeze(1), max(near))
    return nearest_centres(squared, score, valid, count, max(counts))


def diverse_salient(
    vectors: Tensor, salience: Tensor, member: Tensor, sizes: Sequence[int], counts: Sequence[int], alpha: float, k: int
) -> Tensor:
    """Choose `counts[g]` of the `sizes[g]` members of each group (`member [G, N]`): bool `[G, N]`.

    Of the `alpha` times as many of highest `salience [G, N]`, clustered by `vectors [G, N, D]`, the most salient one of
    each cluster.
    """
    pool = [min(int(alpha * count), size) for count, size in zip(counts, sizes, strict=True)]
    chosen = torch.zeros_like(member)
    if not any(counts):
        return chosen
    candidates = descending(salience.masked_fill(~member, -torch.inf))[:, : max(pool)]  # [G, n], most salient first
    x = vectors.gather(1, candidates.unsqueeze(2).expand(-1, -1, vectors.shape[2]))
    _, label = clusters(x, pool, counts, k)  # [G, n]
    groups, most = len(counts), max(counts)
    first = torch.arange(0, groups * most, most, device=x.device).unsqueeze(1)  # number of each group's first cluster
    cluster = (first + label).where(label >= 0, groups * most)  # [G, n]
    taken = first_of_rows(counts, x.device)  # the clusters in use, of [G, most]
    best = first_members(cluster.flatten(), groups * most + 1)[taken]  # candidates come by salience
    chosen[taken // most, candidates.flatten()[best]] = True
    return chosen


def merged(vectors: Tensor, tokens: Tensor, count: int, beta: float, k: int, in_place: bool) -> tuple[Tensor, Tensor]:
    """Merge tokens `[M, D]` into `count` of them: the results `[count, D]` float32 and their places, `[count]`.

    They are clustered by `vectors [M, D]`. A centre c becomes w c + (1 - w) mean(cluster), with
    w = max(`beta`, 1 / size of the cluster). `in_place`: whether its place is that of c; otherwise the results, in the
    order of their centres, go to the places of the centres by descending score, as in the official code.
    """
    if count == len(tokens):
        return tokens.float(), torch.arange(count, device=tokens.device)
    centres, label = clusters(vectors.unsqueeze(0), [len(tokens)], [count], k)
    sums, sizes = bag_sums(tokens, label[0], count)
    sizes = sizes.unsqueeze(1)
    weight = (1 / sizes).clamp_min(beta)
    results = torch.lerp(sums / sizes, tokens[centres[0]].float(), weight)
    return results if in_place else results[centres[0].argsort()], centres[0]


def reduce_segments(
    features: Tensor,
    vectors: Tensor,
    attention: Tensor,
    windows: Sequence[Window],
    static: Tensor,
    counts: Sequence[int],
    *,
    context_ratio: float,
    alpha: float,
    beta: float,
    k: int,
    in_place: bool,
) -> tuple[Tensor, Tensor]:
    """Reduce `features [T, N, D]` in `windows` with static positions `static [windows, N]` (on the host).

    `vectors [T, N, D]`: what the tokens are clustered by; `attention [T, N]`; `counts`: tokens to keep of each window's
    static positions, which are averaged over time, and of each frame's other ones. Returns the tokens `[K, D]`,
    float32, and their flat positions `[K]`; static ones are placed in the window's first frame.
    """
    device, (frames, size, _) = features.device, features.shape
    lengths = [last - first + 1 for first, last in windows]
    first = [a for a, _ in windows]
    sizes = [n for part in group_sizes(windows, static) for n in part]
    salient = [int(count * (1.0 - context_ratio)) for count in counts]

    # the groups: each window's static positions, then each frame's other ones
    frame = on_device([*first, *range(frames)], device)  # [G]
    window = on_device([w for w, length in enumerate(lengths) for _ in range(length)], device)  # [T]
    fixed = static.to(device, non_blocking=True)
    member = torch.cat([fixed, ~fixed[window]])  # [G, N]
    values, salience = (
        torch.cat([torch.stack([part.mean(0, dtype=torch.float32) for part in x.split(lengths)]), x.float()])
        for x in (features, attention)
    )  # [G, N, D], [G, N]
    vectors = vectors[frame]  # [G, N, D]
    chosen = diverse_salient(vectors, salience, member, sizes, salient, alpha, k)

    index = positions_of(chosen, sum(salient))
    tokens, places = [values.flatten(0, 1)[index]], [index]
    rest = member & ~chosen
    pools = [(w, w + 1) for w in range(len(windows))]  # a window's static positions, and all its other tokens
    pools += [(len(windows) + a, len(windows) + b + 1) for a, b in windows]
    for a, b in pools:
        if count := sum(counts[a:b]) - sum(salient[a:b]):
            index = a * size + positions_of(rest[a:b], sum(sizes[a:b]) - sum(salient[a:b]))  # [M]
            x, y = vectors.flatten(0, 1)[index], values.flatten(0, 1)[index]
            results, which = merged(x, y, count, beta, k, in_place)
            tokens.append(results)
            places.append(index[which])
    place = torch.cat(places)
    return torch.cat(tokens), frame[place // size] * size + place % size


@dataclass(frozen=True)
class Tango(Method):
    """Tango (Yin et al., 2026): attention and similarity, each with what it lacks.

    Idea: the most attended tokens of a frame are alike, so that more of them than needed are taken, clustered, and one
    of each cluster is kept. The remaining tokens of a segment are clustered and merged; rotary encodings of time and
    place (ST-RoPE) keep the clusters compact. Segments and the merging over time of what stands still are HoliTom's.

    Source: arXiv 2604.09547; xjtupanda/Tango cc815b6 (`tango/pruner.py`, `tango/utils.py`). Parameters: see the fields;
    at R = 10 % the authors use `tau=0.65`. For Qwen2.5-VL `salience="mean_query"`, with original position ids.
    `salience="received"` is our own stand-in for models without the pooling head.
    Quirk kept: `tau` cuts the video, but what stands still inside a segment is decided by `still_tau`.
    Deviations: the groups share the budget by largest remainder, and what a short segment cannot use goes to the
    others, so that it is met exactly (official: rounded up in every group, and not passed on); no random noise on the
    density; float32 throughout. The official segments of FastVID are left out.
    """

    tau: float = 0.8
    """Cosine above which a position is still where the video is cut into segments."""
    still_tau: float = 0.8
    """Cosine above which a position of a segment must stay from frame to frame to be merged over time."""
    context_ratio: float = 0.4
    """Share of merged tokens in the budget; the rest are salient tokens."""
    alpha: float = 1.5
    """Candidates for each salient token."""
    beta: float = 0.6
    """Least weight of a centre in its merged token."""
    k_neighbors: int = 7
    """Nearest neighbours in the density."""
    base_time: float = 10_000.0
    """Base of the rotary frequencies of time."""
    base_space: float = 1_000.0
    """Base of those of row and column."""
    interval: float | None = None
    """Seconds between frames; None: as the video says (`VideoTokens.times`)."""
    salience: str = "probe"
    """Attention that makes a token salient: `probe`, of the pooling head's probe; `mean_query`, of the frame's mean
    query in the tower's last layer; `received`, from all patches."""
    in_place: bool = False
    """Whether a merged token takes the place of its own centre; in the official code, the centres' places are mixed
    up among those of a segment."""
    sinks: bool = True
    """Whether the attention of the tokens of `SINKS` counts as 0: only with `salience="probe"`, on these grids."""

    name: ClassVar[str] = "tango"
    needs: ClassVar[frozenset[str]] = frozenset({"probe_attention", "times"})
    """For the default options; an instance has those of its own options."""
    stand_ins: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"salience": "mean_query"},
        {"salience": "received"},
        {"interval": 1.0},
    )
    ordered_channels: ClassVar[bool] = True
    positions: ClassVar[Positions] = "contiguous"
    exact: ClassVar[bool] = False
    """Merging static tokens over time can leave fewer tokens than a large budget asks for."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "tau", -1, 1)
        check_range(self, "still_tau", -1, 1)
        check_range(self, "context_ratio", 0, 1)
        check_range(self, "alpha", 1, 1000)
        check_range(self, "beta", 0, 1)
        check_range(self, "k_neighbors", 1, 10_000, integer=True)
        check_range(self, "base_time", 1, 1e9)
        check_range(self, "base_space", 1, 1e9)
        if self.interval is not None:
            check_range(self, "interval", 0, 1e6)
        check_choice(self, "salience", tuple(SALIENCE))
        check_flag(self, "in_place")
        check_flag(self, "sinks")
        times = ["times"] if self.interval is None else []
        object.__setattr__(self, "needs", frozenset({SALIENCE[self.salience], *times}))

    def select(self, tokens: VideoTokens) -> PrunedTokens:
        features = tokens.features
        directions = unit(features)
        similarity = (directions[:-1] * directions[1:]).sum(-1)  # [T - 1, N]
        cut, still = torch.stack([similarity > self.tau, similarity > self.still_tau]).cpu()
        windows, _ = best_windows(cut)
        static = static_positions(still, windows)  # [W, N]
        vectors = rotated(directions, tokens.grid, self._times(tokens), self.base_time, self.base_space)
        kept, positions = reduce_segments(
            features,
            vectors,
            self._attention(tokens),
            windows,
            static,
            self._counts(tokens, windows, static),
            context_ratio=self.context_ratio,
            alpha=self.alpha,
            beta=self.beta,
            k=self.k_neighbors,
            in_place=self.in_place,
        )
        return in_raster_order(kept, positions, features, windows=windows)

    def _counts(self, tokens: VideoTokens, windows: Sequence[Window], static: Tensor) -> list[int]:
        """Tokens to keep of each window's static positions and of each frame's other ones.

        The same share of all groups of a window, so that its frames keep the ratio R of their tokens together.
        """
        still, moving = group_sizes(windows, static)
        lengths = [last - first + 1 for first, last in windows]
        left = [n + (b - a + 1) * moving[a] for n, (a, b) in zip(still, windows, strict=True)]
        share = [
            self.retention_ratio * length * tokens.tokens_per_frame / n for length, n in zip(lengths, left, strict=True)
        ]
        ratios = [*share, *(s for s, length in zip(share, lengths, strict=True) for _ in range(length))]
        sizes = still + moving
        budget = min(self.budget(tokens), sum(sizes))
        return largest_remainder(conserve(ratios, sizes, budget), budget, sizes)

    def _attention(self, tokens: VideoTokens) -> Tensor:
        attention = supplied(tokens, SALIENCE[self.salience]).float()
        if self.sinks and self.salience == "probe" and tokens.grid in SINKS:
            sinks = on_device(SINKS[tokens.grid], attention.device)
            return attention.index_fill(1, sinks, 0)
        return attention

    def _times(self, tokens: VideoTokens) -> Tensor:
        if self.interval is None:
            return supplied(tokens, "times")
        return torch.arange(tokens.frames, device=tokens.features.device) * self.interval
