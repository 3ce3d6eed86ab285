"""FastVID: dynamic segments, salient tokens by attention, density-based anchors that absorb their segment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from mmg_bench.methods._merge import group_scores, supplied, unit
from mmg_bench.methods._ops import (
    float_product,
    frame_means,
    on_device,
    positions_of,
    spread,
    squared_distances,
    top_mask,
)
from mmg_bench.methods.base import Method, Positions, check_choice, check_range
from mmg_bench.tokens import PrunedTokens, VideoTokens


class Reduced(NamedTuple):
    """A video after FastVID."""

    tokens: Tensor
    """`[K, D]`, float32."""
    keep_idx: Tensor
    """`[K]`: flat positions, ascending."""
    is_anchor: Tensor
    """`[T, N]` bool: anchors, the merged tokens."""
    is_salient: Tensor
    """`[T, N]` bool: tokens kept as they are."""
    density_score: Tensor
    """`[T, N]`: log(rho * delta) among a frame's non-salient tokens; -inf at salient ones."""


def dynamic_segments(frame_features: Tensor, c: int, tau: float) -> list[int]:
    """Segment lengths: cut where adjacent `[T, C]` frames are less similar than `tau`, and at the c - 1 least similar.

    A video of fewer than `c` frames is cut everywhere (the official code raises there).
    """
    frame = unit(frame_features)
    similarity = (frame[:-1] * frame[1:]).sum(1)  # [T - 1]
    cut = similarity < tau
    cut[similarity.argsort(stable=True)[: c - 1]] = True
    ends = [t + 1 for t, is_cut in enumerate(cut.tolist()) if is_cut]
    return [end - start for start, end in zip([0, *ends], [*ends, len(frame)], strict=True)]


def token_counts(
    lengths: Sequence[int],
    budgets: Sequence[int],
    size: int,
    d: float,
    p: int,
    variant: str,
    keep_remainder: bool = True,
) -> tuple[list[int], list[int]]:
    """Salient tokens and anchors of every frame: two lists of T counts.

    `budgets`: tokens to keep per frame, of `size`. The share `d` of a segment's budget are anchors, which sit in every
    p-th frame, counted back from the segment's last. `variant` onevision rounds the share per frame, video per segment.
    Anchors that do not divide evenly go to the last anchor frames; those that a frame has no room for to the
    segment's other frames. `keep_remainder=False` drops the former, as the official onevision code does.
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


def density_scores(features: Tensor, free: Tensor, k: int) -> Tensor:
    """Log DPC-KNN scores of the `free` (`[T, N]` bool) tokens of each frame among themselves, -inf elsewhere."""
    squared = squared_distances(features) / features.shape[-1]  # [T, N, N]
    return group_scores(squared, free, free.sum(1).clamp(1, k), min(k, features.shape[1]))


def reduce_segments(
    features: Tensor,
    attention: Tensor,
    lengths: Sequence[int],
    salient: Sequence[int],
    anchors: Sequence[int],
    *,
    beta: float,
    k: int,
    own_anchors: bool,
) -> Reduced:
    """FastVID on `features [T, N, D]` and `attention [T, N]`, with the `salient` and `anchors` counts of each frame.

    Every non-salient token of a segment joins, once per anchor frame, that frame's anchor of highest cosine; an
    anchor a becomes w a + (1 - w) mean(joined) with w = max(beta, 1 / (n + 1)). `own_anchors`: whether the frame's own
    anchors join too (each then joins itself).
    """
    counts = on_device([salient, anchors], features.device)  # [2, T]
    is_salient = top_mask(attention, counts[0])  # [T, N]
    score = density_scores(features, ~is_salient, k)
    is_anchor = top_mask(score, counts[1])
    keep_idx = positions_of(is_salient | is_anchor, sum(salient) + sum(anchors))
    tokens = features.flatten(0, 1)[keep_idx].float()
    if any(anchors):
        merged = merge_into_anchors(features, is_salient, is_anchor, lengths, anchors, beta, own_anchors)
        tokens[positions_of(is_anchor.flatten()[keep_idx], len(merged))] = merged
    return Reduced(tokens, keep_idx, is_anchor, is_salient, score)


def merge_into_anchors(
    features: Tensor,
    is_salient: Tensor,
    is_anchor: Tensor,
    lengths: Sequence[int],
    anchors: Sequence[int],
    beta: float,
    own_anchors: bool,
) -> Tensor:
    """The merged anchors of `reduce_segments` in raster order, float32 `[sum(anchors), D]`.

    Only the two matrix products go segment by segment; between them every frame has room for H anchor frames (the
    most that a segment has, h of them used) of A anchors each (the most of a frame).
    """
    frames, size, _ = features.shape
    device = features.device
    hosts: list[list[int]] = []  # anchor frames of each segment
    for length in lengths:
        start = sum(lengths[: len(hosts)])
        hosts.append([t for t in range(start, start + length) if anchors[t]])
    segment = [s for s, length in enumerate(lengths) for _ in range(length)]  # [T]
    most, slots = max(map(len, hosts)), max(anchors)  # H, A
    host = on_device([hosts[s] + [-1] * (most - len(hosts[s])) for s in segment], device)  # [T, H], -1: none
    room = on_device([[anchors[t] for t in here] + [0] * (most - len(here)) for here in hosts], device)  # [S, H]
    every = [t for here in hosts for t in here]  # h_total = sum of h
    first = [sum(anchors[:t]) for t in every]
    used = on_device([i * slots + a for i, t in enumerate(every) for a in range(anchors[t])], device)  # [sum(anchors)]
    padded = [[f + min(a, anchors[t] - 1) for a in range(slots)] for t, f in zip(every, first, strict=True)]

    flat = features.detach().flatten(0, 1)  # [TN, D]
    anchor = positions_of(is_anchor, sum(anchors))
    centres = flat[anchor[on_device(padded, device)].flatten()]  # [h_total * A, D]
    scale = 1 / torch.linalg.vector_norm(centres, dim=1, dtype=torch.float32).clamp_min(1e-12)
    of_frame = on_device(segment, device)
    there = torch.arange(slots, device=device) < room[of_frame].unsqueeze(-1)  # [T, H, A]

    # Cosines but for the length of the joining token, which does not change what is nearest.
    similarity = torch.empty(len(flat), most * slots, device=device)
    parts: list[tuple[slice, slice]] = []  # tokens and anchors of each segment
    token = row = 0
    for length, here in zip(lengths, hosts, strict=True):
        parts.append((slice(token, token + length * size), slice(row, row + len(here) * slots)))
        token, row = parts[-1][0].stop, parts[-1][1].stop
    for tokens, rows in parts:
        product = float_product(flat[tokens], centres[rows].mT)  # [s N, h A]
        torch.mul(product, scale[rows], out=similarity[tokens, : product.shape[1]])
    similarity = similarity.view(frames, size, most, slots).masked_fill_(~there.unsqueeze(1), -torch.inf)
    nearest = similarity.argmax(-1, keepdim=True)  # [T, N, H, 1]
    joins = ~is_salient.unsqueeze(-1) & (host >= 0).unsqueeze(1)  # [T, N, H]
    if not own_anchors:
        own = host == torch.arange(frames, device=device).unsqueeze(1)  # [T, H]
        joins &= ~(is_anchor.unsqueeze(-1) & own.unsqueeze(1))
    members = torch.zeros(similarity.shape, dtype=flat.dtype, device=device)
    members.scatter_(-1, nearest, joins.unsqueeze(-1).to(flat.dtype))  # [T, N, H, A]

    joined = members.sum(1, dtype=torch.float32).flatten(1)  # [T, H A]
    joined = joined.new_zeros(len(lengths), joined.shape[1]).index_add_(0, of_frame, joined)  # [S, H A]
    by_token = members.view(len(flat), -1)  # [TN, H A]
    sums = torch.cat(
        [float_product(by_token[tokens, : rows.stop - rows.start].mT, flat[tokens]) for tokens, rows in parts]
    )  # [h_total * A, D]
    count = torch.cat([row[: rows.stop - rows.start] for row, (_, rows) in zip(joined, parts, strict=True)])
    sums, count, centre = sums[used], count[used].unsqueeze(1), centres[used].float()
    weight = (1 / (count + 1)).clamp_min(beta)
    return weight * centre + (1 - weight) * (sums / count.clamp_min(1))


@dataclass(frozen=True)
class FastVID(Method):
    """FastVID (Shen et al., 2025): dynamic density pruning.

    Idea: cut the video into segments of similar frames (DySeg); per frame keep the salient tokens by the attention of
    the vision tower's pooling probe (ATS); per segment let density-peak anchors absorb the remaining tokens (DTM).

    Source: arXiv 2503.11187; LunarShen/FastVID a40a109, versions for LLaVA-OneVision and LLaVA-Video (`variant`).
    Parameters: see the fields. An anchor that no token joins stays as it is. `frame_source="mean"` and
    `salience="received"` are stand-ins of ours for models without the pooling head.
    Quirks kept: in the onevision variant an anchor is also among the tokens averaged into it; the position ids of
    the kept tokens are the original ones.
    Deviations: the budget is met exactly (B/T tokens a frame, remainder to the earliest frames, none lost to
    rounding); a video of fewer than `c` frames is cut everywhere; anchors that their frames have no room for (large
    ratios) move to the segment's other frames. The official code loses tokens in the first case and raises in the
    other two.
    """

    c: int = 8
    """Minimum number of segments."""
    tau: float = 0.9
    """Cut between frames whose cosine is below this (0.84 in the official Qwen2.5-VL version)."""
    d: float = 0.4
    """Share of anchors in the budget; the rest are salient tokens."""
    p: int = 4
    """One anchor frame for every p frames of a segment."""
    beta: float = 0.6
    """Least weight of an anchor in its merged token."""
    k: int = 4
    """Nearest neighbours in the density."""
    variant: str = "onevision"
    """`onevision` or `video`: which official version; they differ in rounding and in which tokens join an anchor."""
    frame_source: str = "head"
    """What segments compare: `head`, the frame feature of the tower's pooling head; `mean`, the frame's mean token."""
    salience: str = "probe"
    """Attention that makes a token salient: `probe`, of the pooling head's probe; `received`, from all patches."""

    name: ClassVar[str] = "fastvid"
    needs: ClassVar[frozenset[str]] = frozenset({"probe_attention", "frame_features"})
    """Of the defaults; an instance has those of its options."""
    positions: ClassVar[Positions] = "original"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "c", 1, 10_000, integer=True)
        check_range(self, "tau", -1, 1)
        check_range(self, "d", 0, 1)
        check_range(self, "p", 1, 10_000, integer=True)
        check_range(self, "beta", 0, 1)
        check_range(self, "k", 1, 10_000, integer=True)
        check_choice(self, "variant", ("onevision", "video"))
        check_choice(self, "frame_source", ("head", "mean"))
        check_choice(self, "salience", ("probe", "received"))
        needs = {self._attention, *(["frame_features"] if self.frame_source == "head" else [])}
        object.__setattr__(self, "needs", frozenset(needs))

    @property
    def _attention(self) -> str:
        return "probe_attention" if self.salience == "probe" else "attention"

    def select(self, tokens: VideoTokens) -> PrunedTokens:
        frame = supplied(tokens, "frame_features") if self.frame_source == "head" else frame_means(tokens.features)
        lengths = dynamic_segments(frame, self.c, self.tau)
        budgets = spread(self.budget(tokens), tokens.frames)
        salient, anchors = token_counts(lengths, budgets, tokens.tokens_per_frame, self.d, self.p, self.variant)
        reduced = reduce_segments(
            tokens.features,
            supplied(tokens, self._attention),
            lengths,
            salient,
            anchors,
            beta=self.beta,
            k=self.k,
            own_anchors=self.variant == "onevision",
        )
        notes = {"segment_lengths": lengths, "anchors_per_frame": anchors}
        return PrunedTokens(reduced.tokens.to(tokens.features.dtype), reduced.keep_idx, notes=notes)
