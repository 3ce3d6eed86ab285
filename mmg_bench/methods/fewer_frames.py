"""fewer_frames: a control. The same number of tokens, spent on whole frames."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from mmg_bench.methods._ops import evenly_spaced
from mmg_bench.methods.base import Method
from mmg_bench.tokens import PrunedTokens, VideoTokens, keep


@dataclass(frozen=True)
class FewerFrames(Method):
    """Keep whole frames, evenly spaced over time, as many as fit into the budget of max(1, round(R*T*N)) tokens.

    The rest of the budget goes to one more frame, the last of the evenly spaced ones; its tokens are evenly spaced in
    raster order.
    """

    name: ClassVar[str] = "fewer_frames"

    def select(self, tokens: VideoTokens) -> PrunedTokens:
        size = tokens.tokens_per_frame
        whole, rest = divmod(self.budget(tokens), size)
        frames = evenly_spaced(whole + (rest > 0), tokens.frames)
        positions = (frames[:whole, None] * size + torch.arange(size)).flatten()
        if rest:
            positions = torch.cat([positions, frames[-1] * size + evenly_spaced(rest, size)])
        return keep(tokens, positions.to(tokens.features.device, non_blocking=True), frames=frames.tolist())
