"""uniform: a control. Every n-th token of the video."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mmg_bench.methods._ops import evenly_spaced
from mmg_bench.methods.base import Method
from mmg_bench.tokens import PrunedTokens, VideoTokens, keep


@dataclass(frozen=True)
class Uniform(Method):
    """Keep max(1, round(R*T*N)) tokens, evenly spaced over the video's T * N tokens in raster order.

    The i-th of B tokens is in the middle of the i-th of B equal shares.
    """

    name: ClassVar[str] = "uniform"

    def select(self, tokens: VideoTokens) -> PrunedTokens:
        return keep(
            tokens, evenly_spaced(self.budget(tokens), tokens.total).to(tokens.features.device, non_blocking=True)
        )
