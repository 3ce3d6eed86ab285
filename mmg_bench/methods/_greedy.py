"""Max-min selection, shared by several methods: repeatedly pick the point farthest from the previous picks."""

from __future__ import annotations

import torch
from torch import Tensor

from mmg_bench.methods._ops import gram_matrix


def max_min_selection(
    distance: Tensor, count: int, chosen: float | None = -torch.inf, first: Tensor | None = None
) -> Tensor:
    """Greedy farthest-point picks, in the order of selection: `distance [B, M, M]` to int64 `[B, count]`.

    `distance[b, i, j]` is how far candidate j is from point i; it need not be symmetric. The first pick is `first`
    (`[B]` int64), by default the candidate whose nearest other point is farthest (second smallest entry of its column,
    the smallest being itself); each later pick has the largest distance to its nearest pick. Equal distances: the lower
    index.
    Picks get the distance `chosen`, so that they are not picked again; None leaves them at their distance to
    themselves, about 0. `distance` is scratch space: its diagonal is overwritten. Needs count <= M. Each pick takes
    three kernels and no synchronisation with the host.
    """
    batch, points, _ = distance.shape
    distance = distance.detach()
    order = torch.empty(count, batch, 1, dtype=torch.int64, device=distance.device)
    if count == 0:
        return order.view(count, batch).T
    if first is None:
        first = (second_smallest(distance) if points > 1 else distance[:, 0]).argmax(-1)
    order[0] = first.unsqueeze(-1)
    if chosen is not None:  # from then on, a pick's distance to itself is its least
        distance.diagonal(dim1=1, dim2=2).fill_(chosen)
    nearest = distance.new_full((batch, points), torch.inf)
    row = torch.empty(batch, 1, points, dtype=distance.dtype, device=distance.device)
    for step in range(1, count):
        pick = order[step - 1].unsqueeze(-1).expand(-1, -1, points)  # [B, 1, M]
        torch.minimum(nearest, torch.gather(distance, 1, pick, out=row).squeeze(1), out=nearest)
        torch.argmax(nearest, -1, keepdim=True, out=order[step])
    return order.view(count, batch).T


def second_smallest(distance: Tensor) -> Tensor:
    """The second smallest entry of each column of `[B, M, M]`, M > 1: `[B, M]`. Neither sorts nor copies."""
    least, row = distance.min(1, keepdim=True)  # [B, 1, M] both
    distance.scatter_(1, row, torch.inf)
    second = distance.amin(1)
    distance.scatter_(1, row, least)
    return second


def cosine_distances(x: Tensor) -> Tensor:
    """1 - cosine between all points of each batch entry, for vectors `x [B, M, D]` of length 1: `[B, M, M]`."""
    return gram_matrix(x).neg_().add_(1)
