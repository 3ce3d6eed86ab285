"""LLaVA-Video: LLaVA-OneVision with a newline token after every row of every frame, and none after the video.

`scripts/convert_llava_video.py` converts its checkpoints to the layout of LLaVA-OneVision and marks them in their
configuration (`mmg_family: llava_video`). Stock code lays videos out as LLaVA-OneVision does, on which these weights
were not trained: `attach` changes that for one model and one processor. Newlines are never counted and always kept:
they alone amount to 1 / W of the dense tokens at any retention ratio.
"""

from __future__ import annotations

import functools
import math
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from mmg_bench.models.adapter import Layout, UnsupportedModelError, unwrapped
from mmg_bench.models.llava_onevision import LlavaOnevision

FAMILY = "llava_video"
POOLS = ("bilinear", "average")
"""How 2 x 2 patches become a token: interpolated to half the side (rounded up), or averaged, dropping an odd last."""


class LlavaVideo(LlavaOnevision):
    """Adapter of a `LlavaOnevisionForConditionalGeneration` with LLaVA-Video's weights, after `attach`."""

    def __init__(self, model: Any):
        super().__init__(model)
        if not is_attached(model):
            raise UnsupportedModelError(
                "this model has LLaVA-Video's weights, but lays out videos as LLaVA-OneVision does: call "
                "mmg_bench.models.llava_video.attach(model, processor) first"
            )

    @property
    def grid(self) -> tuple[int, int]:
        return _grid(self.model.config)

    @property
    def trailing(self) -> int:
        return 0

    def placeholders(self, layout: Layout) -> int:
        frames, height, width = layout
        return frames * height * (width + 1)

    def body(self, layout: Layout) -> Tensor:
        _, _, width = layout
        return torch.arange(self.placeholders(layout)).view(-1, width + 1)[:, :-1].flatten()


def is_attached(model: Any) -> bool:
    """Whether `attach` was called on the model."""
    return "get_video_features" in vars(unwrapped(model).model)


def attach(model: Any, processor: Any) -> None:
    """Make one model and its processor lay videos out as LLaVA-Video's authors do.

    Raises ValueError for a model that is not a converted LLaVA-Video.
    """
    model = unwrapped(model)
    pool, inner = getattr(model.config, "mmg_pool", None), model.model
    if getattr(model.config, "mmg_family", None) != FAMILY or pool not in POOLS:
        raise ValueError(
            f"config.mmg_family={getattr(model.config, 'mmg_family', None)!r}, config.mmg_pool={pool!r}: not a "
            "converted LLaVA-Video; convert its checkpoint with scripts/convert_llava_video.py"
        )
    if is_attached(model):
        return
    height, width = _grid(model.config)
    stock = type(inner).get_video_features

    @functools.wraps(stock)
    def get_video_features(self: Any, *args: Any, **kwargs: Any) -> Any:
        outputs = stock(self, *args, **{**kwargs, "return_dict": True})
        rows = outputs.pooler_output[:, :-1].unflatten(1, (-1, width))  # [V, T * H, W, D], without the last newline
        newline = self.image_newline.to(rows).expand(*rows.shape[:2], 1, -1)
        outputs.pooler_output = torch.cat([rows, newline], dim=2).flatten(1, 2)  # [V, T * H * (W + 1), D]
        return outputs

    def replace_video_token(video_inputs: dict[str, Any], video_idx: int, **_: Any) -> str:
        frames = len(video_inputs["pixel_values_videos"][video_idx])
        text: str = processor.video_token * (frames * height * (width + 1))
        return text

    inner.get_video_features = MethodType(get_video_features, inner)  # a copy of the model gets its own
    processor.replace_video_token = replace_video_token
    if pool == "average":
        inner.apply_pooling = functools.partial(_average, _patches(model.config))


def _patches(config: Any) -> int:
    """Patches per side of a frame."""
    return int(config.vision_config.image_size // config.vision_config.patch_size)


def _grid(config: Any) -> tuple[int, int]:
    side = _patches(config) / 2
    side = math.ceil(side) if config.mmg_pool == "bilinear" else math.floor(side)
    return side, side


def _average(side: int, maps: Tensor) -> Tensor:
    """Mean of each 2 x 2 block of the patches `[T, side * side, D]`."""
    square = maps.transpose(1, 2).unflatten(2, (side, side))  # [T, D, side, side]
    return nn.functional.avg_pool2d(square, 2).flatten(2).transpose(1, 2)
