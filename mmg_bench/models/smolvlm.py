"""SmolVLM2: the time in text before each frame, and 3 x 3 or more patches shuffled into one token."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mmg_bench.models.framed import Framed
from mmg_bench.models.tower import FIELDS


class SmolVLM(Framed):
    """Adapter of `SmolVLMForConditionalGeneration`."""

    package = "num2words"
    words = 7  # `<fake_token_around_image> Frame from 00 : 01 : <fake_token_around_image> <global-img>`, and then some
    read = FIELDS

    @property
    def timed(self) -> bool:
        return True

    @property
    def language_model(self) -> Any:
        return self.model.model.text_model

    @property
    def tower(self) -> Any:
        return self.model.model.vision_model

    @property
    def last_attention(self) -> Any:
        return self.tower.encoder.layers[-1].self_attn

    @property
    def side(self) -> int:
        vision = self.model.config.vision_config
        return int(vision.image_size // vision.patch_size // self.model.config.scale_factor)

    def _encoded(self, videos: dict[str, Tensor]) -> tuple[Any, Any]:
        outputs = self.model.get_image_features(
            videos["pixel_values"], videos.get("pixel_attention_mask"), return_dict=True
        )
        return outputs.pooler_output, outputs  # a list of [T * N, D]
