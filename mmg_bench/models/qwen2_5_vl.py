"""Qwen2-VL and Qwen2.5-VL: 2x2 merged patches of frame pairs, and rotary positions in time, height and width.

T of their videos counts temporal patches (two frames each). Kept tokens keep their three position ids; `contiguous`
closes numbers that no kept token has on any axis (`kept.py`). The tower of Qwen2.5-VL arranges its patches window by
window and reorders the tokens only at its output. EXAONE-4.5 has such a tower, and one position id per token.
"""

from __future__ import annotations

import math

from torch import Tensor
from transformers.vision_utils import get_vision_window_index

from mmg_bench.models.adapter import Layout
from mmg_bench.models.scatter import Scatter
from mmg_bench.models.tower import GRID_FIELDS


class Qwen25VL(Scatter):
    """Adapter of `Qwen2VLForConditionalGeneration`, `Qwen2_5_VL...` and `Exaone4_5_ForConditionalGeneration`."""

    read = GRID_FIELDS

    @property
    def supplies(self) -> frozenset[str]:
        vision = self.model.config.vision_config
        whole = getattr(vision, "fullatt_block_indexes", None)  # the other layers attend within windows
        return self.read if whole is None or vision.depth - 1 in whole else frozenset()

    def in_a_row(self, layout: Layout) -> int:
        return math.prod(layout)

    def in_tower(self, grid_thw: Tensor) -> Tensor | None:
        tower = self.tower
        if not hasattr(tower, "window_size"):
            return None
        windows, _ = get_vision_window_index(grid_thw, tower.spatial_merge_size, tower.window_size, tower.patch_size)
        return windows.argsort()
