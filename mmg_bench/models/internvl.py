"""InternVL3: text such as `Frame1:` before each frame, and 2 x 2 patches shuffled into one token."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mmg_bench.models.framed import Framed
from mmg_bench.models.tower import FIELDS, feature_layer


class InternVL(Framed):
    """Adapter of `InternVLForConditionalGeneration`."""

    words = 4  # `</img> \n Frame 2 : <img>`; between images `</img> \n <img>`
    numbered = True
    read = FIELDS

    @property
    def language_model(self) -> Any:
        return self.model.model.language_model

    @property
    def tower(self) -> Any:
        return self.model.model.vision_tower

    @property
    def last_attention(self) -> Any:
        return feature_layer(self.tower.encoder.layer, self.model.config.vision_feature_layer).attention

    @property
    def side(self) -> int:
        vision = self.model.config.vision_config
        return int(vision.image_size[0] // vision.patch_size[0] * self.model.config.downsample_ratio)

    def one_video(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {**tensors, "pixel_values": tensors["pixel_values"][None]}  # the processor lays all frames in one row

    def _encoded(self, videos: dict[str, Tensor]) -> tuple[Any, Any]:
        pixels = videos["pixel_values"]  # [V, T, 3, H, W], or one video's [T, 3, H, W]
        count = pixels.shape[0] if pixels.dim() == 5 else 1
        outputs = self.model.get_image_features(pixels.reshape(-1, *pixels.shape[-3:]), return_dict=True)
        return outputs.pooler_output.unflatten(0, (count, -1)), outputs  # pooler_output: [V * T, N, D]
