"""STTM: a quadtree over every frame, whose nodes merge with those of the same place in the frames before."""

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
    """One level of the quadtree, its nodes in a grid of h x w."""

    features: Tensor
    """`[T, h, w, D]`: mean of the children, float32."""
    rows: Tensor
    """`[h, 2]`: first row of the tokens under a node, and the row after the last."""
    columns: Tensor
    """`[w, 2]`."""
    agreement: Tensor
    """`[T, h, w]`: lowest cosine of a node with its child slots; of the finest level infinite."""


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
    """The level above: every node the mean of its up to 2 x 2 children."""
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


def to_children(values: Tensor, level: Level) -> Tensor:
    """Hand values `[T, h, w]` of the level above down to all nodes of `level`."""
    rows, columns = ((torch.arange(n, device=values.device) + n % 2) // 2 for n in level.agreement.shape[1:])
    return values[:, rows][:, :, columns]


class Nodes(NamedTuple):
    """Quadtree nodes in order of their first token."""

    features: Tensor
    """`[n, D]`, float32."""
    boxes: Tensor
    """`[n, 5]`: frame, first row and column, row and column after the last."""
    anchors: Tensor
    """`[n]`, ascending: flat index of the first token."""
    areas: Tensor
    """`[n]`: how many tokens a node stands for."""

    def __len__(self) -> int:
        return len(self.anchors)


def leaves(levels: list[Level], threshold: float) -> tuple[Nodes, Tensor]:
    """Leaves of the quadtrees, and the leaf of every token `[T, H, W]`. A node whose `agreement` is too low splits."""
    frames, height, width, _ = levels[-1].features.shape
    device = levels[-1].features.device
    alive = torch.ones_like(levels[0].agreement, dtype=torch.bool)  # [T, h, w]
    owner = torch.zeros_like(alive, dtype=torch.int64)  # [T, h, w]: anchor of the leaf that covers a node
    frame = torch.arange(frames, device=device)[:, None, None]
    parts: list[tuple[Tensor, Tensor]] = []
    for level in levels:
        if alive.shape != level.agreement.shape:
            alive, owner = (to_children(values, level) for values in (alive, owner))
        leaf = alive & (level.agreement >= threshold)
        (top, bottom), (left, right) = level.rows.T[:, :, None], level.columns.T[:, None]
        box = torch.stack(torch.broadcast_tensors(frame, top, left, bottom, right), -1)  # [T, h, w, 5]
        owner = torch.where(leaf, (box[..., 0] * height + box[..., 1]) * width + box[..., 2], owner)
        parts.append((level.features[leaf], box[leaf]))
        alive = alive & ~leaf
    features, boxes = (torch.cat(part) for part in zip(*parts, strict=True))
    anchors = (boxes[:, 0] * height + boxes[:, 1]) * width + boxes[:, 2]  # [n]
    anchors, order = anchors.sort()
    boxes = boxes[order]
    areas = (boxes[:, 3] - boxes[:, 1]) * (boxes[:, 4] - boxes[:, 2])
    return Nodes(features[order], boxes, anchors, areas), torch.searchsorted(anchors, owner)


def linked(nodes: Nodes, owner: Tensor, temporal_thresh: float) -> Tensor:
    """Pairs of nodes of neighbouring frames that overlap, with a cosine of at least `temporal_thresh`: `[2, L]`.

    Of overlapping quadtree nodes one contains the other, so pairs are found from the tokens that they share.
    """
    pairs = torch.stack([owner[:-1].flatten(), owner[1:].flatten()]).unique(dim=1)
    x = nodes.features / (nodes.features.norm(dim=-1, keepdim=True) + 1e-8)
    return pairs[:, (x[pairs[0]] * x[pairs[1]]).sum(-1) >= temporal_thresh]


def representatives(pairs: Tensor, count: int) -> Tensor:
    """The node that each of `count` nodes is merged into, for linked `pairs [2, L]`: `[count]`.

    Officially it stops as soon as every representative is its own one, which can leave linked nodes apart.
    """
    rep = torch.arange(count, device=pairs.device)
    while True:
        least = rep[pairs].amin(0)  # [L]
        rep = rep.scatter_reduce(0, pairs.flatten(), least.repeat(2), "amin")
        rep = rep[rep]
        if torch.equal(rep, rep[rep]):
            return rep


def merge_through_time(nodes: Nodes, owner: Tensor, temporal_thresh: float) -> Nodes:
    """Merge linked nodes into the first of them, as plain means; no merging where the threshold is not positive."""
    if temporal_thresh <= 0:
        return nodes
    rep = representatives(linked(nodes, owner, temporal_thresh), len(nodes))
    kept, group = rep.unique(return_inverse=True)
    features = bag_means(nodes.features, group, len(kept))
    areas = torch.zeros_like(kept).index_add(0, group, nodes.areas)
    return Nodes(features, nodes.boxes[kept], nodes.anchors[kept], areas)


def merge(levels: list[Level], threshold: float, temporal_thresh: float) -> Nodes:
    """Both steps, from the coarsest of `levels` on."""
    return merge_through_time(*leaves(levels, threshold), temporal_thresh)


@dataclass(frozen=True)
class STTM(Method):
    """STTM (Hyun et al., ICCV 2025): multi-granular spatio-temporal token merging.

    Idea: in each frame, a quadtree splits an area only where its parts differ from its mean; then nodes that cover the
    same place in neighbouring frames and are similar become one.

    Source: arXiv 2507.07990; HYUNJS/STTM 00736c7. Parameters: see the fields.
    Budget: the method has two thresholds and no ratio. With `threshold` None, bisection along
    1 - temporal_thresh = temporal_slack * (1 - threshold) finds the pair that leaves most tokens, of those tried,
    without exceeding round(R*T*N), from a coarser root if need be. If even the coarsest tree has more, the nodes of
    largest area are kept. Officially (0.85, 0.65), (0.85, 0.55), (0.80, 0.60) or (0.80, 0.50): with `threshold` and
    `temporal_thresh` given, `retention_ratio` is ignored. Not exact: counts jump with the thresholds.
    Quirks kept: at odd borders, missing child slots stand for the frame's first node in the test; merging through time
    stops early, which can leave linked nodes apart.
    Deviation: before layer 0, as officially for LLaVA-Video 72B; the 7B models merge hidden states before layer 2.
    """

    threshold: float | None = None
    """Cosine with its parent below which a node splits; None to meet `retention_ratio`."""
    temporal_thresh: float | None = None
    """Cosine from which nodes of neighbouring frames merge; not positive: never. Given if `threshold` is."""
    root_level: int = 1
    """Coarsest level of the trees, from 0 (a side of 2 nodes) up to that of the tokens."""
    temporal_slack: float = 2.5
    """How much farther from 1 `temporal_thresh` is than `threshold` in the search; 2 to 3 in the official settings."""
    search_steps: int = 20
    """Halvings of the range of `threshold` when it is searched for."""

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
        check_range(self, "temporal_slack", 0, float("inf"), low_open=True)
        check_range(self, "search_steps", 1, 100, integer=True)

    def select(self, tokens: VideoTokens) -> PrunedTokens:
        levels = pyramid(tokens.features, tokens.grid)
        root = min(self.root_level, len(levels) - 1)
        if self.threshold is not None and self.temporal_thresh is not None:
            nodes = merge(levels[root:], self.threshold, self.temporal_thresh)
        else:
            nodes = self._within(levels, root, self.budget(tokens))
        return in_raster_order(nodes.features, nodes.anchors, tokens.features)

    def _within(self, levels: list[Level], root: int, budget: int) -> Nodes:
        """The largest result of at most `budget` nodes."""

        def run(threshold: float) -> Nodes:
            temporal = 1 - self.temporal_slack * (1 - threshold)
            return merge(levels[root:], threshold, max(temporal, torch.finfo(torch.float32).eps))

        nodes = largest_within(run, budget, -1.1, 1.0, self.search_steps)
        while len(nodes) > budget and root:
            root -= 1
            nodes = largest_within(run, budget, -1.1, 1.0, self.search_steps)
        if len(nodes) <= budget:
            return nodes
        largest = descending(nodes.areas)[:budget].sort().values
        return Nodes(*(part[largest] for part in nodes))
