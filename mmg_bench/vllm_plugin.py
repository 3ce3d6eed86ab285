"""A method of ours in vLLM, in the place of EVS: it chooses the video tokens that `--video-pruning-rate` keeps.

    MMG_BENCH_METHOD=mmg_vid vllm serve Qwen/Qwen2.5-VL-7B-Instruct --video-pruning-rate 0.75

vLLM calls `register` when one of its processes starts, through its entry-point group `vllm.general_plugins`. Without
the variable, it changes nothing. docs/serving.md says what has been run.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from mmg_bench.methods.base import Method

VARIABLE = "MMG_BENCH_METHOD"
"""The environment variable that names a method as tables print it: `mmg_vid`, `mmg_vid(tau=0.9)`."""
FUNCTION = "compute_retention_mask"
_MODULES = ("vllm.multimodal.video_prune.evs", "vllm.multimodal.evs")  # where newer and older versions have it
_LAYERS = 32


def register() -> None:
    """What vLLM calls. Raises ValueError, which ends vLLM, if the variable names no method that it can use."""
    if label := os.environ.get(VARIABLE, "").strip():
        put_in(method_of(label))
        logging.getLogger("vllm.mmg_bench").info("mmg_bench: %s takes the place of EVS", label)


def method_of(label: str) -> Method:
    """The method that `label` stands for. Raises ValueError if there is none, or vLLM cannot use it."""
    from mmg_bench.methods.chain import value_of
    from mmg_bench.methods.registry import get_method, read_label

    name, options = read_label(label)
    try:
        method = get_method(name, **{option: value_of(text) for option, text in options.items()})
    except ValueError as error:
        raise ValueError(f"{VARIABLE}={label!r}: {error}") from error
    if (why := unfit(method)) is not None:
        raise ValueError(f"{VARIABLE}={label!r}: {why}; choose another method, or unset {VARIABLE} for EVS")
    return method


def unfit(method: Method) -> str | None:
    """Why vLLM cannot use a method: it gives it only the tokens, and takes a fixed number of them, unchanged."""
    import torch

    from mmg_bench.tokens import VideoTokens

    if method.name == "dense":
        return "dense prunes nothing"
    if method.needs:
        return f"{method.name} reads {', '.join(sorted(method.needs))}, and vLLM hands over only the tokens"
    if method.prunes_inside(_LAYERS):
        return f"{method.name} prunes inside the language model, and vLLM only before it"
    random = torch.Generator().manual_seed(0)
    still, noise = torch.randn(1, 16, 32, generator=random), torch.randn(6, 16, 32, generator=random)
    tokens = VideoTokens(still + 0.05 * noise, (4, 4))  # a nearly still video, in which there is much to merge
    for count in (16, 29, 95):
        pruned = replace(method, retention_ratio=count / tokens.total).prune(tokens)
        if len(pruned) != count:
            return f"{method.name} does not keep exactly as many tokens as it is told to, and vLLM needs to know"
        if not pruned.features.equal(tokens.flat[pruned.positions]):
            return f"{method.name} merges tokens, and vLLM can only drop them"
    return None


def retention_mask(
    method: Method, count: int, video_embeds: Tensor, video_size_thw: Sequence[int] | Tensor, spatial_merge_size: int
) -> Tensor:
    """The `count` tokens that `method` keeps of a video: bool `[M]`, as vLLM's function of this name returns it.

    video_embeds: `[M, D]`, the tokens of T frames in raster order. video_size_thw: T, and the frames' height and width
    in patches, of which `spatial_merge_size` squared make a token.
    """
    import torch

    from mmg_bench.tokens import VideoTokens

    frames, height, width = (int(size) for size in video_size_thw)
    grid = height // spatial_merge_size, width // spatial_merge_size
    tokens = VideoTokens(video_embeds.view(frames, grid[0] * grid[1], -1), grid)
    kept = replace(method, retention_ratio=count / tokens.total).prune(tokens).positions
    if len(kept) != count:
        raise ValueError(
            f"{method.name} keeps {len(kept)} of {tokens.total} tokens where vLLM has room for {count}: choose another "
            f"method, or unset {VARIABLE} for EVS"
        )
    return video_embeds.new_zeros(tokens.total, dtype=torch.bool).index_fill_(0, kept, True)


def put_in(method: Method) -> None:
    """Replace vLLM's function by `method`, also where a model's module has imported it. Can be called again."""
    evs = _evs()
    replaced: Callable[..., Tensor] = getattr(evs, FUNCTION)

    def compute_retention_mask(
        video_embeds: Tensor, video_size_thw: Sequence[int] | Tensor, spatial_merge_size: int, q: float
    ) -> Tensor:
        frames = int(video_size_thw[0])
        count = evs.compute_retained_tokens_count(len(video_embeds) // frames, frames, q)
        return retention_mask(method, count, video_embeds, video_size_thw, spatial_merge_size)

    for module in list(sys.modules.values()):
        if getattr(module, "__dict__", {}).get(FUNCTION) is replaced:  # wakes no module that is imported lazily
            setattr(module, FUNCTION, compute_retention_mask)


def _evs() -> ModuleType:
    """vLLM's module of EVS. Raises ValueError if this vLLM has none."""
    for name in _MODULES:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not name.startswith(error.name):
                raise
    raise ValueError(f"{VARIABLE}: this vLLM has none of {', '.join(_MODULES)}; use one with EVS, such as 0.33")
