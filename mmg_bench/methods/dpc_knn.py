"""dpc_knn: the density peaks of each frame on its own. MMG-Vid without its two contributions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mmg_bench.methods._ops import positions_of, spread
from mmg_bench.methods.base import Method, check_range
from mmg_bench.methods.mmg_vid import temporal_dpc
from mmg_bench.tokens import PrunedTokens, VideoTokens, keep


@dataclass(frozen=True)
class DPCKNN(Method):
    """Keep the cluster centres that DPC-KNN finds in each frame, the budget evenly spread over the frames.

    rho_i = exp(-mean of the k smallest squared distances in the frame, the token's own 0 included), with
    k = min(knn, the frame's budget, N - 1), at least 1, and d = ||a - b|| / sqrt(D); delta_i = distance to the nearest
    denser token. The tokens of highest rho * delta are kept, unmerged, ties by the lower index. Remainders of the
    budget go to the earliest frames, so that exactly max(1, round(R*T*N)) tokens are kept.

    With one token per frame, k = 1 and all tokens tie: token 0 of every frame is kept. With two, mutual nearest
    neighbours tie. Results at such budgets say nothing about the method.

    Source: Du et al., arXiv 1602.07983 (2016), without its random tie-breaking.
    """

    knn: int = 7
    """Neighbours in the density; >= 1."""

    name: ClassVar[str] = "dpc_knn"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "knn", 1, 10**6, integer=True)

    def select(self, tokens: VideoTokens) -> PrunedTokens:
        counts = spread(self.budget(tokens), tokens.frames)
        alone = [(t, t + 1) for t in range(tokens.frames)]
        chosen = temporal_dpc(tokens.features, alone, counts, knn=self.knn).kept  # [T, N]
        return keep(tokens, positions_of(chosen, sum(counts)), frame_budgets=counts)
