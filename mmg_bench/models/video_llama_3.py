"""VideoLLaMA3: a SigLIP-like tower with rotary positions, patches averaged 2 x 2, a time before each frame."""

from __future__ import annotations

from typing import Any

from mmg_bench.models.scatter import Scatter
from mmg_bench.models.tower import GRID_FIELDS


class VideoLlama3(Scatter):
    """Adapter of `VideoLlama3ForConditionalGeneration`."""

    read = GRID_FIELDS

    @property
    def last_attention(self) -> Any:
        return self.tower.encoder.layers[-1].self_attn
