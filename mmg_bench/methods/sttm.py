"""STTM: a quadtree over every frame, whose nodes merge with nodes at the same place in earlier frames."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mmg_bench.methods._merge import bag_means, in_raster_order
from mmg_bench.methods._ops import descending
from mmg_bench.methods._search import largest_within
from mmg_bench.methods.base import Method, Positions, check_range
from mmg_bench.tokens import PrunedTokens, VideoTokens


class Level(NamedTuple):
    """One level of the quadtree, with its nodes in an h x w grid."""

    features: Tensor
    """`[T, h, w, D]`: mean of the children, float32."""
    rows: Tensor
    """`[h, 2]`: first row of the tokens under a node, and the row after the last."""
    columns: Tensor
    """`[w, 2]`."""
    agreement: Tensor
    """`[T, h, w]`: lowest cosine of a node with its child slots; infinite at the finest level."""


def child_slots(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """First and second child of each of ceil(size / 2) nodes along an axis, and whether there is a second: `[n, 2]`.

    With an odd `size` the first node has a single child, the first. A missing child is given as 0.
    """
    first = 2 * torch.arange((size + 1) // 2, device=device) - size % 2
    slots = torch.stack([first, first + 1], 1)
    there = slots >= 0
    if size % 2:
        slots[0], there[0] = slots[0].flip(0), there[0].flip(0)  # the only child takes the first slot
    return slots.clamp_min(0), there


def finest(features: Tensor, grid: tuple[int, int]) -> Level:
    """The level whose nodes are the tokens of `[T, N, D]`."""
    height, width = grid
    x = features.float().view(-1, height, width, features.shape[-1])
    rows, columns = (torch.arange(n, device=x.device) for n in grid)
    rows, columns = (torch.stack([axis, axis + 1], 1) for axis in (rows, columns))
    return Level(x, rows, columns, x.new_full(x.shape[:3], torch.inf))


def coarser(level: Level) -> Level:
    """The next coarser level: every node is the mean of its up to 2 x 2 children."""
    x = level.features
    (_, height, width, _), device = x.shape, x.device
    (row, has_row), (column, has_column) = child_slots(height, device), child_slots(width, device)
    there = has_row[:, None, :, None] & has_column[None, :, None, :]  # [h, w, 2, 2]
    y = row[:, None, :, None].expand_as(there)
    z = column[None, :, None, :].expand_as(there)
    children = x[:, y, z]  # [T, h, w, 2, 2, D]
    weight = (there / there.sum((2, 3), keepdim=True)).unsqueeze(-1)
    mean = (children * weight).sum((3, 4))  # [T, h, w, D]
    # Officially a missing child points to node (0, 0) of its frame, and counts in the test.
    tested = torch.where(there.unsqueeze(-1), children, x[:, :1, :1, None, None])
    agreement = F.cosine_similarity(mean[:, :, :, None, None], tested, dim=-1).amin((3, 4))
    rows = torch.stack([level.rows[row[:, 0], 0], level.rows[row.amax(1), 1]], 1)
    columns = torch.stack([level.columns[column[:, 0], 0], level.columns[column.amax(1), 1]], 1)
    return Level(mean, rows, columns, agreement)


def pyramid(features: Tensor, grid: tuple[int, int]) -> list[Level]:
    """The levels of `[T, N, D]`, coarsest first: halved until a side is 2 (or both are 1)."""
    levels = [finest(features, grid)]
    while 2 not in levels[0].features.shape[1:3] and levels[0].features.shape[1:3] != (1, 1):
        levels.insert(0, coarser(levels[0]))
    return levels


class Trees(NamedTuple):
    """The quadtrees of all frames, M nodes each, level by level from the coarsest. Token y W + x is one of N."""

    features: Tensor
    """`[T, M, D]`, float32."""
    agreement: Tensor
    """`[T, M]`: see `Level`."""
    cosines: Tensor
    """`[T - 1, M, M]`: cosine of every node with every node of the next frame."""
    boxes: Tensor
    """`[M, 4]`: first row and column of the tokens under a node, then the row and column after the last."""
    first: Tensor
    """`[M]`: first token under a node."""
    above: Tensor
    """`[L, N]`: the nodes above a token, one per level."""


def trees(levels: list[Level]) -> Trees:
    """The data of both steps, for any thresholds; the first of `levels` is the coarsest."""
    height, width = levels[-1].features.shape[1:3]
    boxes, above, count = [], [], 0
    for level in levels:
        (top, bottom), (left, right) = level.rows.T[:, :, None], level.columns.T[:, None]
        box = torch.stack(torch.broadcast_tensors(top, left, bottom, right), -1)  # [h, w, 4]
        row, column = (
            torch.searchsorted(axis[:, 1].contiguous(), torch.arange(size, device=axis.device), right=True)
            for axis, size in ((level.rows, height), (level.columns, width))
        )  # [H], [W]
        above.append(count + row[:, None] * box.shape[1] + column)
        boxes.append(box.flatten(0, 1))
        count += len(boxes[-1])
    x = torch.cat([level.features.flatten(1, 2) for level in levels], 1)  # [T, M, D]
    norm = torch.linalg.vector_norm(x, dim=-1) + 1e-8
    cosines = (x[:-1] @ x[1:].mT).div_(norm[:-1].unsqueeze(2)).div_(norm[1:].unsqueeze(1))
    box = torch.cat(boxes)
    agreement = torch.cat([level.agreement.flatten(1) for level in levels], 1)
    return Trees(x, agreement, cosines, box, box[:, 0] * width + box[:, 1], torch.stack(above).flatten(1))


def leaves(found: Trees, threshold: float) -> Tensor:
    """The leaf that covers each token, `[T, N]`. A node whose `agreement` is too low splits."""
    is_leaf = found.agreement[:, found.above] >= threshold  # [T, L, N], if no node above it is
    level = is_leaf.int().argmax(1)  # the first
    return found.above.gather(0, level)


class Groups(NamedTuple):
    """Groups of leaves, each of which becomes one token."""

    leaf: Tensor
    """`[n]`: the leaves in order of their first token, as node numbers within their frame."""
    frame: Tensor
    """`[n]`: the frame of each leaf."""
    group: Tensor
    """`[n]`: the token that a leaf becomes part of, 0..K - 1."""
    anchors: Tensor
    """`[K]`, ascending: flat index of the first input token of each group."""

    def __len__(self) -> int:
        return len(self.anchors)


def representatives(pairs: Tensor, count: int) -> Tensor:
    """The node that each of `count` nodes is merged into, for linked `pairs [2, L]`: `[count]`.

    As in the official code, it stops once every representative represents itself, which can leave linked nodes apart.
    """
    rep = torch.arange(count, device=pairs.device)
    while True:
        least = rep[pairs].amin(0)  # [L]
        rep = rep.scatter_reduce(0, pairs.flatten(), least.repeat(2), "amin")
        rep = rep[rep]
        if torch.equal(rep, rep[rep]):
            return rep


def merge(found: Trees, threshold: float, temporal_thresh: float) -> Groups:
    """Both steps: find the leaves, then merge those that are linked through time.

    Two leaves of neighbouring frames are linked if one covers the other and their cosine is at least `temporal_thresh`.
    If that is not positive, none are linked.
    """
    leaf = leaves(found, threshold)  # [T, N]
    frames, size = leaf.shape
    place = torch.arange(frames * size, device=leaf.device).view(frames, size)
    anchor = place[:, :1] + found.first[leaf]  # [T, N]; a leaf is named by its first token, linked by shared ones
    own = (anchor == place).flatten().nonzero().squeeze(1)  # [n]
    rep = own
    if temporal_thresh > 0:
        pair = leaf[:-1] * found.cosines.shape[1] + leaf[1:]  # [T - 1, N]
        linked = found.cosines.flatten(1).gather(1, pair) >= temporal_thresh
        rep = representatives(torch.stack([anchor[:-1][linked], anchor[1:][linked]]), leaf.numel())[own]
    anchors, group = rep.unique(return_inverse=True)
    return Groups(leaf.flatten()[own], own // size, group, anchors)


def areas(found: Trees, groups: Groups) -> Tensor:
    """How many of the video's tokens each token stands for: `[K]`."""
    top, left, bottom, right = found.boxes[groups.leaf].T
    return torch.zeros_like(groups.anchors).index_add(0, groups.group, (bottom - top) * (right - left))


@dataclass(frozen=True)
class STTM(Method):
    """STTM (Hyun et al., ICCV 2025): multi-granular spatio-temporal token merging.

    Idea: in each frame, a quadtree splits an area only where its parts differ from its mean. Then similar nodes that
    cover the same place in neighbouring frames become one.

    Source: arXiv 2507.07990; HYUNJS/STTM 00736c7. Parameters: see the fields.
    Budget: the method has two thresholds and no ratio. With `threshold` None, bisection along
    1 - temporal_thresh = temporal_slack * (1 - threshold) finds the pair that keeps the most tokens, among those tried,
    without exceeding round(R*T*N), from a coarser root if necessary. If even the coarsest tree has more, the nodes of
    largest area are kept. Officially (0.85, 0.65), (0.85, 0.55), (0.80, 0.60) or (0.80, 0.50): with `threshold` and
    `temporal_thresh` given, `retention_ratio` is ignored. Not exact: counts jump with the thresholds.
    Quirks kept: at odd borders, missing child slots count as the frame's first node in the test; merging through time
    stops early, which can leave linked nodes apart.
    Deviation: merges before layer 0, as officially for LLaVA-Video 72B; the official 7B models merge hidden states
    before layer 2.
    """

    threshold: float | None = None
    """A node splits if its cosine with any child is below this; None to meet `retention_ratio`."""
    temporal_thresh: float | None = None
    """Cosine from which nodes of neighbouring frames merge; not positive: never. Set if and only if `threshold` is."""
    root_level: int = 1
    """Coarsest level of the trees, from 0 (a side of 2 nodes) up to that of the tokens."""
    temporal_slack: float = 2.5
    """In the search, (1 - `temporal_thresh`) / (1 - `threshold`); 2 to 3 in the official settings."""
    search_steps: int = 20
    """Bisection steps of the search for `threshold`."""

    name: ClassVar[str] = "sttm"
    positions: ClassVar[Positions] = "contiguous"
    exact: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.threshold is None) != (self.temporal_thresh is None):
            raise ValueError(
                f"STTM.threshold={self.threshold!r}, STTM.temporal_thresh={self.temporal_thresh!r}: give both or none"
            )
        for name in ("threshold", "temporal_thresh"):
            if getattr(self, name) is not None:
                check_range(self, name, -1, 1)
        check_range(self, "root_level", 0, 2**31, integer=True)
        check_range(self, "temporal_slack", 0, 10**6, low_open=True)
        check_range(self, "search_steps", 1, 100, integer=True)

    def select(self, tokens: VideoTokens) -> PrunedTokens:
        levels = pyramid(tokens.features, tokens.grid)
        budget = self.budget(tokens) if self.threshold is None else tokens.total
        for root in range(min(self.root_level, len(levels) - 1), -1, -1):
            found = trees(levels[root:])
            groups = self._groups(found, budget)
            if len(groups) <= budget:
                break
        features = bag_means(found.features[groups.frame, groups.leaf], groups.group, len(groups))
        anchors = groups.anchors
        if len(groups) > budget:
            largest = descending(areas(found, groups))[:budget]
            features, anchors = features[largest], anchors[largest]
        return in_raster_order(features, anchors, tokens.features)

    def _groups(self, found: Trees, budget: int) -> Groups:
        """Groups by the given thresholds, or by those that keep the most tokens within `budget`, if any do."""
        if self.threshold is not None and self.temporal_thresh is not None:
            return merge(found, self.threshold, self.temporal_thresh)

        def run(threshold: float) -> Groups:
            temporal = 1 - self.temporal_slack * (1 - threshold)
            return merge(found, threshold, max(temporal, torch.finfo(torch.float32).eps))

        return largest_within(run, budget, -1.1, 1.0, self.search_steps)
