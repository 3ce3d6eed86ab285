"""Max-min selection, which several methods share: pick again and again the point farthest from those picked."""

from __future__ import annotations

import torch
from torch import Tensor


def max_min_selection(distance: Tensor, count: int, chosen: float | None = -torch.inf) -> Tensor:
    """Greedy farthest-point picks, in the order of selection: `distance [B, M, M]` to int64 `[B, count]`.

    `distance[b, i, j]` is how far candidate j is from point i; it need not be symmetric. The first pick is the
    candidate whose nearest other point is farthest (second smallest entry of its column, the smallest being itself);
    each further one has the largest distance to its nearest pick. Equal distances: the lower index.
    Picks get the distance `chosen`, so that they are not picked again; None leaves them at their distance to
    themselves, about 0. Needs count <= M; one iteration a pick, no synchronisation with the host.
    """
    batch, points, _ = distance.shape
    rows = torch.arange(batch, device=distance.device)
    order = torch.empty(batch, count, dtype=torch.int64, device=distance.device)
    if count == 0:
        return order
    nearest = distance.topk(min(2, points), dim=1, largest=False).values[:, -1]  # [B, M]
    pick = nearest.argmax(-1)  # [B]
    nearest = torch.full_like(nearest, torch.inf)
    taken = torch.zeros_like(nearest, dtype=torch.bool)
    for step in range(count):
        order[:, step] = pick
        taken[rows, pick] = True
        nearest = torch.minimum(nearest, distance[rows, pick])
        score = nearest if chosen is None else nearest.masked_fill(taken, chosen)
        pick = score.argmax(-1)
    return order


def cosine_distances(x: Tensor) -> Tensor:
    """1 - cosine between all points of each batch entry, for vectors `x [B, M, D]` of length 1: `[B, M, M]`."""
    return (x @ x.mT).neg_().add_(1)
