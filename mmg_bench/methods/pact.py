"""PACT: drop tokens that the mean query hardly attends to, then merge the rest around the densest, by their keys."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmg_bench.methods._inside import InsideMethod, check_layer, layers_at, most_attended
from mmg_bench.methods._merge import bag_sums, unit
from mmg_bench.methods._ops import descending, gram_matrix
from mmg_bench.methods.base import Positions, check_flag, check_range
from mmg_bench.tokens import Heads, LayerTokens, Selection

OFFICIAL_LAYER, OFFICIAL_DEPTH = 4, 28
WIDTH = 2.0
"""Width of the Gaussian in the density, as in the official code: the largest possible cosine distance."""
HALVINGS = 20
"""Bisection steps of the search for a cutoff, down to two millionths."""


def importance(heads: Heads, features: Tensor) -> Tensor:
    """EUTI: attention of the mean query to each visual token, times the length of its hidden state: `[n]`.

    Query and softmax run over the whole sequence up to the last visual token, without rotary embeddings or mask.
    `features [n, D]`.
    """
    query = heads.queries.mean(1).unflatten(0, (len(heads.keys), -1))  # [key-value heads, queries of each, d]
    scores = query / query.shape[-1] ** 0.5 @ heads.keys.mT  # [key-value heads, queries of each, P]
    attended = scores.softmax(-1).flatten(0, 1).mean(0)  # [P]
    return attended[heads.visual] * torch.linalg.vector_norm(features.float(), dim=-1)


def cosine_distances(keys: Tensor) -> Tensor:
    """1 - cosine between all pairs of `[n, K]`, at least 0, with a zero diagonal: `[n, n]` float32."""
    return (1 - gram_matrix(unit(keys))).clamp_min_(0).fill_diagonal_(0)


def densest_first(distance: Tensor) -> Tensor:
    """Order of `[n, n]` points by descending density; ties: the later one first, as officially. int64 `[n]`."""
    return (-((distance / WIDTH) ** 2)).exp().sum(1).sort(stable=True).indices.flip(0)


def centres_in_turn(distance: NDArray[np.float32], cutoff: float) -> Tensor:
    """DBDPC: mask of the centres, the points further than `cutoff` from every earlier centre: bool `[n]`.

    `distance [n, n]` of points in order of density, on the host.
    """
    centre, left = np.zeros((2, len(distance)), bool)
    left[:], first = True, 0
    while left[first]:
        centre[first] = True
        left &= distance[first] > cutoff  # without itself
        first = int(left.argmax())
    return torch.from_numpy(centre)


def centres_in_rounds(distance: Tensor, denser: Tensor, cutoff: float) -> Tensor:
    """The same on a GPU in a few rounds: a round decides all points that depend on no undecided earlier point.

    `denser [n]`: `to_denser(distance)`; `distance [n, n]`.
    """
    centre = denser > cutoff
    taken, rest = centre.nonzero().squeeze(1), (~centre).nonzero().squeeze(1)
    while len(taken) and len(rest):
        rest = rest[(distance[rest][:, taken] > cutoff).all(1)]
        first = ~(distance[rest][:, rest] <= cutoff).tril_(-1).any(1)
        taken, rest = rest[first], rest[~first]
        centre[taken] = True
    return centre


def to_denser(distance: Tensor) -> Tensor:
    """Distance of each of `[n, n]` points, in order of density, to the nearest earlier one: `[n]`, infinite if none."""
    later = torch.ones_like(distance, dtype=torch.bool).triu_()
    return distance.masked_fill(later, torch.inf).amin(1)


def centres_within(distance: Tensor) -> Callable[[float], Tensor]:
    """The function from a cutoff to the centres, for the distances `[n, n]` of points in order of density."""
    if distance.device.type == "cpu":
        return partial(centres_in_turn, distance.numpy())
    return partial(centres_in_rounds, distance, to_denser(distance))


def centres_for(distance: Tensor, count: int) -> tuple[Tensor, float]:
    """A mask of exactly `count` centres, bool `[n]`, and the cutoff that makes them.

    Bisection takes the first cutoff that gives `count` centres. Failing that, it takes the lowest cutoff found that
    gives fewer, and the points furthest from their centres become centres too. `distance [n, n]` in order of density.
    """
    within, low, high = centres_within(distance), 0.0, float(distance.max())
    centre = within(low)  # one centre per group of equal points
    if int(centre.sum()) <= count:
        high = low
    else:
        centre = within(high)  # only the densest
        for _ in range(HALVINGS):
            if int(centre.sum()) == count:
                break
            middle = (low + high) / 2
            tried = within(middle)
            if int(tried.sum()) > count:
                low = middle
            else:
                centre, high = tried, middle
    apart = distance[:, centre].amin(1).masked_fill(centre, -1)  # [m]
    return centre.index_fill(0, descending(apart)[: count - int(centre.sum())], True), high


class Clusters(NamedTuple):
    """The centres among n tokens, and the assignment of the others."""

    centres: Tensor
    """`[K]` int64: ascending."""
    label: Tensor
    """`[n]` int64: index into `centres` of the one that each token belongs to; -1 if it is dropped."""
    cutoff: float


def cluster(keys: Tensor, important: Tensor, *, alpha: float, count: int = 0, cutoff: float | None = None) -> Clusters:
    """Cluster the `important` (`[m]`, ascending) of n tokens by `keys [n, K]`; the others join centres nearby.

    Uses the `cutoff`; if it is None, one that makes `count` clusters, at most m. An important token belongs to its
    nearest centre (the lower of two); any other token does so only within `alpha` times the cutoff.
    """
    keys = keys.detach()
    distance = cosine_distances(keys[important])  # [m, m]
    order = densest_first(distance)
    ranked = distance[order][:, order]
    if cutoff is None:
        is_centre, cutoff = centres_for(ranked, count)
    else:
        is_centre = centres_within(ranked)(cutoff)
    among = order[is_centre].sort().values  # [K], into the important ones
    centres, own = important[among], torch.arange(len(among), device=keys.device)
    label = torch.full((len(keys),), -1, device=keys.device)
    label[important] = distance[:, among].argmin(1)
    label[centres] = own  # even if two centres are equal
    if alpha and len(important) < len(keys):
        lost = (label < 0).nonzero().squeeze(1)  # [n - m]
        apart, nearest = (1 - unit(keys[lost]) @ unit(keys[centres]).mT).min(1)
        label[lost] = torch.where(apart <= cutoff * alpha, nearest, -1)
    return Clusters(centres, label, cutoff)


@dataclass(frozen=True)
class PACT(InsideMethod):
    """PACT (Dhouib et al., CVPR 2025): prune what is unimportant, merge what repeats.

    Idea: early in the language model, drop tokens that are short or that the mean query hardly attends to. Cluster the
    others by their keys, so that no token is further than a cutoff from its centre, and replace each cluster by its
    mean. Dropped tokens close to a centre are merged with it after all. Later layers weight their attention to a
    cluster by its size.

    Source: arXiv 2504.08966; orailix/PACT cf9a0c9 (transformers/PACT/utils.py, models/qwen2/modeling_qwen2.py).
    Parameters: see the fields. `retention_ratio` is FastV's: the exact share of the tokens entering the layer that is
    kept from there on; all tokens enter the earlier layers. Officially a fixed cutoff decides how many are kept, not a
    ratio: set `cutoff` for that, and the ratio has no effect.
    Deviations: a cutoff that meets the ratio is searched for; each video is clustered on its own (officially all
    visual tokens of the prompt together); float32 whatever the model's dtype; ties in importance or distance go to the
    lower index; at least one token is kept.
    """

    layer: int | None = None
    """Layer before which tokens are merged: officially 4 of 28. None: the same share of the model's depth."""
    share: float = 0.55
    """Share of the tokens that pruning keeps for clustering: 0.55 for LLaVA-OneVision, 0.8 for Qwen2-VL. Raised to the
    ratio if that is higher and no cutoff is given."""
    cutoff: float | None = None
    """Cosine distance of keys within which tokens are merged: officially 0.21 and 0.1. None: chosen by the ratio."""
    alpha: float = 1.5
    """Largest distance, in cutoffs, at which a pruned token is merged with a centre; 0: none is."""
    proportional: bool = True
    """Whether the logarithms of the cluster sizes are added to the attention scores from the layer on."""

    name: ClassVar[str] = "pact"
    positions: ClassVar[Positions] = "original"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layer is not None:
            check_range(self, "layer", 1, 10_000, integer=True)
        check_range(self, "share", 0, 1, low_open=True)
        if self.cutoff is not None:
            check_range(self, "cutoff", 0, 2)
        check_range(self, "alpha", 0, 1_000)
        check_flag(self, "proportional")

    @property
    def weighs(self) -> bool:  # type: ignore[override]
        """Whether attention is proportional."""
        return self.proportional

    def layers(self, depth: int) -> tuple[int, ...]:
        if self.layer is None:
            return layers_at([OFFICIAL_LAYER], OFFICIAL_DEPTH, depth)
        return (check_layer(self, "layer", depth),)

    def select_inside(self, tokens: LayerTokens) -> Selection:
        x, n = tokens.features, len(tokens.features)
        count, left = max(1, round(n * self.retention_ratio)), max(1, int(n * self.share))
        if self.cutoff is None:
            left = max(left, count)
            if count == n:
                return Selection(torch.arange(n, device=x.device))
        heads = tokens.attention.heads()
        important = most_attended(importance(heads, x), left)
        keys = heads.rotated.transpose(0, 1).flatten(1)  # [n, key-value heads * d]
        clusters = cluster(keys, important, alpha=self.alpha, count=count, cutoff=self.cutoff)
        member = (clusters.label >= 0).nonzero().squeeze(1)
        sums, sizes = bag_sums(x[member], clusters.label[member], len(clusters.centres))
        means = sums / sizes.unsqueeze(1)
        return Selection(clusters.centres, means, sizes=sizes if self.proportional else None)
