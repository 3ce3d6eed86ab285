"""GLM-4.1V, 4.5V, 4.6V, OCR: each temporal patch appears in the prompt as an image, followed by its time in text.

T of their videos counts temporal patches (two frames each). Timestamps stay, even those of frames without any kept
token. Videos use the placeholders of images; the stock model itself accepts no prompt that contains both.
"""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from mmg_bench.models.adapter import Capture, Layout, UnsupportedModelError
from mmg_bench.models.scatter import Scatter
from mmg_bench.models.tower import GRID_FIELDS

_DENSE, _EXPERTS = ("glm4v_text", "glm_ocr_text"), "glm4v_moe_text"


class Glm4V(Scatter):
    """Adapter of `Glm4v`, `Glm4vMoe`, `Glm46V` and `GlmOcrForConditionalGeneration`.

    Raises UnsupportedModelError for a language model of another type, which GLM-4.6V's class would accept.
    """

    read = GRID_FIELDS

    def __init__(self, model: Any):
        super().__init__(model)
        if (kind := model.config.text_config.model_type) not in (*_DENSE, _EXPERTS):
            raise UnsupportedModelError(
                f"models of type {model.config.model_type!r} are supported with a language model of type "
                f"{', '.join(_DENSE)} or {_EXPERTS}, not {kind!r}"
            )
        self.dense = kind in _DENSE  # attention and norms differ from those of the model with experts

    @property
    def video_token_id(self) -> int:
        return int(self.model.config.image_token_id)

    @property
    def interleaved(self) -> bool:
        return self.dense

    def mlp(self, layer: Any) -> tuple[nn.Module, nn.Module]:
        return (layer.post_attention_layernorm, layer.post_mlp_layernorm) if self.dense else super().mlp(layer)

    def in_a_row(self, layout: Layout) -> int:
        _, height, width = layout
        return height * width

    def layouts(self, inputs: dict[str, Any], captured: Capture) -> list[Layout]:
        patches = iter(super().layouts(inputs, captured))  # the tower gets each temporal patch separately
        side = self.model.config.vision_config.spatial_merge_size
        if (encoded := self.encoded(inputs)) is None:
            lengths = [math.prod(grid) // side**2 for grid in inputs["video_grid_thw"].tolist()]
        else:
            lengths = [len(features) for features in encoded.pooler_output]
        found = []
        for length in lengths:
            _, height, width = next(patches)
            frames = length // (height * width)
            found.append((frames, height, width))
            for _ in range(frames - 1):
                next(patches)
        return found
