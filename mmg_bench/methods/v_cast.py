"""V-CAST: more tokens for frames at which the video turns; in a frame, tokens that stand out or are long."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from mmg_bench.methods._ops import descending, float_product, frame_means, positions_of, top_mask
from mmg_bench.methods.base import Method, check_range
from mmg_bench.tokens import PrunedTokens, VideoTokens, keep

EPSILON = 1e-6
"""The least length that vectors are divided by; also added to the range of a frame's lengths."""


def curvature(directions: Tensor) -> Tensor:
    """How sharply the path of the frames' `directions [T, D]` (unit vectors) turns at each frame: `[T]`, in [0, 2].

    1 - cos between the step to a frame and the step from it; 1 at the ends, and where a step is zero.
    """
    steps = F.normalize(directions.diff(dim=0), dim=-1, eps=EPSILON)  # [T - 1, D]
    turns = 1 - (steps[:-1] * steps[1:]).sum(-1)  # [T - 2]
    return F.pad(turns, (1, 1), value=1.0)[: len(directions)]


def frame_budgets(weights: Tensor, least: int, most: int, budget: int) -> Tensor:
    """Allocate `budget` among frames by their `weights [T]`, `least` to `most` tokens each: int64 `[T]`.

    Shares are rounded down. The whole remainder goes to the frame of the largest fraction while it has room, then to
    the next one. Needs T * least <= budget <= T * most.
    """
    rest = budget - len(weights) * least
    shares = weights / weights.sum() * rest  # normalised again, as officially, which rounds the shares of equal frames
    extra = shares.floor().long().clamp(max=most - least)
    order = descending(shares.frac())
    room = most - least - extra[order]
    left = rest - extra.sum() - (room.cumsum(0) - room)  # remaining at each frame's turn
    return least + extra.scatter_add(0, order, left.clamp(min=0).minimum(room))


def token_scores(features: Tensor, directions: Tensor) -> Tensor:
    """1 - cos of each token of `[T, N, D]` with its frame's direction, plus its length scaled to [0, 1]: `[T, N]`."""
    lengths = features.float().norm(dim=-1)  # [T, N]
    along = float_product(features, directions.unsqueeze(-1)).squeeze(-1)  # [T, N]
    low, high = lengths.aminmax(dim=1, keepdim=True)
    return 1 - along / lengths.clamp_min(EPSILON) + (lengths - low) / (high - low + EPSILON)


@dataclass(frozen=True)
class VCast(Method):
    """V-CAST (Lin et al., 2026): video curvature-aware spatio-temporal pruning.

    Idea: the mean tokens of the frames form a path; where it turns, something happens. A frame's budget is its share of
    the softmax over the turns. In a frame, keep the tokens that are unlike its mean or long. No tokens are merged, and
    each keeps its place.

    Source: arXiv 2603.27650; xinyouu/V-CAST c235ef3 (Qwen3-VL). Parameters: see the fields.
    Not exact: a frame keeps at least `min_k` tokens, so that max(round(R*T*N), T*min_k) are left.
    Deviations: float32 throughout; a video of one frame is pruned too; of equal tokens the earlier one stays.
    """

    temperature: float = 0.7
    """Temperature of the softmax over the turns: lower gives more to the frames at which the video turns."""
    min_k: int = 1
    """Minimum number of tokens per frame, limited to the number that it has."""

    name: ClassVar[str] = "v_cast"
    exact: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "temperature", 0, 10**6, low_open=True)
        check_range(self, "min_k", 0, 10**6, integer=True)

    def select(self, tokens: VideoTokens) -> PrunedTokens:
        size = tokens.tokens_per_frame
        least = min(self.min_k, size)
        budget = max(self.budget(tokens), tokens.frames * least)
        x = tokens.features.detach()  # [T, N, D]; a choice has no gradient
        directions = F.normalize(frame_means(x), dim=-1, eps=EPSILON)  # [T, D]
        weights = (curvature(directions) / self.temperature).softmax(0)  # [T]
        budgets = frame_budgets(weights, least, size, budget)
        kept = top_mask(token_scores(x, directions), budgets)  # [T, N]
        return keep(tokens, positions_of(kept, budget), frame_budgets=budgets)
