"""The frame size of a model's own video processor: its bounds, and its cap if the processor leaves that open."""

from __future__ import annotations

from typing import Any

from mmg_bench.models.checking import ModelError
from mmg_bench.models.spec import PIXEL_BOUNDS, ModelSpec


def settle_frames(processor: Any, spec: ModelSpec) -> None:
    """Bound the pixels of frames as set in the spec, and the tokens of each frame as qwen-vl-utils does.

    Raises ModelError if bounds are set but all frames have one size, or if the least exceeds the most.
    """
    if (video := getattr(processor, "video_processor", None)) is None:
        return
    _bound(video, spec)
    if getattr(video, "cap_pixels_per_frame", False) is None:  # transformers leaves it unset; its default will change
        video.cap_pixels_per_frame = _can_cap(video, spec.frames)


def _bound(video: Any, spec: ModelSpec) -> None:
    limits = {"shortest_edge": spec.min_pixels, "longest_edge": spec.max_pixels}
    given = {edge: limit for edge, limit in limits.items() if limit is not None}
    if not given:
        return
    size = {edge: value for edge, value in dict(video.size).items() if value is not None}
    options = [f"{spec.option(name)}={limit}" for name in PIXEL_BOUNDS if (limit := getattr(spec, name)) is not None]
    if set(size) != set(limits):  # these are edges, not areas
        sizes = ", ".join(f"{name} {value}" for name, value in size.items())
        raise ModelError(
            f"{' and '.join(options)}: {type(video).__name__} makes all frames one size ({sizes}); leave it at null"
        )
    size |= given
    if size["shortest_edge"] > size["longest_edge"]:
        raise ModelError(
            f"{' and '.join(options)}: the minimum of {size['shortest_edge']} exceeds the maximum of "
            f"{size['longest_edge']}; set {spec.option('min_pixels')} to no more than {spec.option('max_pixels')}"
        )
    video.size = type(video.size)(**size)


def _can_cap(video: Any, frames: int) -> bool:
    """Whether the cap for this many frames respects the bounds: it leaves each 1.05 times the least, whatever the most.

    Qwen3-VL's bounds apply to all frames together, and the cap then gives that least to each frame.
    """
    from transformers import Qwen2VLVideoProcessor

    most = video.size["longest_edge"] / (1 if isinstance(video, Qwen2VLVideoProcessor) else frames)
    return bool(1.05 * video.size["shortest_edge"] <= most)
