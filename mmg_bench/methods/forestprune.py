"""ForestPrune: keep the tokens of each frame that others resemble, then the roots of trees through the video."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmg_bench.methods._merge import unit
from mmg_bench.methods._ops import descending, frames_per_chunk, positions_of, top_mask
from mmg_bench.methods.base import Method, Positions, check_range
from mmg_bench.tokens import PrunedTokens, VideoTokens, keep

SIMILARITY, TEMPERATURE, STEPS = 0.5, 0.03, 5
"""Constants of the walk within a frame: least cosine of neighbours, temperature of their softmax, steps."""
_UNRELATED = -5000.0  # logit


def walk_scores(features: Tensor) -> Tensor:
    """G-Prune's importance of each token of `[T, N, D]` within its frame: `[T, N]`, float32.

    The norms of the tokens take 5 steps along a graph of similar tokens (softmax of cosines of at least 0.5, at
    temperature 0.03). They are then divided by each token's number of such neighbours, itself included.
    """
    scores = []
    for part in features.split(frames_per_chunk(features)):
        direction = unit(part)
        cosine = direction @ direction.mT  # [t, N, N]
        # a zero vector is related to no token, not even itself: its row is uniform
        graph = (cosine / TEMPERATURE).where(cosine >= SIMILARITY, _UNRELATED).softmax(-1)
        mass = part.float().norm(dim=-1).unsqueeze(1)  # [t, 1, N]
        for _ in range(STEPS):
            mass = mass @ graph
        scores.append(mass.squeeze(1) / (graph > 0).sum(-1))
    return torch.cat(scores)


def places_apart(grid: tuple[int, int], device: torch.device) -> Tensor:
    """Distances of the places in a frame, `[N, N]`: the larger of rows apart / (H - 1) and columns apart / (W - 1)."""
    rows, columns = (torch.arange(n, device=device) / max(n - 1, 1) for n in grid)
    coordinates = torch.cartesian_prod(rows, columns)  # [N, 2]
    return (coordinates.unsqueeze(1) - coordinates).abs().amax(-1)


def grow_forest(direction: Tensor, places: Tensor, distance: Tensor, tau: float, reach: float) -> tuple[Tensor, Tensor]:
    """Join each token to the tree of the most similar token of all earlier frames, frame by frame.

    `direction [T, n, D]` unit vectors; `places [T, n]` int64 raster indices of the tokens in their frames; `distance
    [N, N]` between places. Only tokens of cosine >= tau within `reach` are joined; ties go to the nearest token, then
    to the earliest tree. Returns, for each of the T * n tokens, the index of its tree's root and its level in the tree,
    both int64. A root has level 0; tokens that join a tree in one frame get one more than those that joined it last.
    """
    frames, size, _ = direction.shape
    total = frames * size
    flat, own = direction.flatten(0, 1), torch.arange(total, device=direction.device)
    tree, level = own.clone(), torch.zeros_like(own)
    height = torch.zeros_like(own)  # of the tree rooted here
    for start in range(size, total, size):
        now = slice(start, start + size)
        cosine = flat[:start] @ flat[now].T  # [M, n]
        apart = distance[places.flatten()[:start, None], places[start // size]]
        cosine.masked_fill_(apart > reach, -torch.inf)
        most = cosine.amax(0)  # [n]
        apart = apart.where(cosine == most, torch.inf)
        nearest = tree[:start, None].where(apart == apart.amin(0), total).amin(0)
        joins = most >= tau
        tree[now] = nearest.where(joins, own[now])
        level[now] = (height[tree[now]] + 1).where(joins, 0)
        height[tree[now]] = level[now]
    return tree, level


def root_depths(direction: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Depth of each root `[R, D]` after merging trees until only `count` roots remain: `[R]`.

    Repeatedly, the later root of the most similar pair becomes a child of the earlier one; ties go to the pair whose
    earlier root, then whose later one, comes first.
    """
    roots = len(direction)
    parent = np.full(roots, -1)
    similar = direction @ direction.T
    similar[np.tril_indices(roots)] = -np.inf
    child = similar.argmax(1)  # the most similar later root of each
    best = similar.max(1)
    for _ in range(roots - count):
        first = int(best.argmax())
        second = int(child[first])
        parent[second] = first
        best[second] = -np.inf
        similar[:second, second] = -np.inf
        stale = np.flatnonzero((child == second) & (best > -np.inf))
        child[stale] = similar[stale].argmax(1)
        best[stale] = similar[stale, child[stale]]
    depth = np.zeros(roots, np.int64)
    for root in np.flatnonzero(parent >= 0):  # parents come first
        depth[root] = depth[parent[root]] + 1
    return depth


@dataclass(frozen=True)
class ForestPrune(Method):
    """ForestPrune (Ju et al., CVPR 2026 Findings): spatial-temporal forest modeling.

    Idea: keep half of each frame's tokens by their importance among similar tokens (G-Prune). Through the video, these
    grow into trees of tokens that are similar and near each other. Roots show what is new; the deeper a token is, the
    more often it was seen. Tokens are kept from the roots down, earlier frames first.

    Source: arXiv 2603.22911; luminousllsa/ForestPrune 1686829 (`GraphPruner`). Parameters: see the fields, named as
    there; 0.9, 0.8 and 0.5 in its scripts.
    Exact: round(R*T*N) tokens; officially R/0.5 of the rounded halves of all frames. If there are more roots than the
    budget, those most similar to an earlier root become its children until there are not.
    Deviations: float32 throughout. Ties within a depth and frame go by place (officially any of the tokens may stay).
    Tokens of a frame keep their order (officially that of an unsorted `topk`).
    """

    tau: float = 0.9
    """Least cosine to the token whose tree is joined; in [-1, 1]."""
    tau_spatial: float = 0.8
    """1 minus the largest distance to that token, in heights or widths of the frame, whichever is more; in [0, 1]."""
    gprune_ratio: float = 0.5
    """Share of each frame's tokens that form the trees; at least what the budget needs. In (0, 1]."""

    name: ClassVar[str] = "forestprune"
    positions: ClassVar[Positions] = "contiguous"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "tau", -1, 1)
        check_range(self, "tau_spatial", 0, 1)
        check_range(self, "gprune_ratio", 0, 1, low_open=True)

    def select(self, tokens: VideoTokens) -> PrunedTokens:
        positions, depth = self.forest(tokens)
        # officially one number: a thousand frames count as much as a level
        rank = depth + (positions // tokens.tokens_per_frame).double() / 1000
        return keep(tokens, positions[descending(-rank)[: self.budget(tokens)]])

    def forest(self, tokens: VideoTokens) -> tuple[Tensor, Tensor]:
        """The tokens that form the trees and their depths: flat positions and depths, both `[M]` int64.

        Positions ascend, with the same number in each frame. Roots have depth 0; there are at most `budget` roots.
        """
        x, device = tokens.features.detach(), tokens.features.device
        frames, size, budget = tokens.frames, tokens.tokens_per_frame, self.budget(tokens)
        left = max(round(size * self.gprune_ratio), -(-budget // frames))
        first = top_mask(walk_scores(x), torch.full((frames,), left, device=device))
        positions = positions_of(first, frames * left)
        direction = unit(x.flatten(0, 1)[positions])  # [M, D]

        places, distance = (positions % size).view(frames, left), places_apart(tokens.grid, device)
        tree, depth = grow_forest(direction.view(frames, left, -1), places, distance, self.tau, 1 - self.tau_spatial)
        roots = tree.unique()
        if len(roots) > budget:
            below = torch.from_numpy(root_depths(direction[roots].cpu().numpy(), budget)).to(device)
            depth = depth + below[torch.searchsorted(roots, tree)]
        return positions, depth
