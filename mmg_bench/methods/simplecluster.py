"""SimpleCluster: k-means over all tokens of the video, by direction and place; each cluster becomes its mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mmg_bench.methods._greedy import max_min_selection
from mmg_bench.methods._merge import (
    bag_means,
    bag_sums,
    first_members,
    in_raster_order,
    rotated_in_place,
    unit,
)
from mmg_bench.methods._ops import gram_matrix
from mmg_bench.methods.base import Method, Positions, check_flag, check_range
from mmg_bench.tokens import PrunedTokens, VideoTokens

THETA = 10_000.0
"""Base of the rotary frequencies."""
LEAST = 1e-6
"""Length below which the mean of a cluster's directions counts as this long."""


def rotated(tokens: VideoTokens) -> Tensor:
    """The tokens with rotary encodings of frame, row and column on a third of the channels each: `[T * N, D]` float32.

    A first third takes the channels that do not divide by 3; in each, an odd channel at its end stays as it is.
    """
    third, rest = divmod(tokens.features.shape[2], 3)
    x = tokens.features.to(torch.float32, copy=True)
    frame = torch.arange(tokens.frames, device=x.device, dtype=torch.float32)
    axes = [(size, THETA) for size in (third + rest, third, third)]
    return rotated_in_place(x, tokens.grid, frame, axes, neighbours=True).flatten(0, 1)


def spherical_k_means(x: Tensor, count: int, iterations: int) -> Tensor:
    """Cluster vectors `x [M, D]` float32, of length 1 or 0, by cosine: the cluster of each, int64 `[M]` in 0..count-1.

    Starts from the first vector that is not 0 and, again and again, the one least like those before. Everything is
    computed from the M x M products: a cluster's centre is never formed. No cluster is empty at the end. Equal
    similarities: the lower index.
    """
    gram = gram_matrix(x.detach()[None])[0]  # [M, M]
    present = gram.diagonal().gt(0.5).to(torch.uint8)
    first = max_min_selection(-gram[None], count, first=present.argmax().view(1))[0]  # [count]
    likeness = gram[first]  # [count, M], of the centres to all vectors
    nearest, group = likeness.max(0)  # [M] both
    for _ in range(iterations):
        before = group
        del likeness  # of count x M entries, as the next one
        likeness, sizes = _of_means(gram, group, count)
        empty = sizes == 0
        # an empty cluster starts anew from a vector that its centre, of all, stands for least
        strays = nearest.argsort(stable=True)[:count]
        torch.where(empty.unsqueeze(-1), gram[strays[_number(empty)]], likeness, out=likeness)
        nearest, group = likeness.max(0)
        if x.device.type == "cpu" and torch.equal(group, before) and not empty.any():
            break  # all further rounds would repeat this one; on a GPU, asking would cost more than they do
    return _filled(group, nearest, count)


def _of_means(gram: Tensor, group: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Cosines of the clusters' means to all vectors, `[count, M]`, and the sizes of the clusters, `[count]`."""
    sums, sizes = bag_sums(gram, group, count)
    means = sums.div_(sizes.clamp_min(1).unsqueeze(-1))  # [count, M], products of the means with all vectors
    own = means.gather(0, group.unsqueeze(0)).T  # [M, 1], of each vector with the mean of its own cluster
    squared, _ = bag_sums(own, group, count)  # [count, 1]: |sum|^2 / size
    length = (squared / sizes.clamp_min(1).unsqueeze(-1)).clamp_min(0).sqrt()
    return means.div_(length.clamp_min(LEAST)), sizes


def _filled(group: Tensor, nearest: Tensor, count: int) -> Tensor:
    """Give every empty cluster a vector of its own, of those least like their centres that are not first in theirs."""
    first = first_members(group, count)  # [count], M where there is none
    empty = first == len(group)
    spare = torch.ones(len(group) + 1, dtype=torch.bool, device=group.device).scatter(0, first, False)[:-1]
    strays = nearest.masked_fill(~spare, torch.inf).argsort(stable=True)[:count]
    # a cluster that is not empty names its own first member, which changes nothing
    member = torch.where(empty, strays[_number(empty)], first)
    return group.scatter(0, member, torch.arange(count, device=group.device))


def _number(mask: Tensor) -> Tensor:
    """For each true entry of a mask, how many are true before it; for others, some index that is not used."""
    return (mask.cumsum(0) - 1).clamp_min(0)


@dataclass(frozen=True)
class SimpleCluster(Method):
    """SimpleCluster (Zhang et al., 2026): a simple yet strong baseline, k-means over the whole video.

    Idea: spread the budget over the directions that the video's tokens have, whatever frame they are in. Rotary
    encodings of frame, row and column keep apart what is alike but far away. Each cluster becomes the mean of its
    tokens, without the encodings, at the place of its first one.

    Source: arXiv 2609.35394; xiaozhang79/SimpleCluster e9d0e4f (`simplecluster/core.py`). Keeps exactly
    round(R*T*N) tokens.
    Deviations: float32 throughout; starts from the first token (officially from the one whose length 1 is rounded
    highest); an empty cluster takes a token of another one (officially an error, as in identical tokens); any grid
    (officially square). Similarities take (T*N)^2 floats twice, or 1 + 2R times if that is more.
    """

    max_iters: int = 10
    """Rounds of k-means."""
    rope: bool = True
    """Whether place counts; without, the paper's ablation (Table 5)."""

    name: ClassVar[str] = "simplecluster"
    ordered_channels: ClassVar[bool] = True
    positions: ClassVar[Positions] = "contiguous"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "max_iters", 1, 1000, integer=True)
        check_flag(self, "rope")

    def select(self, tokens: VideoTokens) -> PrunedTokens:
        count = self.budget(tokens)
        group = spherical_k_means(unit(rotated(tokens) if self.rope else tokens.flat), count, self.max_iters)
        means = bag_means(tokens.flat, group, count)  # [count, D]
        return in_raster_order(means, first_members(group, count), like=tokens.features)
