"""FlashVID: keep attended, diverse tokens; merge the others along trees within each segment, then by clusters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mmg_bench.methods._greedy import cosine_distances, max_min_selection
from mmg_bench.methods._inside import check_layer, layers_at, most_attended
from mmg_bench.methods._merge import group_means, group_scores, nearest_centres, neighbour_cosines, supplied, unit
from mmg_bench.methods._ops import descending, first_of_rows, frame_means, on_device, squared_distances
from mmg_bench.methods.base import Method, Positions, check_choice, check_flag, check_range
from mmg_bench.tokens import LayerTokens, PrunedTokens, Selection, VideoTokens, keep

PRUNING_LAYER, OFFICIAL_DEPTH = 20, 28
NEIGHBOURS = 7
"""k of DPC-KNN; fewer if there are fewer clusters."""


class Budgets(NamedTuple):
    """Tokens per frame, on average over a segment."""

    total: int
    adts: int
    tstm: int


def frame_budgets(tokens_per_frame: int, retention_ratio: float, expansion: float, alpha: float) -> Budgets:
    """B = ceil(N * R * expansion), at most N; ceil(alpha * B) of them are selected (ADTS), the rest merged (TSTM)."""
    total = min(tokens_per_frame, math.ceil(tokens_per_frame * retention_ratio * expansion))
    adts = math.ceil(total * alpha)
    return Budgets(total, adts, total - adts)


def segment_lengths(features: Tensor, threshold: float, min_segments: int) -> list[int]:
    """Lengths of the segments of `[T, N, D]`: cut where neighbouring frame means have a cosine below `threshold`.

    The next lowest cosines are cut too, until there are `min_segments` segments (or as many as frames).
    """
    means = features.mean(1, dtype=torch.float32)  # rounds like the official code, which matters for near copies
    similarity = neighbour_cosines(means).cpu()  # [T - 1]
    cut = similarity < threshold
    missing = max(0, min_segments - 1 - int(cut.sum()))
    cut[descending(-similarity.masked_fill(cut, torch.inf))[:missing]] = True
    ends = [*(cut.nonzero().squeeze(1) + 1).tolist(), len(features)]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def by_segment(values: Tensor, lengths: list[int]) -> Tensor:
    """Mean over the frames of each segment, repeated for each frame: `[T, ...]` to `[T, ...]`."""
    segment = [s for s, length in enumerate(lengths) for _ in range(length)]  # [T]
    return torch.stack([part.mean(0) for part in values.split(lengths)])[on_device(segment, values.device)]


def adts(features: Tensor, attention: Tensor, lengths: list[int], count: int, method: str) -> Tensor:
    """Attention and diversity based token selection: `count` of each frame, within-frame `[T, count]`, ascending.

    Max-min selection, where a candidate's distances are scaled by its attention and, in `attn_div_v2`, also by its mean
    dot product with the frame means of its segment. In that mode picks are not masked, so a candidate with a negative
    dot product can make the search pick a token twice.
    """
    x = features.float()
    distance = cosine_distances(unit(x)) * (attention.float() * 1e6).unsqueeze(1)  # [T, N, N], columns scaled
    if method == "attn_div":
        return max_min_selection(distance, count, chosen=-1.0).sort().values
    relevance = (x @ by_segment(frame_means(features), lengths).unsqueeze(-1)).squeeze(-1)  # [T, N]
    return max_min_selection(distance * relevance.unsqueeze(1), count, chosen=None).sort().values


def temporal_trees(
    features: Tensor, selected: Tensor, lengths: list[int], budget: int, threshold: float
) -> tuple[Tensor, Tensor]:
    """Merge the tokens that were not `selected [T, N]` backwards in time, within segments.

    Each joins its most similar token in the frame before if their cosine exceeds `threshold`, which is raised per
    segment so that `budget` tokens per frame remain, selected ones included. Returns the tokens `[T, N, D]` and, on
    the CPU, a mask `[T, N]` of the unmerged tokens that are not selected (all tokens in a segment of one frame).
    A token passes on its sum but counts as 1 for its parent. This is official, and inflates the norm of long chains.
    """
    values = features.detach().to(torch.float32, copy=True)
    x = unit(values)
    cosine = x[1:] @ x[:-1].mT  # [T - 1, N, N]
    cosine = cosine.masked_fill_(selected[1:, :, None] | selected[:-1, None, :], -1)
    similarity, parent = cosine.max(-1)  # [T - 1, N] both
    # [2, T, N]; frame 0 has no parents. The host decides what merges; this is its only read here.
    best, chosen = torch.stack([F.pad(similarity, (0, 0, 1, 0), value=-1), selected.float()]).cpu().unbind()
    is_merged, is_left = allowed_merges(best, chosen > 0, lengths, budget, threshold)
    merges = is_merged.to(values.device, non_blocking=True)

    # One-hot [T - 1, parents, children], so that one matrix product sums a frame's children.
    places = torch.arange(selected.shape[1], device=values.device)
    joins = ((places.unsqueeze(1) == parent.unsqueeze(1)) & merges[1:].unsqueeze(1)).float()
    for t in range(len(values) - 1, 0, -1):
        values[t - 1].addmm_(joins[t - 1], values[t])
    count = 1 + F.pad(joins.sum(-1), (0, 0, 0, 1))  # [T, N]; the last frame has no children
    values /= count.masked_fill_(merges, 1).unsqueeze(-1)
    return values, is_left


def allowed_merges(
    best: Tensor, selected: Tensor, lengths: list[int], budget: int, threshold: float
) -> tuple[Tensor, Tensor]:
    """Which tokens join one of the frame before, and which remain to be clustered: both bool `[T, N]`, on the CPU.

    `best [T, N]`: cosine with the most similar token of the frame before.
    """
    merged, left = [], []
    for similarity, chosen in zip(best.split(lengths), selected.split(lengths), strict=True):
        similarity = similarity.clone()
        similarity[0] = -1  # the first frame of a segment has no parents
        merges = similarity > threshold
        surplus = similarity.numel() - budget * len(similarity)
        if int(merges.sum()) > surplus:
            cutoff = similarity.flatten().sort(descending=True).values[surplus - 1] if surplus else torch.inf
            merges = similarity > max(float(cutoff), -1 + 1e-6)
        merged.append(merges)
        left.append(~merges & ~chosen if len(chosen) > 1 else torch.ones_like(chosen))
    return torch.cat(merged), torch.cat(left)


def cluster(values: Tensor, valid: Tensor, counts: Sequence[int]) -> tuple[Tensor, Tensor]:
    """DPC-KNN in all frames at once: merge the `valid [T, N]` tokens of `[T, N, D]` into `counts [T]` means per frame.

    Returns the means `[K, D]`, frame by frame in descending score, and the flat indices `[K]` of their centres.
    With one cluster (k = 1) all scores tie, and the first token is the centre; with two (k = 2), mutual nearest
    neighbours tie.
    """
    frames, size, channels = values.shape
    count = on_device(counts, values.device).unsqueeze(1)  # [T, 1]
    squared = squared_distances(values) / channels  # [T, N, N]
    score = group_scores(squared, valid, count.squeeze(1).clamp(1, NEIGHBOURS), min(NEIGHBOURS, size))
    centres, label = nearest_centres(squared, score, valid, count, max(counts))  # [T, C], [T, N]
    means, _ = group_means(values, label, max(counts))  # [T, C, D]
    first = size * torch.arange(frames, device=values.device).unsqueeze(1)
    row = first_of_rows(counts, values.device)
    return means.flatten(0, 1)[row], (centres + first).flatten()[row]


class Compressed(NamedTuple):
    """Result of both stages on a video."""

    tokens: Tensor
    """`[K, D]` in ascending order of `anchors`, float32."""
    anchors: Tensor
    """`[K]`: flat indices, ascending; a segment of one frame clusters its selected tokens too, so one can repeat."""
    adts: Tensor
    """`[T, A]`: the selected tokens, flat indices."""
    left: Tensor
    """`[T]`: number of tokens of each frame that were clustered; on the CPU."""


def compress(
    features: Tensor, attention: Tensor, lengths: list[int], budgets: Budgets, threshold: float, method: str
) -> Compressed:
    """Select and merge the tokens of `[T, N, D]` segment by segment."""
    frames, size, _ = features.shape
    within = adts(features, attention, lengths, budgets.adts, method)  # [T, A]
    flat = torch.arange(frames * size, device=features.device).view(frames, size)
    chosen = flat.gather(1, within)
    tokens, anchors = features.flatten(0, 1)[chosen.flatten()].float(), chosen.flatten()
    left = torch.zeros(frames, dtype=torch.int64)
    if budgets.tstm:
        selected = torch.zeros_like(flat, dtype=torch.bool).scatter(1, within, True)
        values, valid = temporal_trees(features, selected, lengths, budgets.total, threshold)
        left = valid.sum(1)
        counts: list[int] = []
        for part in left.split(lengths):
            ratio = min(1, budgets.tstm * len(part) / int(part.sum()))
            counts += [math.ceil(n * ratio) for n in part.tolist()]
        means, centres = cluster(values, valid.to(features.device, non_blocking=True), counts)
        tokens, anchors = torch.cat([tokens, means]), torch.cat([anchors, centres])
    anchors, order = anchors.sort(stable=True)
    return Compressed(tokens[order], anchors, chosen, left)


def second_stage(attention: Tensor, llm_retention_ratio: float) -> Tensor:
    """The ceil(n * ratio) most attended of n visual tokens inside the language model: ascending indices into `[n]`.

    `attention [n]`: from the last prompt token, averaged over heads, in the layer before (officially 19).
    """
    return most_attended(attention, math.ceil(len(attention) * llm_retention_ratio))


@dataclass(frozen=True)
class FlashVID(Method):
    """FlashVID (ICLR 2026).

    Idea: cut the video into segments of similar frames. In each frame, select tokens that are attended, relevant to
    the segment and diverse (ADTS); merge the others with the frame before, in trees through the segment, and cluster
    the remaining tokens of each frame (TSTM). Late in the language model, keep the tokens that the last one attends to.

    Source: arXiv 2602.08024; Fanziyang-v/FlashVID 1d37422. Parameters: see the fields, with the official defaults.
    `retention_ratio` is the mean over 28 layers: 1.25 times as many tokens enter layer 0, and 30 % of these layer 20.
    With `inner=false`, set `expansion=1`.
    Not exact: frame and cluster counts are rounded up, and every frame keeps at least one token.
    Quirks kept: chains of merges inflate norms; in a segment of one frame the selected tokens are clustered as well,
    so a position can appear twice; `attn_div_v2` does not mask its picks.
    Deviations: no segments without frames (the official code makes them for short videos); float32 throughout;
    nothing is random; a budget of all tokens leaves them unchanged (officially an error).
    """

    expansion: float = 1.25
    """Factor on the frame budget, compensated by the stage inside the language model."""
    alpha: float = 0.7
    """Share of the budget that is selected (ADTS); the rest is for merged tokens (TSTM)."""
    token_selection_method: str = "attn_div_v2"
    """`attn_div_v2` (attention, relevance to the segment and diversity), or `attn_div` (attention and diversity)."""
    temporal_threshold: float = 0.8
    """Cosine above which a token joins one of the frame before."""
    segment_threshold: float = 0.9
    """Cosine of neighbouring frame means below which the video is cut."""
    min_segment_num: int = 8
    """Minimum number of segments, if there are enough frames."""
    inner: bool = True
    """Whether to prune inside the language model too."""
    llm_retention_ratio: float = 0.3
    """Share of the tokens that are kept there."""
    pruning_layer: int | None = None
    """Layer before which `inner` prunes: officially 20 of 28, or 28 of 36 for Qwen3-VL. None: 20/28 of the depth."""

    name: ClassVar[str] = "flashvid"
    needs: ClassVar[frozenset[str]] = frozenset({"attention"})
    positions: ClassVar[Positions] = "contiguous"
    inside_positions: ClassVar[Positions] = "original"
    exact: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "expansion", 0, 10**6, low_open=True)
        check_range(self, "alpha", 0, 1)
        check_choice(self, "token_selection_method", ("attn_div_v2", "attn_div"))
        check_range(self, "temporal_threshold", -1, 1)
        check_range(self, "segment_threshold", -1, 1)
        check_range(self, "min_segment_num", 1, 2**31, integer=True)
        check_range(self, "llm_retention_ratio", 0, 1, low_open=True)
        check_flag(self, "inner")
        if self.pruning_layer is not None:
            check_range(self, "pruning_layer", 1, 10_000, integer=True)

    def select(self, tokens: VideoTokens) -> PrunedTokens:
        lengths = segment_lengths(tokens.features, self.segment_threshold, self.min_segment_num)
        budgets = frame_budgets(tokens.tokens_per_frame, self.retention_ratio, self.expansion, self.alpha)
        if budgets.total >= tokens.tokens_per_frame:
            return keep(tokens, torch.arange(tokens.total, device=tokens.features.device), segments=lengths)
        out = compress(
            tokens.features,
            supplied(tokens, "attention"),
            lengths,
            budgets,
            self.temporal_threshold,
            self.token_selection_method,
        )
        notes = {"segments": lengths, "budgets": budgets._asdict()}
        return PrunedTokens(out.tokens.to(tokens.features.dtype), out.anchors, notes=notes)

    def layers(self, depth: int) -> tuple[int, ...]:
        if not self.inner:
            return ()
        if self.pruning_layer is None:
            return layers_at([PRUNING_LAYER], OFFICIAL_DEPTH, depth)
        return (check_layer(self, "pruning_layer", depth),)

    def select_inside(self, tokens: LayerTokens) -> Selection:
        return Selection(second_stage(tokens.attention()[:, 0].mean(0), self.llm_retention_ratio))
