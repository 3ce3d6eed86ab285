"""Qwen3-VL: a timestamp in text before every temporal patch, and tower features that are added after the first layers.

T of its videos counts temporal patches (two frames each). Timestamps stay, even those of frames without any kept token.
A kept token keeps its own deepstack features; a merged one has its anchor's. Qwen3.5 has no such features. Its linear
attention layers see the kept tokens as one sequence: they have no mask that could hide a token.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mmg_bench.models.adapter import Layout
from mmg_bench.models.kept import Kept
from mmg_bench.models.scatter import Scatter
from mmg_bench.models.tower import GRID_FIELDS


class Qwen3VL(Scatter):
    """Adapter of `Qwen3VL(Moe)ForConditionalGeneration` and `Qwen3_5(Moe)ForConditionalGeneration`."""

    read = GRID_FIELDS

    def in_a_row(self, layout: Layout) -> int:
        _, height, width = layout
        return height * width

    def additions(self, kwargs: dict[str, Any], kept: Kept | None) -> tuple[dict[str, Any], list[Tensor]]:
        seen, features = kwargs.get("visual_pos_masks"), kwargs.get("deepstack_visual_embeds")
        if seen is None or features is None:
            return kwargs, []
        number = seen.flatten().cumsum(0).view_as(seen) - 1  # [B, S]: row of the features of a visual token
        if kept is not None:
            seen, number = kept.columns(seen) & kept.real, kept.columns(number)
        # layers are [visual tokens, D]; no boolean index, which would synchronise with the GPU
        added = [layer[number.clamp(min=0)].masked_fill_(~seen.unsqueeze(-1), 0) for layer in features]
        return {**kwargs, "visual_pos_masks": None, "deepstack_visual_embeds": None}, added
