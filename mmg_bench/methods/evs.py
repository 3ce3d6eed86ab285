"""EVS: keep the first frame whole, then the tokens that changed most since the previous frame."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mmg_bench.methods._merge import neighbour_cosines
from mmg_bench.methods._ops import descending
from mmg_bench.methods.base import Method, Positions
from mmg_bench.tokens import PrunedTokens, VideoTokens, keep


def changed_most(features: Tensor, count: int) -> Tensor:
    """The `count` tokens of frames 1..T-1 of `[T, N, D]` least similar to the same place in the previous frame.

    Flat raster indices into T * N, int64 `[count]`, greatest change first.
    """
    change = 1 - neighbour_cosines(features).flatten()  # [(T - 1) * N]; equal changes tie as they officially do
    return features.shape[1] + descending(change)[:count]


@dataclass(frozen=True)
class EVS(Method):
    """EVS (Bagrov et al., 2025): efficient video sampling, the pruning built into vLLM, SGLang and TensorRT-LLM.

    Idea: what does not change need not be seen again. Keep the first frame whole; from all others together, keep the
    tokens with the lowest cosine to the token at the same place in the previous frame.

    Source: arXiv 2510.14624; vllm-project/vllm 094f117 (`compute_retention_mask`). Parameters: `retention_ratio` only,
    1 - `video_pruning_rate` there.
    Not exact: the first frame counts towards the budget and is kept even if it exceeds it. So max(N, round(R*T*N))
    tokens are kept, and at R <= 1/T only the first frame.
    Deviations: round(R*T*N) instead of int((1 - q)*T*N), at most one token more; float32 throughout. The paper compares
    pixels; its authors' code in vLLM compares tokens, and so do we.
    """

    name: ClassVar[str] = "evs"
    positions: ClassVar[Positions] = "original"
    exact: ClassVar[bool] = False

    def select(self, tokens: VideoTokens) -> PrunedTokens:
        size = tokens.tokens_per_frame
        first = torch.arange(size, device=tokens.features.device)
        changed = changed_most(tokens.features, max(0, self.budget(tokens) - size))
        return keep(tokens, torch.cat([first, changed]))
