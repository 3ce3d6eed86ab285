"""Pure functions shared by the merging methods, in addition to `_ops`: centres, group sums, raster order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmg_bench.methods._ops import descending, log_density, peak_distance, spread
from mmg_bench.tokens import PrunedTokens, VideoTokens

SALIENCE = {"probe": "probe_attention", "mean_query": "mean_query_attention", "received": "attention"}
"""An option of several methods, the attention that makes a token salient -> the field of `VideoTokens` it reads."""


def supplied(tokens: VideoTokens, name: str) -> Tensor:
    """The optional field `name` of `tokens`. Raises ValueError if it is None."""
    value: Tensor | None = getattr(tokens, name)
    if value is None:
        raise ValueError(f"VideoTokens.{name} is missing: use a model that supplies it, or fill the field")
    return value


def unit(x: Tensor) -> Tensor:
    """Vectors of length 1 along the last dimension, float32; zero vectors stay zero."""
    return F.normalize(x.float(), dim=-1)


def neighbour_cosines(x: Tensor) -> Tensor:
    """Cosine similarity of consecutive vectors along the first dimension: `[T, ..., D]` to `[T-1, ...]`."""
    direction = unit(x.detach())
    return (direction[:-1] * direction[1:]).sum(-1)


def group_scores(squared: Tensor, valid: Tensor, k: Tensor, most: int) -> Tensor:
    """DPC-KNN's log(rho * delta) among the `valid` points of each group, -inf for the others: `[G, n]`.

    `squared [G, n, n]`, `valid [G, n]` bool, `k [G]` neighbours of each group in 1..its valid points, at most `most`.
    A valid point equal to a denser one has delta 0: it still ranks above every invalid point.
    """
    hidden = ~valid
    apart = hidden.unsqueeze(1) | hidden.unsqueeze(2)  # [G, n, n]
    density = log_density(squared.masked_fill(apart, torch.inf), k, most)  # -inf where not valid
    delta = peak_distance(squared.masked_fill(apart, 0), density)
    return density + delta.log_().clamp_min_(torch.finfo(delta.dtype).min)


def nearest_centres(squared: Tensor, score: Tensor, valid: Tensor, count: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The `count [G, 1]` points of highest `score` in each group, at most `most`, and the nearest one to each point.

    `squared [G, n, n]`, `score` and `valid [G, n]`. Returns the centres by descending score, `[G, m]`; a group uses its
    first `count`. Also returns, for each point, the place of its nearest centre among them, `[G, n]`, -1 if not valid.
    Ties go to the centre of higher score; a centre belongs to itself even if it equals another one.
    """
    centres = descending(score)[:, :most]  # [G, m]
    rank = torch.arange(centres.shape[1], device=score.device)
    unused = rank >= count  # [G, m]
    distance = squared.gather(2, centres.unsqueeze(1).expand(-1, squared.shape[1], -1))  # [G, n, m]
    label = distance.masked_fill(unused.unsqueeze(1), torch.inf).argmin(2)  # [G, n]
    own = torch.where(unused, label.gather(1, centres), rank)
    return centres, label.scatter(1, centres, own).masked_fill(~valid, -1)


def group_sums(x: Tensor, group: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Sum the points of each group: `x [..., M, D]` and `group [..., M]` to sums `[..., G, D]`, counts `[..., G]`.

    Points whose group is not in 0..G-1 (such as -1) belong to none. A one-hot matrix product in float32: unlike a
    scatter it is deterministic on every device.
    """
    members = group.unsqueeze(-2) == torch.arange(groups, device=x.device).unsqueeze(-1)  # [..., G, M]
    return members.float() @ x.float(), members.sum(-1)


def group_means(x: Tensor, group: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Like `group_sums`, but means; 0 for a group without points."""
    sums, counts = group_sums(x, group, groups)
    return sums / counts.clamp_min(1).unsqueeze(-1), counts


def bag_sums(x: Tensor, group: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Like `group_sums` on `x [M, D]`, `group [M]` in 0..G-1, for many groups: one pass over x, its rows in order."""
    member, order = group.sort(stable=True)
    ends = torch.searchsorted(member, torch.arange(groups + 1, device=x.device))  # [G + 1]
    sums = F.embedding_bag(order, x.float(), ends, mode="sum", include_last_offset=True)
    return sums, ends.diff()


def bag_means(x: Tensor, group: Tensor, groups: int) -> Tensor:
    """The means of `bag_sums`, `[G, D]`; 0 for a group without points."""
    sums, counts = bag_sums(x, group, groups)
    return sums / counts.clamp_min(1).unsqueeze(-1)


def first_members(group: Tensor, count: int) -> Tensor:
    """The lowest index in each cluster of `group [M]`: int64 `[count]`, M for an empty one."""
    index = torch.arange(len(group), device=group.device)
    first = torch.full((count,), len(group), dtype=torch.int64, device=group.device)
    return first.scatter_reduce(0, group, index, "amin")


def rotated_in_place(
    x: Tensor, grid: tuple[int, int], times: Tensor, axes: Sequence[tuple[int, float]], *, neighbours: bool
) -> Tensor:
    """Add rotary encodings of time, row and column to `x [T, N, D]` float32, which is changed and returned.

    `times [T]` float32. `axes`: for each of the three, the number of channels, from the first on, and the base of its
    frequencies. Within these channels, each one turns with its neighbour, or the first half with the second; of an odd
    number the last stays as it is.
    """
    device, (height, width) = x.device, grid
    cells = x.unflatten(1, grid)  # [T, H, W, D]
    row, column = (torch.arange(n, device=device, dtype=torch.float32) for n in (height, width))
    places = (times.view(-1, 1, 1, 1), row.view(-1, 1, 1), column.view(-1, 1))
    start = 0
    for place, (size, base) in zip(places, axes, strict=True):
        half = size // 2
        angle = place * (1 / base ** (torch.arange(half, device=device, dtype=torch.float32) / max(1, half)))
        cos, sin = angle.cos(), angle.sin()
        pairs = cells[..., start : start + 2 * half].unflatten(3, (half, 2) if neighbours else (2, half))
        of_pair = 4 if neighbours else 3
        a, b = pairs.unbind(of_pair)
        pairs.copy_(torch.stack([a * cos - b * sin, a * sin + b * cos], of_pair))
        start += size
    return x


def frame_groups(total: int, frames: int) -> list[tuple[slice, int]]:
    """Share `total` tokens among `frames` as evenly as possible, remainder to the earliest frames.

    Returns runs of frames and the number of tokens per frame in each: at most two runs, none with 0 tokens.
    """
    counts = spread(total, frames)
    larger = counts.count(counts[0])
    runs = [(slice(0, larger), counts[0]), (slice(larger, frames), counts[-1])]
    return [(run, count) for run, count in runs if count > 0 and run.start < run.stop]


def in_raster_order(
    features: Tensor, positions: Tensor, like: Tensor, *, state: Tensor | None = None, **notes: Any
) -> PrunedTokens:
    """`features [K, D]` at distinct flat `positions [K]`, sorted by position and in the dtype of `like`.

    `state [K]`, one value per token, is sorted along with them.
    """
    positions, order = positions.sort()
    sorted_state = None if state is None else state[order]
    return PrunedTokens(features[order].to(like.dtype), positions, notes=notes, state=sorted_state)
