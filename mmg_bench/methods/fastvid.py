"""FastVID: dynamic segments, salient tokens by attention, density-based anchors that absorb their segment."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mmg_bench.methods._merge import group_scores, supplied, unit
from mmg_bench.methods._ops import (
    float_product,
    frame_distances,
    frame_means,
    on_device,
    positions_of,
    spread,
    together_on_device,
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


def frame_similarity(frame_features: Tensor) -> Tensor:
    """Cosine similarity of adjacent frames, by their features `[T, C]`: float32 `[T - 1]`."""
    frame = unit(frame_features)
    return (frame[:-1] * frame[1:]).sum(1)


def dynamic_segments(similarity: Sequence[float], c: int, tau: float) -> list[int]:
    """Segment lengths: cut where adjacent frames are less similar than `tau`, and at the c - 1 least similar.

    A video of fewer than `c` frames is cut everywhere (the official code raises there).
    """
    similar = np.array(similarity, np.float32)  # as `tau` is then, too
    cut = similar < tau
    cut[similar.argsort(kind="stable")[: c - 1]] = True
    ends = [0, *(np.flatnonzero(cut) + 1).tolist(), len(similar) + 1]
    return [end - start for start, end in itertools.pairwise(ends)]


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
    """FastVID on `features [T, N, D]`, their frames' `means [T, D]` and `attention [T, N]`.

    `salient` and `anchors`: how many of them in each frame. Anchors are the non-salient tokens of highest DPC-KNN
    score (`k` neighbours) among those of their frame. Every non-salient token of a segment joins, once per anchor
    frame, that frame's anchor of highest cosine; an anchor a becomes w a + (1 - w) mean(joined) with
    w = max(beta, 1 / (n + 1)). `own_anchors`: whether the frame's own anchors join too (each then joins itself).
    """
    near = [max(1, min(k, features.shape[1] - count)) for count in salient]
    counts = on_device([salient, anchors, near], features.device)  # [3, T]
    is_salient = top_mask(attention, counts[0])  # [T, N]
    squared = frame_distances(features, means)  # [T, N, N]
    score = group_scores(squared, ~is_salient, counts[2], max(near))
    is_anchor = top_mask(score, counts[1])
    keep_idx = positions_of(is_salient | is_anchor, sum(salient) + sum(anchors))
    tokens = features.flatten(0, 1)[keep_idx].float()
    if any(anchors):
        anchor = positions_of(is_anchor, sum(anchors))
        merged = merge_into_anchors(features, is_salient, is_anchor, anchor, lengths, anchors, beta, own_anchors)
        tokens[torch.searchsorted(keep_idx, anchor)] = merged
    return Reduced(tokens, keep_idx, is_anchor, is_salient, score)


class Room(NamedTuple):
    """Where the anchors of a video lie: room for H anchor frames in each of S segments (the most that a segment has),
    of A anchors each (the most of a frame). K anchors in all, h of H frames used in a segment; all else int64."""

    shape: tuple[int, int, int]
    """S, H and A."""
    segment: Tensor
    """`[T]`: of each frame."""
    host: Tensor
    """`[T, H]`: anchor frames of its segment; -1: none."""
    used: Tensor
    """`[T, H]`: how many anchors they have."""
    filled: Tensor
    """`[sum of h A]`: which of the K anchors; behind the last of a frame, that again."""
    real: Tensor
    """`[K]`: where each is in `filled`,"""
    place: Tensor
    """and in S H A."""


def room_for_anchors(lengths: Sequence[int], anchors: Sequence[int], device: torch.device) -> tuple[Room, list[int]]:
    """The room that the counts ask for, worked out on the host; and how much of `filled` is each segment's."""
    ends = list(itertools.accumulate(lengths, initial=0))
    hosts = [[t for t in range(*bounds) if anchors[t]] for bounds in itertools.pairwise(ends)]
    most, slots = max(map(len, hosts)), max(anchors)
    segment = np.arange(len(lengths)).repeat(lengths)  # [T]
    host = np.array([here + [-1] * (most - len(here)) for here in hosts])  # [S, H]
    used = np.where(host < 0, 0, np.array(anchors)[host])  # [S, H]
    real = np.arange(slots) < used[..., None]  # [S, H, A]
    of_hosts = real[host >= 0]  # [sum of h, A]
    parts = together_on_device(
        [
            segment,
            host[segment],
            used[segment],
            of_hosts.cumsum() - 1,
            np.flatnonzero(of_hosts),
            np.flatnonzero(real),
        ],
        device,
    )
    return Room((len(lengths), most, slots), *parts), [len(here) * slots for here in hosts]


def merge_into_anchors(
    features: Tensor,
    is_salient: Tensor,
    is_anchor: Tensor,
    anchor: Tensor,
    lengths: Sequence[int],
    anchors: Sequence[int],
    beta: float,
    own_anchors: bool,
) -> Tensor:
    """The merged anchors of `reduce_segments` in raster order, float32 `[K, D]`; `anchor` `[K]`: where they are.

    Only the two matrix products go segment by segment; between them every frame has room for the same number.
    """
    frames, size, _ = features.shape
    room, widths = room_for_anchors(lengths, anchors, features.device)
    segments, most, slots = room.shape
    flat = features.detach().flatten(0, 1)  # [TN, D]
    sizes = [length * size for length in lengths]
    centres = flat[anchor[room.filled]]  # [sum of h A, D]
    parts = list(zip(flat.split(sizes), centres.split(widths), strict=True))  # of each segment

    # Cosines but for the length of the joining token, which does not change what is nearest.
    scale = torch.linalg.vector_norm(centres, dim=1, dtype=torch.float32).clamp_min(1e-12).reciprocal()
    similarity = scale.new_empty(len(flat), most * slots)
    for (x, centre), factor, out in zip(parts, scale.split(widths), similarity.split(sizes), strict=True):
        torch.mul(float_product(x, centre.mT), factor, out=out[:, : len(centre)])
    similarity = similarity.view(frames, size, most, slots)
    slot = torch.arange(slots, device=flat.device)
    empty = slot >= room.used.unsqueeze(-1)  # [T, H, A]
    nearest = similarity.masked_fill_(empty.unsqueeze(1), -torch.inf).argmax(-1)  # [T, N, H]
    nearest.masked_fill_(is_salient.unsqueeze(-1), -1)
    if not own_anchors:
        own = room.host == torch.arange(frames, device=flat.device).unsqueeze(1)  # [T, H]
        nearest.masked_fill_(is_anchor.unsqueeze(-1) & own.unsqueeze(1), -1)
    members = (nearest.unsqueeze(-1) == slot).to(flat.dtype)  # [T, N, H, A]; where there is no host, of nothing

    joined = members.sum(1, dtype=torch.float32).flatten(1)  # [T, H A]
    joined = joined.new_zeros(segments, most * slots).index_add_(0, room.segment, joined)  # [S, H A]
    count = joined.flatten()[room.place].unsqueeze(1)  # [K, 1]
    by_token = members.view(len(flat), -1).split(sizes)
    sums = [float_product(m[:, : len(centre)].mT, x) for m, (x, centre) in zip(by_token, parts, strict=True)]
    mean = torch.cat(sums)[room.real].div_(count.clamp_min(1))  # [K, D]
    weight = (count + 1).reciprocal_().clamp_min_(beta)
    return torch.lerp(mean, flat[anchor].float(), weight)


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
        check_choice(self, "variant", ("onevision", "video"))
        check_choice(self, "frame_source", ("head", "mean"))
        check_choice(self, "salience", ("probe", "received"))
        needs = {self._attention, *(["frame_features"] if self.frame_source == "head" else [])}
        object.__setattr__(self, "needs", frozenset(needs))

    @property
    def _attention(self) -> str:
        return "probe_attention" if self.salience == "probe" else "attention"

    def select(self, tokens: VideoTokens) -> PrunedTokens:
        means, attention = frame_means(tokens.features), supplied(tokens, self._attention)
        frame = supplied(tokens, "frame_features") if self.frame_source == "head" else means
        # Sums carry NaN and infinities along. All is read at once: on a GPU every read waits for the work before it.
        sums = torch.stack([values.sum(dtype=torch.float32) for values in (means, attention, frame)])
        *similarity, of_means, of_attention, of_frames = torch.cat([frame_similarity(frame), sums]).tolist()
        if not math.isfinite(of_means + of_attention + of_frames):
            tokens.require_finite(self.needs, self.name)
        lengths = dynamic_segments(similarity, self.c, self.tau)
        budgets = spread(self.budget(tokens), tokens.frames)
        salient, anchors = token_counts(lengths, budgets, tokens.tokens_per_frame, self.d, self.p, self.variant)
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
