"""DyCoke: drop tokens that repeat an earlier frame, and see only some visual keys while decoding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mmg_bench.methods._inside import check_layer, most_attended
from mmg_bench.methods._merge import unit
from mmg_bench.methods._ops import on_device, positions_of, spread
from mmg_bench.methods.base import Method, Positions, check_flag, check_range
from mmg_bench.tokens import PrunedTokens, VideoTokens, keep


def references(frames: int) -> list[int]:
    """The frame that each frame is compared with; a frame kept whole refers to itself.

    Frame 2i + 1 refers to 2i. In each group of four, 0, 1, 2, 3, except the last group, frame 2 refers to frame 0.
    """
    refers = [t - 1 if t % 2 else t for t in range(frames)]
    for first in range(0, frames - 4, 4):
        refers[first + 2] = first
    return refers


def least_similar_first(features: Tensor, refers: Sequence[int]) -> Tensor:
    """Order of each frame's tokens by cosine with the same position of the frame it refers to: `[T, N]`, ascending.

    Ties by the lower index; a frame that refers to itself is in raster order.
    """
    x = features.detach().float()
    similarity = x.new_zeros(x.shape[:2])  # [T, N]
    # As the official code, to the last bit: only vectors of pairs are normalised before the cosine.
    for odd, vectors in ((1, unit(x)), (0, x)):
        if reduced := [t for t, refer in enumerate(refers) if refer != t and t % 2 == odd]:
            at, refer = on_device([*reduced, *(refers[t] for t in reduced)], x.device).chunk(2)
            similarity[at] = torch.cosine_similarity(vectors[at], vectors[refer], dim=-1)
    return similarity.argsort(dim=-1, stable=True)


def temporal_merge(features: Tensor, counts: Sequence[int], refers: Sequence[int]) -> Tensor:
    """Flat positions `[K]` to keep of `features [T, N, D]`: `counts[t]` tokens of frame t, least similar first."""
    order = least_similar_first(features, refers)
    frames, size = order.shape
    flat = order + torch.arange(frames, device=order.device).unsqueeze(1) * size
    kept = torch.arange(size, device=order.device) < on_device(counts, order.device).unsqueeze(1)  # [T, N], by rank
    return flat.flatten()[positions_of(kept, sum(counts))]


def similarity(attention: Tensor, memory: Tensor) -> Tensor:
    """Cosine between the attention `[n]` of two decoding steps."""
    return torch.cosine_similarity(attention.float(), memory.float(), dim=0)


@dataclass(frozen=True)
class DyCoke(Method):
    """DyCoke (Tao et al., CVPR 2025).

    Idea: in groups of four frames, keep the first whole; of the second, third and fourth, keep the tokens least
    similar to the same position of frame 1 or 3. While decoding, layers from the fourth on see only the visual keys
    that the current token attends to most in the layer before, whenever that attention has changed since the last step.

    Source: arXiv 2411.15024; KD-TAO/DyCoke dd74634 (dycole_ttm, PrunableDynamicCache). `retention_ratio` is the share
    that the first stage keeps; `inner=false` switches off the second, which removes no token from the cache.
    Parameters: see the fields. The official knob of stage 1 is k, the share dropped from a reduced frame; here the
    reduced frames share the budget that the whole ones leave, remainder to the earliest.
    Quirks kept: the third frame of the last group stays whole; a decoding step whose attention resembles the last
    one's sees all keys.
    Deviations: kept tokens enter the model in raster order (official: by ascending similarity within a reduced
    frame); the last frame of an odd number is kept whole (official: dropped), and videos of up to four frames are
    reduced within their pairs (official: an error).
    """

    inner: bool = True
    """Whether visual keys are hidden while decoding."""
    p: float = 0.7
    """Share of the visual keys that is hidden. 0.7 in the official README, 0.8 in the code's constructor."""
    layer: int = 3
    """First layer in which they are hidden."""
    change: float = 0.9
    """Keys are hidden only if the cosine with the last step's attention is below this; otherwise all are seen."""

    name: ClassVar[str] = "dycoke"
    positions: ClassVar[Positions] = "contiguous"
    exact: ClassVar[bool] = False
    """Whole frames are never reduced, so at least about a quarter is kept (3/8 at eight frames, all at one)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "p", 0, 1)
        check_range(self, "layer", 1, 10_000, integer=True)
        check_range(self, "change", -1, 1)
        check_flag(self, "inner")

    def key_layer(self, depth: int) -> int | None:
        return check_layer(self, "layer", depth) if self.inner else None

    def select_keys(self, attention: Tensor, memory: Tensor | None) -> tuple[Tensor | None, Tensor]:
        if memory is not None and similarity(attention, memory) >= self.change:
            return None, attention
        return most_attended(attention, int(len(attention) * (1 - self.p))), attention

    def select(self, tokens: VideoTokens) -> PrunedTokens:
        size = tokens.tokens_per_frame
        refers = references(tokens.frames)
        reduced = [t for t, refer in enumerate(refers) if refer != t]
        counts = [size] * tokens.frames
        budget = max(0, self.budget(tokens) - size * (tokens.frames - len(reduced)))
        for t, count in zip(reduced, spread(budget, len(reduced)) if reduced else [], strict=True):
            counts[t] = count
        return keep(tokens, temporal_merge(tokens.features, counts, refers))
