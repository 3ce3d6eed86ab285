"""OTT-Vid: keep the tokens that cover each frame, then merge them along optimal transport from frame to frame."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from mmg_bench.methods._merge import bag_means, group_sums, supplied, unit
from mmg_bench.methods._ops import descending, frames_per_chunk, gram_matrix, positions_of, top_mask
from mmg_bench.methods.base import Method, Positions, check_flag, check_range
from mmg_bench.tokens import PrunedTokens, VideoTokens, keep

_AT_ONCE = {"cpu": 2**21}
"""Bytes of similarities searched at once: on a CPU as many as its cache holds, elsewhere all."""


def similarities(features: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines of `[T, N, D]` within frames, `[T, N, N]`, and with the same place a frame on, averaged, `[T - 1]`."""
    cosine, still, last = [], [], features.new_empty(0)
    for part in features.split(frames_per_chunk(features)):
        direction = unit(part)  # [t, N, D]
        cosine.append(gram_matrix(direction))
        row = torch.cat([last, direction]) if len(last) else direction
        still.append((row[:-1] * row[1:]).sum(-1).mean(-1))
        last = direction[-1:]
    return torch.cat(cosine), torch.cat(still)


def covering(cosine: Tensor, weight: Tensor, count: int) -> Tensor:
    """Greedy facility location in each frame: the `count` tokens that cover it best, int64 `[T, count]`, ascending.

    `cosine [T, N, N]`, `weight [T, N]`. The cover of token i is its highest cosine to a pick, at least 0. Each pick
    adds most to the weighted sum of covers; ties go to the first.
    """
    size = cosine.shape[1]
    chunk = max(1, _AT_ONCE.get(cosine.device.type, 2**62) // (4 * size * size))
    return torch.cat([_cover(*part, count) for part in zip(cosine.split(chunk), weight.split(chunk), strict=True)])


def _cover(cosine: Tensor, weight: Tensor, count: int) -> Tensor:
    """`covering` for a few frames."""
    frames, size, _ = cosine.shape
    covered, picked = torch.zeros_like(weight), torch.zeros_like(weight, dtype=torch.bool)  # [t, N] both
    more, row = torch.empty_like(cosine), weight.unsqueeze(1)
    for _ in range(count):
        torch.sub(cosine, covered.unsqueeze(2), out=more).clamp_min_(0)  # [t, covered, candidates]
        gain = (row @ more).squeeze(1).masked_fill_(picked, -torch.inf)  # [t, N]
        pick = gain.argmax(-1, keepdim=True)
        picked.scatter_(1, pick, True)
        column = cosine.gather(2, pick.unsqueeze(1).expand(-1, size, -1)).squeeze(2)
        torch.maximum(covered, column, out=covered)
    return picked.nonzero()[:, 1].view(frames, count)


def leave_one_out_mass(cosine: Tensor, weight: Tensor, within: Tensor, tau: float) -> Tensor:
    """Mass of the tokens `within [T, K]` of each frame: `[T, K]`, sum 1 per frame; less for tokens that cover more.

    Softmax of -s / tau, where s is what the frame's weighted cover (see `covering`) would lose without the token,
    divided by the largest such loss in the frame. `cosine [T, N, N]`, `weight [T, N]`.
    """
    size, kept = cosine.shape[1], within.shape[1]
    to_kept = cosine.gather(2, within.unsqueeze(1).expand(-1, size, -1))  # [T, N, K]
    best = to_kept.topk(min(2, kept), dim=2)
    second = best.values[..., 1] if kept > 1 else torch.zeros_like(weight)
    lost = (best.values[..., 0] - second).clamp_min(0) * weight  # [T, N]
    lost = group_sums(lost.unsqueeze(-1), best.indices[..., 0], kept)[0].squeeze(-1)  # [T, K]
    return (-lost / (lost.amax(1, keepdim=True) + 1e-8) / tau).softmax(1)


def pair_costs(direction: Tensor, places: Tensor, alpha: Tensor) -> Tensor:
    """Cost of moving each token to each token of the next frame: `[T - 1, K, K]`, in [0, 1].

    `alpha [T - 1]` times their dissimilarity (1 - cosine, with negative cosines as 0), plus 1 - alpha times their
    distance in the frame. `direction [T, K, D]` unit vectors, `places [T, K, 2]` in [0, 1].
    """
    unlike = 1 - (direction[:-1] @ direction[1:].mT).clamp_min(0)
    apart = (places[:-1].unsqueeze(2) - places[1:].unsqueeze(1)).norm(dim=-1) / math.sqrt(2)
    share = alpha.view(-1, 1, 1)
    return share * unlike + (1 - share) * apart


def transport(cost: Tensor, source: Tensor, target: Tensor, eps: float, iterations: int) -> Tensor:
    """Sinkhorn's plan between the masses `source [P, n]` and `target [P, m]` under `cost [P, n, m]`: float64.

    Computed with products, not logarithms: for costs up to 1, float64 has enough range down to an eps of 0.005.
    """
    kernel = (cost.double() / -eps).exp()
    back = kernel.mT.contiguous()
    a, b = (mass.double().clamp_min(1e-30).unsqueeze(2) for mass in (source, target))
    u = torch.ones_like(a)  # [P, n, 1]
    for _ in range(iterations):
        v = b / (back @ u)
        u = a / (kernel @ v)
    return u * kernel * v.mT


def merge_budgets(distance: Tensor, total: int, most: int, temperature: float) -> Tensor:
    """Share `total` merges among pairs of frames, at most `most` each: int64 `[P]`, on the CPU like `distance [P]`.

    Proportional to softmax(-distance / temperature), rounded by largest remainder. The excess of full pairs is shared
    among the others in the same way, as long as there are any.
    """
    budget = torch.zeros(len(distance), dtype=torch.int64)
    while total > 0 and len(free := (budget < most).nonzero().squeeze(1)):
        share = (-distance[free] / temperature).softmax(0) * total
        count = share.floor().long()
        count[descending(share - share.floor())[: max(0, total - int(count.sum()))]] += 1
        given = count.clamp_max(most - budget[free])
        budget[free] += given
        total = int((count - given).sum())
    return budget


def grow_trees(parent: Tensor, joins: Tensor) -> Tensor:
    """The root of each of `[T, K]` tokens, of which some join a token of the frame before: flat indices `[T * K]`.

    `parent [T - 1, K]` int64: index of that token in its frame; `joins [T - 1, K]` bool.
    """
    pairs, kept = parent.shape
    own = torch.arange((pairs + 1) * kept, device=parent.device)
    before = parent + kept * torch.arange(pairs, device=parent.device).unsqueeze(1)
    root = torch.cat([own[:kept], before.flatten().where(joins.flatten(), own[kept:])])
    for _ in range(pairs.bit_length()):  # each step doubles the distance
        root = root[root]
    return root


class Between(NamedTuple):
    """Optimal transport from each frame's tokens to those of the next."""

    mass: Tensor
    """`[T, K]`, sum 1 per frame."""
    cost: Tensor
    """`[T - 1, K, K]`."""
    plan: Tensor
    """`[T - 1, K, K]`: the mass that moves from each token to each token of the next frame, float64."""
    distance: Tensor
    """`[T - 1]`: the total cost, float32, on the CPU."""


@dataclass(frozen=True)
class OTTVid(Method):
    """OTT-Vid (Kang et al., 2026): optimal transport temporal token compression.

    Idea: keep the tokens of each frame that cover it, above all the attended ones. Move them to the next frame by
    optimal transport, in which tokens that cover more have less mass. Pairs of frames with a low cost merge more
    tokens. The tokens that the plan moves most merge into the frame before, or are dropped if that costs too much.

    Source: arXiv 2605.11803; minseokii/OTT-Vid 12a6d26 (LLaVA). Parameters: see the fields, named and set as in its
    published commands.
    Not exact: the share of each frame's tokens is rounded, every frame keeps at least one, and the first merges none.
    Quirks kept: for tokens that the first stage drops, the mass uses the mean attention of those kept; without the
    second stage (or with one frame), R^(1 - `temporal_share`) of the tokens are kept.
    Deviations: float32 throughout, the plan in float64; ties go by index (officially in any order).
    """

    temporal_share: float = 0.3
    """g: each frame keeps R^(1 - g) of its tokens, and merging then keeps R^g of these; in [0, 1]."""
    spatial_retention: float | None = None
    """Share of each frame's tokens to keep, instead of R^(1 - g); in (0, 1]."""
    enable_temporal: bool = True
    """Whether to merge through time."""
    ot_mass_tau: float | None = 0.3
    """Temperature of the masses; None: all masses are equal."""
    ot_budget_temperature: float = 0.3
    """Temperature of the softmax over the distances of the frames that allocates the merges."""
    ot_cost_threshold: float | None = 0.3
    """Cost above which a token is dropped instead of merged; None: never."""
    ot_sinkhorn_eps: float = 0.01
    """Entropic regularisation."""
    ot_sinkhorn_iters: int = 200
    """Iterations of Sinkhorn's algorithm."""

    name: ClassVar[str] = "ottvid"
    needs: ClassVar[frozenset[str]] = frozenset({"attention"})
    positions: ClassVar[Positions] = "contiguous"
    exact: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "temporal_share", 0, 1)
        check_flag(self, "enable_temporal")
        if self.spatial_retention is not None:
            check_range(self, "spatial_retention", 0, 1, low_open=True)
        if self.ot_mass_tau is not None:
            check_range(self, "ot_mass_tau", 0.001, 10**6)
        check_range(self, "ot_budget_temperature", 0.001, 10**6)
        if self.ot_cost_threshold is not None:
            check_range(self, "ot_cost_threshold", 0, 1)
        check_range(self, "ot_sinkhorn_eps", 0.005, 10**6)
        check_range(self, "ot_sinkhorn_iters", 1, 10**6, integer=True)

    def select(self, tokens: VideoTokens) -> PrunedTokens:
        x = tokens.features.detach()
        frames, size, _ = x.shape
        cosine, still = similarities(x)  # [T, N, N], [T - 1]
        within = self.spatial(tokens, cosine)  # [T, K]
        positions = (within + size * torch.arange(frames, device=x.device).unsqueeze(1)).flatten()
        total, most = len(positions), within.shape[1] - 1
        merges = min(self.merges(total), (frames - 1) * most)
        if merges == 0:
            return keep(tokens, positions, tokens_per_frame=most + 1)

        between = self.between(tokens, cosine, still, within)
        budgets = merge_budgets(between.distance, merges, most, self.ot_budget_temperature)
        # Officially a greedy search over pairs, in which each later token has one turn. So each joins the token of its
        # largest inflow, and the largest inflows go first. In float32, so that rounding does not order tied flows.
        flow, parent = between.plan.float().max(1)  # [T - 1, K] both
        joins = top_mask(flow, budgets.to(x.device, non_blocking=True))
        cost = between.cost.gather(1, parent.unsqueeze(1)).squeeze(1)
        dear = joins & (cost > (torch.inf if self.ot_cost_threshold is None else self.ot_cost_threshold))
        root = grow_trees(parent, joins & ~dear)  # [T * K]
        gone = torch.cat([torch.zeros_like(dear[0]), dear.flatten()])[root]  # with the tokens that joined them

        left = total - int(budgets.sum())
        stays = (root == torch.arange(total, device=x.device)) & ~gone
        tree = (stays.cumsum(0) - 1)[root].where(~gone, left)
        means = bag_means(x.flatten(0, 1)[positions], tree, left + 1)[:left]
        anchors = positions[positions_of(stays, left)]
        notes = {"tokens_per_frame": most + 1, "merge_budgets": budgets.tolist()}
        return PrunedTokens(means.to(x.dtype), anchors, notes=notes)

    @property
    def spatial_share(self) -> float:
        """Share of each frame's tokens that the first stage keeps."""
        given = self.spatial_retention
        return self.retention_ratio ** (1 - self.temporal_share) if given is None else given

    def spatial(self, tokens: VideoTokens, cosine: Tensor) -> Tensor:
        """The first stage: tokens to keep in each frame, int64 `[T, K]`, ascending; `cosine [T, N, N]`."""
        size = tokens.tokens_per_frame
        count = max(1, round(size * self.spatial_share))
        if count >= size:
            return torch.arange(size, device=cosine.device).expand(tokens.frames, -1)
        return covering(cosine, shares(supplied(tokens, "attention")), count)

    def merges(self, total: int) -> int:
        """How many of the `total` tokens kept by the first stage the second should merge, if it can."""
        target = max(1, round(total * (self.retention_ratio / max(self.spatial_share, 1e-6))))
        return max(0, total - target) if self.enable_temporal else 0

    def between(self, tokens: VideoTokens, cosine: Tensor, still: Tensor, within: Tensor) -> Between:
        """Transport between the tokens `within [T, K]`, given the results of `similarities`."""
        mass = torch.full(within.shape, 1 / within.shape[1], device=within.device)
        if self.ot_mass_tau is not None:
            attention = supplied(tokens, "attention").detach().float()
            kept = attention.gather(1, within)
            known = kept.mean(1, keepdim=True).expand_as(attention).scatter(1, within, kept)
            mass = leave_one_out_mass(cosine, shares(known), within, self.ot_mass_tau)

        alpha = 0.5 + 0.5 * (1 - still).clamp(0, 1)
        height, width = (max(1, n - 1) for n in tokens.grid)
        places = torch.stack([within // tokens.grid[1] / height, within % tokens.grid[1] / width], -1)
        x = tokens.features.detach()
        chosen = unit(x.gather(1, within.unsqueeze(2).expand(-1, -1, x.shape[2])))  # [T, K, D]
        cost = pair_costs(chosen, places, alpha)
        plan = transport(cost, mass[:-1], mass[1:], self.ot_sinkhorn_eps, self.ot_sinkhorn_iters)
        return Between(mass, cost, plan, (plan * cost).sum((1, 2)).float().cpu())


def shares(attention: Tensor) -> Tensor:
    """Each token's share of the attention that its frame's tokens receive: `[T, N]`, float32."""
    attention = attention.detach().float()
    return attention / (attention.sum(1, keepdim=True) + 1e-8)
