"""LLaVA-Scissor: merge connected components of similar tokens, first within frames, then over the whole video."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from mmg_bench.methods._merge import bag_means, bag_sums, in_raster_order, unit
from mmg_bench.methods._ops import descending, gram_matrix
from mmg_bench.methods._search import largest_within
from mmg_bench.methods.base import Method, Positions, check_range
from mmg_bench.tokens import PrunedTokens, VideoTokens

LOWEST = -1.1
"""A threshold below every cosine: all tokens of a frame, then all of the video, are one component."""


class Components(NamedTuple):
    """The connected components of a graph, ordered by their keys."""

    label: Tensor
    """`[n]`: the component of each node."""
    keys: Tensor
    """`[c]`, ascending: the node with the most neighbours in each component, ties by the lower index."""


def components(edges: Tensor, nodes: int) -> Components:
    """Connected components of `nodes` nodes under `edges [2, E]`, which list each edge in both directions."""
    source, target = edges
    root = torch.arange(nodes, device=edges.device)  # [n]
    while True:
        # Each node and its root take the least root among the neighbours, then pointers are followed.
        least = torch.minimum(root[source], root[target])
        lower = root.scatter_reduce(0, source, least, "amin").scatter_reduce(0, root[source], least, "amin")
        lower = lower[lower]
        if torch.equal(lower, root):
            break
        root = lower
    by_degree = descending(source.bincount(minlength=nodes))  # [n]
    rank = by_degree.argsort()
    first = torch.full_like(rank, nodes).scatter_reduce(0, root, rank, "amin")  # [n], by root
    key = by_degree[first[root]]  # [n]: the key of each node's component
    keys, label = key.unique(return_inverse=True)
    return Components(label, keys)


def similar_pairs(similarity: Tensor, tau: float) -> Tensor:
    """Both directions of every pair above `tau` in `[G, n, n]`, numbered across all G blocks: `[2, E]`."""
    block, i, j = ((similarity > tau) | (similarity.mT > tau)).nonzero(as_tuple=True)
    return torch.stack([i, j]) + block * similarity.shape[-1]


class Representatives(NamedTuple):
    """The means of the components of both stages."""

    spatial: Components
    """Components of the T * N tokens; none spans two frames."""
    temporal: Components
    """Components of the spatial components."""
    tokens: Tensor
    """`[K, D]`: means of the members' means, float32."""

    def __len__(self) -> int:
        return len(self.tokens)


def two_stage_components(features: Tensor, similarity: Tensor, tau: float) -> Representatives:
    """Components of `[T, N, D]` under cosine > `tau`: per frame, given `similarity [T, N, N]`; then of their means."""
    flat = features.flatten(0, 1)
    spatial = components(similar_pairs(similarity, tau), len(flat))
    means = bag_means(flat, spatial.label, len(spatial.keys))  # [C, D]
    x = unit(means)
    temporal = components(similar_pairs(gram_matrix(x)[None], tau), len(means))
    return Representatives(spatial, temporal, bag_means(means, temporal.label, len(temporal.keys)))


def absorb(features: Tensor, representatives: Tensor) -> tuple[Tensor, Tensor]:
    """Assign each token of `[T, N, D]` to its most similar representative `[K, D]`, ties to the first.

    Returns the mean of each representative with its tokens, `[K, D]`, and the assignment `[T * N]`.
    """
    flat = features.flatten(0, 1)
    assign = (unit(flat) @ unit(representatives).mT).argmax(-1)  # [T * N]
    sums, counts = bag_sums(flat, assign, len(representatives))
    return (representatives + sums) / (counts + 1).unsqueeze(-1), assign


@dataclass(frozen=True)
class LlavaScissor(Method):
    """LLaVA-Scissor (Sun et al., 2025): semantic connected components.

    Idea: in each frame, tokens whose cosine exceeds tau are neighbours, and a connected component becomes its mean. The
    same is done with all these means of the video. Every token is then averaged into the most similar mean.

    Source: arXiv 2506.21862; HumanMLLM/LLaVA-Scissor b63354c. Parameters: see the fields.
    Budget: the method has only a threshold. With `tau` None, bisection finds the tau that keeps the most tokens, among
    those tried, without exceeding round(R*T*N); every step runs both stages and counts as pruning time. With `tau`
    given (0.90 in the README, 0.95 in the code), `retention_ratio` is ignored. Not exact: counts jump with tau, and
    copies of a token cannot be told apart.
    Position of a token: that of its key, the token with the most neighbours in its frame, for the mean with the most
    neighbours in the video.
    Deviations: the components are exact. Officially they are found on a random sample of ln(n)/0.05^2 nodes (all nodes
    up to about 3200), and nodes can get lost; hence there is no `epsilon`. float32 throughout.
    """

    tau: float | None = None
    """Cosine above which two tokens are neighbours; None to meet `retention_ratio`."""
    search_steps: int = 20
    """Bisection steps of the search for tau."""

    name: ClassVar[str] = "llava_scissor"
    positions: ClassVar[Positions] = "contiguous"
    exact: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tau is not None:
            check_range(self, "tau", -1, 1)
        check_range(self, "search_steps", 1, 100, integer=True)

    def select(self, tokens: VideoTokens) -> PrunedTokens:
        x = unit(tokens.features)
        find = partial(two_stage_components, tokens.features, gram_matrix(x))
        if self.tau is not None:
            found = find(self.tau)
        else:
            found = largest_within(find, self.budget(tokens), LOWEST, 1.0, self.search_steps)
        merged, _ = absorb(tokens.features, found.tokens)
        anchors = found.spatial.keys[found.temporal.keys]  # [K]
        return in_raster_order(merged, anchors, tokens.features, spatial_components=len(found.spatial.keys))
