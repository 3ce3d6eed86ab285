"""Qwen2-VL and Qwen2.5-VL: 2x2 merged patches of frame pairs, and rotary positions in time, height and width.

T of its videos counts temporal patches (two frames each). Kept tokens keep their three position ids; `contiguous`
closes numbers that no token is left with on any axis (`kept.py`).
"""

from __future__ import annotations

import math

from mmg_bench.models.adapter import Layout
from mmg_bench.models.scatter import Scatter


class Qwen25VL(Scatter):
    """Adapter of `Qwen2VLForConditionalGeneration` and `Qwen2_5_VLForConditionalGeneration`."""

    def in_a_row(self, layout: Layout) -> int:
        return math.prod(layout)
