"""VisionZip: keep the tokens that the vision tower attends to, merge the others by their keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from mmg_bench.methods._merge import frame_groups, group_means, in_raster_order, supplied, unit
from mmg_bench.methods._ops import descending, positions_of
from mmg_bench.methods.base import Method, Positions, check_range
from mmg_bench.tokens import PrunedTokens, VideoTokens


class Zipped(NamedTuple):
    """Frames after VisionZip: d dominant tokens in raster order, then c contextual ones."""

    tokens: Tensor
    """`[T, d + c, D]`, float32."""
    by_attention: Tensor
    """`[T, d]`: the dominant tokens within their frame, most attended first."""
    anchors: Tensor
    """`[T, c]`: the contextual anchors within their frame, ascending."""
    assign: Tensor
    """`[T, N]`: the contextual token (0..c-1) that a token was merged into; -1 if it is dominant or dropped."""


def zip_frames(features: Tensor, attention: Tensor, keys: Tensor, dominant: int, contextual: int) -> Zipped:
    """Reduce every frame of `features [T, N, D]` to `dominant + contextual` tokens (at most N).

    Every s-th of the M tokens that are not dominant is an anchor, s = max(1, M // c). Each other one joins the anchor
    with the highest cosine of `keys [T, N, K]`. A contextual token is anchor + mean(joined): a sum, as officially.
    """
    frames, size, _ = features.shape
    rows = torch.arange(frames, device=features.device).unsqueeze(1)  # [T, 1]
    by_attention = descending(attention)[:, :dominant]  # [T, d]
    chosen = by_attention.sort().values
    is_rest = torch.ones_like(attention, dtype=torch.bool).scatter(1, chosen, False)
    rest = positions_of(is_rest, frames * (size - dominant)).view(frames, -1) % size  # [T, M], raster

    step = max(1, rest.shape[1] // max(1, contextual))
    slots = torch.arange(0, rest.shape[1], step, device=features.device)[:contextual]  # [c], places in `rest`
    anchors = rest[:, slots]  # [T, c]
    key = unit(keys)[rows, rest]  # [T, M, K]
    similarity = key @ key[:, slots].mT  # [T, M, c]
    joined = similarity.argmax(-1) if contextual else torch.full_like(rest, -1)  # [T, M]
    joined[:, slots] = -1
    means, _ = group_means(features[rows, rest], joined, contextual)  # [T, c, D]
    merged = features[rows, anchors].float() + means

    joined[:, slots] = torch.arange(len(slots), device=features.device)
    assign = torch.full_like(is_rest, -1, dtype=torch.int64).scatter(1, rest, joined)
    return Zipped(torch.cat([features[rows, chosen].float(), merged], 1), by_attention, anchors, assign)


@dataclass(frozen=True)
class VisionZip(Method):
    """VisionZip (Yang et al., CVPR 2025), in its port to SigLIP towers and video.

    Idea: per frame, keep the tokens that receive most attention in the vision tower (dominant), and merge the others,
    by the similarity of their keys, into evenly spaced anchors (contextual).

    Source: arXiv 2412.04467; dvlab-research/VisionZip 3151f6d, and the video port in cokeshao/HoliTom e9b2972.
    Parameters: see the fields. The frame budgets are B/T tokens, remainder to the earliest frames; int(54/64 * budget)
    tokens of a frame are dominant, the rest contextual. Below one token per frame, later frames have none.
    Quirk kept: a contextual token is a sum, anchor + mean of what it absorbed, so its norm about doubles.
    Deviations: tokens enter the model in raster order (official: dominant ones first); the official newline-grid
    variant, which permutes the dominant tokens among their positions by mistake, is not offered.
    """

    dominant_ratio: float = 54 / 64
    """Share of dominant tokens in a frame's budget."""

    name: ClassVar[str] = "visionzip"
    needs: ClassVar[frozenset[str]] = frozenset({"attention", "keys"})
    positions: ClassVar[Positions] = "contiguous"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "dominant_ratio", 0, 1)

    def select(self, tokens: VideoTokens) -> PrunedTokens:
        attention, keys = supplied(tokens, "attention"), supplied(tokens, "keys")
        flat = torch.arange(tokens.total, device=tokens.features.device).view(tokens.frames, -1)  # [T, N]
        features, positions = [], []
        for run, count in frame_groups(self.budget(tokens), tokens.frames):
            dominant = int(count * self.dominant_ratio)
            zipped = zip_frames(tokens.features[run], attention[run], keys[run], dominant, count - dominant)
            within = torch.cat([zipped.by_attention.sort().values, zipped.anchors], 1)  # [frames of the run, count]
            features.append(zipped.tokens.flatten(0, 1))
            positions.append(flat[run].gather(1, within).flatten())
        return in_raster_order(torch.cat(features), torch.cat(positions), tokens.features)
