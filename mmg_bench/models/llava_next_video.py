"""LLaVA-NeXT-Video: a CLIP tower with a class token, and patches averaged 2 x 2 in each frame."""

from __future__ import annotations

from typing import Any

from mmg_bench.models.scatter import Scatter
from mmg_bench.models.tower import FIELDS, feature_layer


class LlavaNextVideo(Scatter):
    """Adapter of `LlavaNextVideoForConditionalGeneration`."""

    read = FIELDS

    @property
    def last_attention(self) -> Any:
        return feature_layer(self.tower.encoder.layers, self.model.config.vision_feature_layer).self_attn
