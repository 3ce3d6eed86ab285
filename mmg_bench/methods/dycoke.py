"""DyCoke, stage 1 (temporal token merging): drop the tokens that repeat an earlier frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mmg_bench.methods._merge import unit
from mmg_bench.methods._ops import spread
from mmg_bench.methods.base import Method, Positions
from mmg_bench.tokens import PrunedTokens, VideoTokens, keep


def references(frames: int) -> list[int]:
    """The frame that each frame is compared with; a frame kept whole refers to itself.

    Frame 2i + 1 refers to 2i; and of each group of four, 0, 1, 2, 3, but the last, frame 2 refers to frame 0.
    """
    refers = [t - 1 if t % 2 else t for t in range(frames)]
    for first in range(0, frames - 4, 4):
        refers[first + 2] = first
    return refers


def least_similar_first(features: Tensor, refers: Sequence[int]) -> Tensor:
    """Order of each frame's tokens by cosine with the same position of the frame it refers to: `[T, N]`, ascending.

    Equal similarities by the lower index; a frame that refers to itself is in raster order.
    """
    direction = unit(features)
    refer = torch.tensor(refers, device=features.device)
    similarity = (direction * direction[refer]).sum(-1)  # [T, N]
    similarity[refer == torch.arange(len(refers), device=features.device)] = 0
    return similarity.argsort(dim=-1, stable=True)


def temporal_merge(features: Tensor, counts: Sequence[int], refers: Sequence[int]) -> Tensor:
    """Flat positions kept of `features [T, N, D]`: `counts[t]` tokens of frame t, least similar first: `[K]`."""
    order = least_similar_first(features, refers)
    frames, size = order.shape
    flat = order + torch.arange(frames, device=order.device).unsqueeze(1) * size
    kept = torch.arange(size, device=order.device) < torch.tensor(counts, device=order.device).unsqueeze(1)  # [T, N]
    return flat[kept]


@dataclass(frozen=True)
class DyCoke(Method):
    """DyCoke (Tao et al., CVPR 2025), its temporal token merging before the language model.

    Idea: in groups of four frames keep the first whole; of the second, third and fourth keep the tokens least
    similar to the same position of frame 1 or 3.

    Source: arXiv 2411.15024; KD-TAO/DyCoke dd74634 (dycole_ttm). Stage 2, the dynamic key-value cache while
    decoding, is not part of this method.
    Parameters: none but `retention_ratio`. The official knob is k, the share dropped of a reduced frame; here the
    reduced frames share what the whole ones leave of the budget, remainder to the earliest.
    Quirks kept: the third frame of the last group stays whole.
    Deviations: kept tokens enter the model in raster order (official: by ascending similarity within a reduced
    frame); the last frame of an odd number is kept whole (official: dropped), and videos of up to four frames are
    reduced within their pairs (official: an error).
    """

    name: ClassVar[str] = "dycoke"
    positions: ClassVar[Positions] = "contiguous"
    exact: ClassVar[bool] = False
    """Whole frames are never reduced: not below about a quarter (3/8 at eight frames, all at one)."""

    def select(self, tokens: VideoTokens) -> PrunedTokens:
        size = tokens.tokens_per_frame
        refers = references(tokens.frames)
        reduced = [t for t, refer in enumerate(refers) if refer != t]
        counts = [size] * tokens.frames
        budget = max(0, self.budget(tokens) - size * (tokens.frames - len(reduced)))
        for t, count in zip(reduced, spread(budget, len(reduced)) if reduced else [], strict=True):
            counts[t] = count
        return keep(tokens, temporal_merge(tokens.features, counts, refers))
