"""FastVID: dynamic segments, salient tokens by attention, density-based anchors that absorb their segment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, count, pairwise
from math import isfinite
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mmg_bench.methods._merge import SALIENCE, group_scores, neighbour_cosines, supplied, unit
from mmg_bench.methods._ops import (
    at_ranks,
    float_product,
    frame_distances,
    frame_means,
    frames_per_chunk,
    on_device,
    positions_of,
    spread,
)
from mmg_bench.methods.base import Method, Positions, check_choice, check_range
from mmg_bench.tokens import PrunedTokens, VideoTokens


class Reduced(NamedTuple):
    """Result of FastVID on a video."""

    tokens: Tensor
    """`[K, D]`, float32."""
    keep_idx: Tensor
    """`[K]`: flat positions, ascending."""
    is_anchor: Tensor
    """`[T, N]` bool: anchors, the merged tokens."""
    is_salient: Tensor
    """`[T, N]` bool: tokens kept unchanged."""
    density_score: Tensor
    """`[T, N]`: log(rho * delta) among a frame's non-salient tokens; -inf at salient ones."""


def dynamic_segments(similarity: Sequence[float], c: int, tau: float) -> list[int]:
    """Segment lengths: cut where adjacent frames are less similar than `tau`, and at the c - 1 least similar.

    A video of fewer than `c` frames is cut everywhere (the official code raises there).
    """
    similar = np.array(similarity, np.float32)  # so that `tau` is compared in float32
    cut = similar < tau
    cut[similar.argsort(kind="stable")[: c - 1]] = True
    ends = [0, *(np.flatnonzero(cut) + 1).tolist(), len(similar) + 1]
    return [end - start for start, end in pairwise(ends)]


def token_counts(
    lengths: Sequence[int],
    budgets: Sequence[int],
    size: int,
    d: float,
    p: int,
    variant: str,
    keep_remainder: bool = True,
) -> tuple[list[int], list[int]]:
    """Numbers of salient tokens and of anchors in each frame: two lists of T counts.

    `budgets`: tokens to keep per frame, out of `size`. The share `d` of a segment's budget are anchors, which sit in
    every p-th frame, counted back from the segment's last. `variant` onevision rounds the share per frame, video per
    segment. Remainders of the division go to the last anchor frames; anchors that a frame has no room for go to the
    segment's other frames. `keep_remainder=False` drops the remainders, as the official onevision code does.
    """
    salient: list[int] = []
    anchors: list[int] = []
    for length in lengths:
        budget = budgets[len(salient) : len(salient) + length]
        if variant == "onevision":
            context = sum(int(b * d) for b in budget)
            kept = [b - int(b * d) for b in budget]
        else:
            context = int(sum(budget) * d)
            kept = spread(sum(budget) - context, length)
        hosts = [j for j in range(length) if (length - 1 - j) % p == 0]
        shares = spread(context, len(hosts))[::-1] if keep_remainder else [context // len(hosts)] * len(hosts)
        room = [size - k for k in kept]
        counts = [0] * length
        for j, share in zip(hosts, shares, strict=True):
            counts[j] = min(share, room[j])
        overflow = sum(shares) - sum(counts)
        for j in [*hosts, *(j for j in range(length) if j not in hosts)]:
            more = min(overflow, room[j] - counts[j])
            counts[j] += more
            overflow -= more
        salient += kept
        anchors += counts
    return salient, anchors


def token_counts_of_runs(
    lengths: Sequence[int],
    budgets: Sequence[int],
    size: int,
    d: float,
    p: int,
    similarity: Sequence[float],
    ignore: float,
) -> tuple[list[int], list[int]]:
    """Like `token_counts`, in the version for Qwen2.5-VL, given the `similarity` of adjacent frames.

    Adjacent frames of a segment with a similarity of at least `ignore` form a run. Only the last frame of a run keeps
    tokens, as many as it has room for: first anchors, in every p-th run counted back from the segment's last and at
    most half of the frame's tokens (if the segment has several frames), then salient ones. So fewer tokens than the
    budget can be kept; or more, because every segment has at least one anchor.
    """
    similar = np.array(similarity, np.float32)
    salient, anchors = [0] * len(budgets), [0] * len(budgets)
    start = 0
    for length in lengths:
        last = start + length - 1
        budget = sum(budgets[start : last + 1])
        context = max(int(budget * d), 1)
        ends = [t for t in range(start, last) if similar[t] < ignore] + [last]
        hosts = ends[::-1][::p][::-1]
        for t, share in zip(hosts, spread(context, len(hosts))[::-1], strict=True):
            anchors[t] = min(share, max(1, size // 2)) if length > 1 else share
        for t, share in zip(ends, spread(max(0, budget - context), len(ends)), strict=True):
            salient[t] = min(share, size - anchors[t])
        start += length
    return salient, anchors


class Plan(NamedTuple):
    """Inputs of `reduce_segments` other than the tokens; the tensors go to the device in one transfer.

    A frame with anchors is called a host. There are G hosts, numbered in temporal order, at most H per segment.
    """

    lengths: Sequence[int]
    """Number of frames of each segment."""
    hosts_in: Sequence[int]
    """Number of hosts in each segment; the sum is G."""
    slots: int
    """A: the largest number of anchors in a frame."""
    number: Tensor
    """0, 1, 2, ...: at least N and at least G numbers."""
    counts: Tensor
    """`[2, T]`: salient tokens of each frame, and its anchors."""
    near: Tensor
    """`[T]`: neighbours in each frame's density; fewer than k if the frame has fewer non-salient tokens."""
    own: Tensor
    """`[T]`: host number of each frame, -2 if it is no host."""
    hosts: Tensor
    """`[T, H]`: host numbers of each frame's segment, padded with -1."""
    room: Tensor
    """`[G]`: anchors of each host."""
    first: Tensor
    """`[G]`: total anchors of the hosts before it."""


def make_plan(
    lengths: Sequence[int], salient: Sequence[int], anchors: Sequence[int], near: Sequence[int], features: Tensor
) -> Plan:
    """The plan for `features [T, N, D]` in segments of the given `lengths`, from three lists of T counts."""
    numbers = count()
    own = [next(numbers) if n else -2 for n in anchors]
    ends = accumulate(lengths)
    here = [[n for n in own[end - length : end] if n >= 0] for length, end in zip(lengths, ends, strict=True)]  # [S]
    most = max(map(len, here))
    hosts = [n for row, length in zip(here, lengths, strict=True) for n in (row + [-1] * (most - len(row))) * length]
    room = [n for n in anchors if n]
    first = list(accumulate(room, initial=0))[:-1]
    lists = [[*salient, *anchors], near, own, hosts, room, first]
    sent = on_device([n for each in lists for n in each], features.device).split([len(each) for each in lists])
    number = torch.arange(max(features.shape[1], len(room)), device=features.device)
    plan = Plan(lengths, [len(row) for row in here], max(anchors), number, *sent)
    return plan._replace(counts=plan.counts.view(2, -1), hosts=plan.hosts.view(len(own), most))


def reduce_segments(
    features: Tensor,
    means: Tensor,
    attention: Tensor,
    lengths: Sequence[int],
    salient: Sequence[int],
    anchors: Sequence[int],
    *,
    beta: float,
    k: int,
    own_anchors: bool,
) -> Reduced:
    """FastVID on `features [T, N, D]`, the frames' `means [T, D]` and `attention [T, N]`.

    `salient` and `anchors`: the counts of each frame. In every anchor frame of its segment, each non-salient token
    joins the anchor of highest cosine. An anchor a that n tokens join becomes w a + (1 - w) mean(joined) with
    w = max(beta, 1 / (n + 1)). `own_anchors`: whether the frame's own anchors join too (each then joins itself).
    """
    near = [min(k, max(1, features.shape[1] - n)) for n in salient]
    plan = make_plan(lengths, salient, anchors, near, features)
    salient_ranks, anchor_ranks = plan.number[: features.shape[1]] < plan.counts.unsqueeze(-1)  # [T, N] both
    is_salient = at_ranks(attention, salient_ranks)  # [T, N]
    score = group_scores(frame_distances(features, means), ~is_salient, plan.near, max(near))
    is_anchor = at_ranks(score, anchor_ranks)
    keep_idx = positions_of(is_salient | is_anchor, sum(salient) + sum(anchors))
    tokens = features.flatten(0, 1)[keep_idx].float()
    if any(anchors):
        merged, anchor = merge_into_anchors(features, is_salient, is_anchor, sum(anchors), plan, beta, own_anchors)
        tokens.index_copy_(0, torch.searchsorted(keep_idx, anchor), merged)
    return Reduced(tokens, keep_idx, is_anchor, is_salient, score)


def merge_into_anchors(
    features: Tensor,
    is_salient: Tensor,
    is_anchor: Tensor,
    count: int,
    plan: Plan,
    beta: float,
    own_anchors: bool,
) -> tuple[Tensor, Tensor]:
    """The `count` merged anchors of `reduce_segments`, float32 `[M, D]`, and their flat positions `[M]`, ascending.

    Arrays are padded to H hosts per frame and A anchors per host.
    """
    features = features.detach()
    slot = plan.number[: plan.slots]  # [A]
    there = slot < plan.room.unsqueeze(1)  # [G, A]
    # Any token will do as padding: the next host's anchors, and -1 after the last host.
    anchor = positions_of(is_anchor, count + plan.slots)
    centre = features.flatten(0, 1)[anchor[plan.first.unsqueeze(1) + slot]]  # [G, A, D]
    similarity = similarity_to_centres(features, centre, plan)  # [T, N, H, A]
    nearest = similarity.masked_fill_(~there[plan.hosts].unsqueeze(1), -torch.inf).argmax(-1)  # [T, N, H]
    nearest.masked_fill_(is_salient.unsqueeze(-1), -1)
    if not own_anchors:
        own = plan.hosts == plan.own.unsqueeze(1)  # [T, H]
        nearest.masked_fill_(is_anchor.unsqueeze(-1) & own.unsqueeze(1), -1)
    joins = (nearest.unsqueeze(-1) == slot).to(features.dtype)  # [T, N, H, A]

    of_host = (plan.hosts.flatten() == plan.number[: len(plan.room)].unsqueeze(1)).float()  # [G, T H]
    joined = (of_host @ joins.sum(1, dtype=torch.float32).flatten(0, 1)).unsqueeze(-1)  # [G, A, 1]
    sums = sums_of_joined(features, joins, of_host, plan)  # [G, A, D]
    weight = (joined + 1).reciprocal_().clamp_min_(beta)
    merged = torch.lerp(sums / joined.clamp_min_(1), centre.float(), weight)
    return merged.flatten(0, 1)[positions_of(there, count)], anchor[:count]


def similarity_to_centres(features: Tensor, centre: Tensor, plan: Plan) -> Tensor:
    """Cosines of every token with the anchors of its segment, `centre [G, A, D]`: `[T, N, H, A]`, float32.

    For half-precision features without division by the length of the token, which does not change the nearest anchor;
    for float32 ones the full cosine, because the official code rounds that way, and rounding decides between near
    copies.
    """
    if features.dtype.itemsize >= 4:
        return products_with_centres(unit(features), unit(centre), plan)
    scale = torch.linalg.vector_norm(centre, dim=2, dtype=torch.float32).clamp_min_(1e-12).reciprocal_()
    return products_with_centres(features, centre, plan).mul_(scale[plan.hosts].unsqueeze(1))


def copies_fit(features: Tensor, plan: Plan) -> bool:
    """Whether every frame may have its own copy of the data of its segment's anchors, `[T, H A, D]`.

    Then one product serves all frames, however many segments there are. Otherwise each segment takes one product.
    """
    return frames_per_chunk(features, plan.hosts.shape[1] * plan.slots) >= len(features)


def products_with_centres(features: Tensor, centre: Tensor, plan: Plan) -> Tensor:
    """Inner products of every token with the anchors of its segment, `centre [G, A, D]`: `[T, N, H, A]`, float32."""
    frames, size, _ = features.shape
    most = plan.hosts.shape[1]
    if copies_fit(features, plan):
        return float_product(features, centre[plan.hosts].flatten(1, 2).mT).view(frames, size, most, plan.slots)
    products = features.new_zeros(frames, size, most, plan.slots, dtype=torch.float32)
    parts = zip(products.split(plan.lengths), features.split(plan.lengths), centre.split(plan.hosts_in), strict=True)
    for product, x, anchors in parts:
        own = product[:, :, : len(anchors)]
        own.copy_(float_product(x.flatten(0, 1), anchors.flatten(0, 1).mT).view(own.shape))
    return products


def sums_of_joined(features: Tensor, joins: Tensor, of_host: Tensor, plan: Plan) -> Tensor:
    """Sums of the tokens that join each anchor by `joins [T, N, H, A]`: `[G, A, D]`, float32."""
    if copies_fit(features, plan):
        partial = float_product(joins.flatten(2).mT, features)  # [T, H A, D]
        return (of_host @ partial.view(of_host.shape[1], -1)).view(-1, plan.slots, features.shape[2])
    parts = zip(joins.split(plan.lengths), features.split(plan.lengths), plan.hosts_in, strict=True)
    sums = [float_product(j[:, :, :h].flatten(0, 1).flatten(1).mT, x.flatten(0, 1)) for j, x, h in parts]
    return torch.cat(sums).view(-1, plan.slots, features.shape[2])


@dataclass(frozen=True)
class FastVID(Method):
    """FastVID (Shen et al., NeurIPS 2025): dynamic density pruning.

    Idea: cut the video into segments of similar frames (DySeg). Per frame, keep the salient tokens by the attention of
    the vision tower's pooling probe (ATS); per segment, let density-peak anchors absorb the remaining tokens (DTM).

    Source: arXiv 2503.11187; LunarShen/FastVID a40a109, versions for LLaVA-OneVision, LLaVA-Video and Qwen2.5-VL
    (`variant`). Parameters: see the fields; use the last version with `tau=0.84`, `frame_source="mean"` and
    `salience="mean_query"`. An anchor that no token joins stays unchanged. `salience="received"` with
    `frame_source="mean"` is our own stand-in for models without the pooling head.
    Quirks kept: in the onevision variant an anchor is also among the tokens averaged into it; the position ids of
    the kept tokens are the original ones.
    Deviations: the budget is met exactly, except with `variant="qwen"` (B/T tokens per frame, remainder to the earliest
    frames, none lost to rounding); a video of fewer than `c` frames is cut everywhere; anchors that their frames have
    no room for (large ratios) move to the segment's other frames. The official code loses tokens in the first case and
    raises in the other two.
    """

    c: int = 8
    """Minimum number of segments."""
    tau: float = 0.9
    """Cut between frames whose cosine is below this; officially 0.84 in the version for Qwen2.5-VL."""
    d: float = 0.4
    """Share of anchors in the budget; the rest are salient tokens."""
    p: int = 4
    """One anchor frame for every p frames of a segment."""
    beta: float = 0.6
    """Least weight of an anchor in its merged token."""
    k: int = 4
    """Nearest neighbours in the density."""
    variant: str = "onevision"
    """Official version: `onevision`, `video` or `qwen`. The first two differ in rounding and in which tokens join an
    anchor. With `qwen`, frames that repeat keep nothing, and the budget is met only approximately."""
    frame_source: str = "head"
    """Frame feature for segmentation: `head`, from the tower's pooling head; `mean`, the frame's mean token."""
    salience: str = "probe"
    """Attention that makes a token salient: `probe`, of the pooling head's probe; `mean_query`, of the frame's mean
    query in the tower's last layer; `received`, from all patches."""
    ignore: float = 0.95
    """Cosine from which frames of a segment count as repeated (only with `variant="qwen"`); above 1: none do."""

    name: ClassVar[str] = "fastvid"
    needs: ClassVar[frozenset[str]] = frozenset({"probe_attention", "frame_features"})
    """For the default options; an instance has those of its own options."""
    stand_ins: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"variant": "qwen", "tau": 0.84, "frame_source": "mean", "salience": "mean_query"},
        {"frame_source": "mean", "salience": "received"},
    )
    finds_faults: ClassVar[bool] = True
    positions: ClassVar[Positions] = "original"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "c", 1, 10_000, integer=True)
        check_range(self, "tau", -1, 1)
        check_range(self, "d", 0, 1)
        check_range(self, "p", 1, 10_000, integer=True)
        check_range(self, "beta", 0, 1)
        check_range(self, "k", 1, 10_000, integer=True)
        check_choice(self, "variant", ("onevision", "video", "qwen"))
        check_choice(self, "frame_source", ("head", "mean"))
        check_choice(self, "salience", tuple(SALIENCE))
        check_range(self, "ignore", -1, 2)
        needs = {SALIENCE[self.salience], *(["frame_features"] if self.frame_source == "head" else [])}
        object.__setattr__(self, "needs", frozenset(needs))
        object.__setattr__(self, "exact", self.variant != "qwen")

    def select(self, tokens: VideoTokens) -> PrunedTokens:
        attention = supplied(tokens, SALIENCE[self.salience])
        means = frame_means(tokens.features)
        frame = supplied(tokens, "frame_features") if self.frame_source == "head" else means
        # A sum propagates NaN and infinities. One read for everything: on a GPU each waits for all work queued before.
        total = torch.cat([x.flatten() for x in (means, attention, frame)]).sum(0, keepdim=True)
        *similarity, checksum = torch.cat([neighbour_cosines(frame), total]).tolist()
        if not isfinite(checksum):
            tokens.require_finite(self.needs, self.name)
        lengths = dynamic_segments(similarity, self.c, self.tau)
        sizes = (lengths, spread(self.budget(tokens), tokens.frames), tokens.tokens_per_frame, self.d, self.p)
        if self.variant == "qwen":
            salient, anchors = token_counts_of_runs(*sizes, similarity, self.ignore)
        else:
            salient, anchors = token_counts(*sizes, self.variant)
        reduced = reduce_segments(
            tokens.features,
            means,
            attention,
            lengths,
            salient,
            anchors,
            beta=self.beta,
            k=self.k,
            own_anchors=self.variant == "onevision",
        )
        notes = {"segment_lengths": lengths, "anchors_per_frame": anchors}
        return PrunedTokens(reduced.tokens.to(tokens.features.dtype), reduced.keep_idx, notes=notes)
