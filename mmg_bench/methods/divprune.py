"""DivPrune: the most diverse subset of the tokens, by greedy max-min distance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from mmg_bench.methods._greedy import cosine_distances, max_min_selection
from mmg_bench.methods._merge import unit
from mmg_bench.methods.base import Method, Positions
from mmg_bench.tokens import PrunedTokens, VideoTokens, keep


def diverse(x: Tensor, count: int) -> Tensor:
    """The `count` picks from tokens `x [M, D]`, in the order of selection: distinct indices, int64 `[count]`."""
    return max_min_selection(cosine_distances(unit(x)[None]), count)[0]


@dataclass(frozen=True)
class DivPrune(Method):
    """DivPrune (Alvar et al., CVPR 2025): max-min diversity.

    Idea: treat all T*N tokens of the video as one set, and greedily pick tokens so that the smallest cosine distance
    between any two of them is as large as possible. Neither attention nor the query matters.

    Source: arXiv 2503.02175; vbdi/divprune 799e2d9 (LLaVA). The official ratio is 0.098.
    Parameters: `retention_ratio` only. Keeps exactly round(R*T*N) tokens.
    Deviations: float32 throughout; a picked token is never picked again (officially it only has a distance of about 0,
    so that copies of one token, as in identical frames, can be picked twice); a single token is kept (officially an
    error), as are zero tokens (officially NaN). The distance matrix takes (T*N)^2 floats, as in the official code.
    """

    name: ClassVar[str] = "divprune"
    positions: ClassVar[Positions] = "contiguous"

    def select(self, tokens: VideoTokens) -> PrunedTokens:
        return keep(tokens, diverse(tokens.flat, self.budget(tokens)))
