"""VidCom2: more tokens for frames that stand out from the video; in a frame, the tokens that stand out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mmg_bench.methods._merge import unit
from mmg_bench.methods._ops import descending, positions_of, top_mask
from mmg_bench.methods.base import Method, Positions, check_flag, check_range
from mmg_bench.tokens import PrunedTokens, VideoTokens, keep

BANDWIDTHS = (1 / 8, 1 / 4, 1 / 2, 1, 2)
"""Widths a of the Gaussian kernels exp(-d^2 / (2 a)) that are summed."""


def steady_channels(features: Tensor) -> Tensor:
    """The floor(D/2) channels (at least 1) of lowest population variance over all tokens of `[T, N, D]`: `[C]`."""
    variance = features.float().flatten(0, 1).var(0, correction=0)  # [D]
    return descending(-variance)[: max(1, len(variance) // 2)]


def similarity(x: Tensor, centre: Tensor) -> Tensor:
    """Sum of Gaussian kernels of several widths between `x [T, N, C]` and `centre`, which broadcasts: `[T, N]`."""
    squared = (x - centre).square_().sum(-1)
    return sum(((-squared / (2 * a)).exp() for a in BANDWIDTHS), start=squared.new_zeros(()))


def token_scores(features: Tensor, channels: Tensor) -> tuple[Tensor, Tensor]:
    """How typical each token of `[T, N, D]` is of the video and of its frame: two `[T, N]`, in (0, 5]."""
    x = unit(features[..., channels])  # [T, N, C]
    return similarity(x, x.mean((0, 1))), similarity(x, x.mean(1, keepdim=True))


def frame_scales(video_score: Tensor, base_scale: float, temperature: float) -> Tensor:
    """Retention ratio of each frame, `[T]`: `base_scale` on average, higher where a frame is untypical of the video."""
    typical = video_score.mean(-1)  # [T]
    share = ((typical.min() - typical) / temperature).softmax(0)
    return (base_scale * (1 + share - share.mean())).clamp(max=1)


def frame_budgets(scales: Tensor, tokens_per_frame: int) -> Tensor:
    """Tokens of each frame: `scales [T]` times N, halves to even, at least 1. int64 `[T]`."""
    return (scales * tokens_per_frame).round().long().clamp(min=1)


def with_total(kept: Tensor, typical: Tensor, total: int) -> Tensor:
    """Drop the most typical of the `kept` tokens, or add the least typical others, so that `total` are kept.

    `kept` bool and `typical`, both `[T, N]`, to bool `[T, N]`. Ties: the lower index. No synchronisation with the host.
    """
    order = descending(-typical.flatten())  # least typical first
    order = order[descending(kept.flatten()[order].byte())]  # kept ones before the others
    return torch.zeros_like(kept).flatten().index_fill_(0, order[:total], True).view_as(kept)


@dataclass(frozen=True)
class VidCom2(Method):
    """VidCom2 (Liu et al., EMNLP 2025): video compression commander.

    Idea: score every token by its similarity (Gaussian kernels of unit vectors, steadier half of the channels) to the
    means of the video and of its frame. Frames that differ from the video get more tokens, by a softmax over frames; a
    frame keeps the tokens that are least similar to both means. `base_scale` is `retention_ratio`.

    Source: arXiv 2505.14454; xuyang-liu16/VidCom2 944a17d. Parameters: see the fields.
    Not exact: frame budgets are rounded one by one, at least 1 each, so their sum is only approximately R*T*N (never
    below T). `exact_total` corrects the sum as vLLM does (vllm-project/vllm 0f17ee0, `compute_retention_mask`), to
    max(T, round(R*T*N)); a frame may then keep none.
    Officially the layout of LLaVA-Video keeps every newline too; here newlines are left to the model.
    Deviations: float32 throughout; a video of one channel keeps that channel (officially none, which raises); vLLM
    takes int(R*T*N), at most one token less.
    """

    temperature: float = 0.01
    """Temperature of the softmax over frames: lower gives more to the frames that stand out."""
    exact_total: bool = False
    """Whether to correct the sum of the frame budgets, as vLLM does: over all frames, by how typical tokens are."""

    name: ClassVar[str] = "vidcom2"
    positions: ClassVar[Positions] = "contiguous"
    exact: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "temperature", 0, 10**6, low_open=True)
        check_flag(self, "exact_total")

    def select(self, tokens: VideoTokens) -> PrunedTokens:
        video_score, frame_score = token_scores(tokens.features, steady_channels(tokens.features))
        scales = frame_scales(video_score, self.retention_ratio, self.temperature)
        budgets = frame_budgets(scales, tokens.tokens_per_frame)
        typical = video_score + frame_score  # [T, N]
        kept = top_mask(-typical, budgets)  # [T, N]
        if self.exact_total:
            total = max(tokens.frames, self.budget(tokens))
            kept = with_total(kept, typical, total)
            return keep(tokens, positions_of(kept, total), frame_budgets=kept.sum(1))
        return keep(tokens, kept.flatten().nonzero().squeeze(1), frame_budgets=budgets)
