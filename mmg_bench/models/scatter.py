"""Any model that scatters video features into the embeddings of its language model, in the layout of transformers 5.

Such a model names its video placeholder in its configuration, and has `get_video_features`, a vision tower and a
`language_model` with decoder `layers` under `model`. The layout of a video is read from the tower's argument `grid_thw`
or else from the square frames `[frames, N, D]` that the projector outputs.

The tower's attention is supplied only by families for which it is known where the patches of a token are in it.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Collection
from contextlib import AbstractContextManager
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from mmg_bench.models.adapter import FAMILIES, Adapter, Capture, Layout, UnsupportedModelError, hooked
from mmg_bench.models.kept import Kept
from mmg_bench.models.tower import Attended, TowerCapture, of_frames, together, unknown
from mmg_bench.tokens import VideoTokens

_IDS = ("video_token_id", "video_token_index")
_TOWERS = ("visual", "vision_tower", "vision_model")
_SAID = ("video_grid_thw", "second_per_grid_ts", "video_second_per_grid")
"""Processor outputs for videos other than pixels: models compute position ids from them."""
_OF_COLUMNS = ("input_ids", "inputs_embeds", "attention_mask", "position_ids")
"""Per-token arguments of a language model, which pruning narrows."""


class Scatter(Adapter):
    """Adapter of the models that the module docstring describes."""

    @property
    def tower(self) -> Any:
        """The vision tower."""
        return _first(self.multimodal, _TOWERS)

    @property
    def last_attention(self) -> Any:
        """The attention module of the tower layer that produces the features."""
        return self.tower.blocks[-1].attn

    def in_tower(self, grid_thw: Tensor) -> Tensor | None:
        """Indices in that layer of tokens in raster order, for patch grids `[n, 3]` on the host; None: same order.

        int64, one per token of all grids together. The patches of a token are adjacent.
        """
        return None

    @classmethod
    def lacking(cls, model: Any) -> str | None:
        if _first(getattr(model, "config", None), _IDS) is None:
            return "config.video_token_id"
        inner = getattr(model, "model", None)
        if not hasattr(inner, "get_video_features"):
            return "model.get_video_features"
        if not hasattr(getattr(inner, "language_model", None), "layers"):
            return "model.language_model.layers"
        return None if _first(inner, _TOWERS) is not None else f"model.{' or model.'.join(_TOWERS)}"

    @property
    def timed(self) -> bool:
        return True  # or unknown

    @property
    def multimodal(self) -> Any:
        return self.model.model

    @property
    def language_model(self) -> Any:
        return self.model.model.language_model

    @property
    def video_token_id(self) -> int:
        return _first(self.model.config, _IDS)

    def in_a_row(self, layout: Layout) -> int:
        return 1  # text may stand between any two

    def next_ids(self, mask: Tensor) -> Tensor:
        counted, deltas = super().next_ids(mask), self.deltas
        # as the model's own forward continues, equally on all three axes: from the highest position of the prompt
        # (`generate` continues from the last one, which is lower if a video is long)
        return counted if deltas is None else (counted + deltas).expand(3, -1, -1)

    @property
    def deltas(self) -> Tensor | None:
        return getattr(self.multimodal, "rope_deltas", None)

    def column(self, ids: Tensor) -> int | None:
        if ids.shape[:-2] == (4,):  # the first axis counts the text
            return int(ids[0, 0, 0])
        if ids.shape[:-2] == (1,) and self.deltas is not None:  # as `generate` continues from a cache
            return int(ids[0, 0, 0] - self.deltas[0, 0])
        return super().column(ids)

    def additions(self, kwargs: dict[str, Any], kept: Kept | None) -> tuple[dict[str, Any], list[Tensor]]:
        if kwargs.get("deepstack_visual_embeds") is not None:  # their layout may differ from Qwen3-VL's
            raise UnsupportedModelError(
                f"models of type {self.model.config.model_type!r} add tower features inside the language model: they "
                f"need their own adapter; supported: {', '.join(FAMILIES)}"
            )
        beside = [name for name in kwargs if name not in _OF_COLUMNS and _as_wide(kwargs[name], kept)]
        if beside:
            raise UnsupportedModelError(
                f"models of type {self.model.config.model_type!r} pass further inputs per token to their language "
                f"model ({', '.join(beside)}): they need their own adapter; supported: {', '.join(FAMILIES)}"
            )
        return kwargs, []

    def layouts(self, inputs: dict[str, Any], captured: Capture) -> list[Layout]:
        assert isinstance(captured, GridCapture)
        compressed = inputs.get("video_compression_mask")
        if compressed is not None and not compressed.all():
            raise ValueError("the processor has already dropped visual tokens: set its use_token_compression to False")
        if captured.grids:
            return captured.grids
        if not captured.frames:
            raise ValueError(
                "the videos of this prompt were encoded outside the context, or by an unknown vision tower: pass "
                f"pixels, or `encoded` tokens; supported: {', '.join(FAMILIES)}"
            )
        side = math.isqrt(captured.per_frame)
        if side**2 != captured.per_frame:
            raise UnsupportedModelError(
                f"{captured.per_frame} tokens per frame do not form a square; supported: {', '.join(FAMILIES)}"
            )
        encoded = self.encoded(inputs)
        if encoded is None:
            frames = inputs["pixel_values_videos"].shape[1]
        else:
            frames = len(encoded.pooler_output[0]) // captured.per_frame
        return [(frames, side, side)] * (captured.frames // frames)

    def encode(self, videos: dict[str, Tensor], needs: Collection[str]) -> tuple[list[VideoTokens], dict[str, Any]]:
        taken = inspect.signature(self.multimodal.get_video_features).parameters
        with torch.inference_mode(), self.capture(needs) as captured:
            outputs = self.multimodal.get_video_features(
                **{name: value for name, value in videos.items() if name in taken}, return_dict=True
            )
        tokens, first = [], 0
        for features, (frames, height, width) in zip(
            outputs.pooler_output, self.layouts(videos, captured), strict=True
        ):
            tokens.append(captured.video(features.unflatten(0, (frames, -1)), (height, width), first))
            first += frames
        others = {name: videos[name] for name in _SAID if name in videos}
        return tokens, {"mm_encoder_outputs": {"video": outputs}, **others}

    def capture(self, needs: Collection[str]) -> AbstractContextManager[Capture]:
        captured = GridCapture(self, self.supplies & set(needs))
        handles = [self.tower.register_forward_pre_hook(captured.note_call, with_kwargs=True)]
        handles += captured.handles(self.tower)
        if (projector := getattr(self.multimodal, "multi_modal_projector", None)) is not None:
            handles.append(projector.register_forward_hook(captured.note_frames))
        return hooked(captured, handles)


class GridCapture(TowerCapture):
    """The layout of the videos in the vision tower's last call, and the attention of one of its layers."""

    def __init__(self, adapter: Scatter, needs: frozenset[str]):
        self.in_tower = adapter.in_tower
        # patches per side of a token, if the call does not say
        self.merge = getattr(adapter.model.config.vision_config, "spatial_merge_size", 1)
        super().__init__(adapter.last_attention if needs else None, needs)

    def forget(self) -> None:
        super().forget()
        self.grids: list[Layout] = []
        self.sides: list[int] = []  # patches per side of a token, for each grid
        self.grid_thw: Tensor | None = None
        self.frames = self.per_frame = 0

    def note_call(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook of the tower."""
        self.forget()
        grids, merges = kwargs.get("grid_thw"), kwargs.get("merge_sizes")
        if grids is not None:
            patches = grids.tolist()
            self.grid_thw = torch.tensor(patches)  # on the host
            self.sides = [self.merge] * len(patches) if merges is None else merges.tolist()
            self.grids = [(t, h // m, w // m) for (t, h, w), m in zip(patches, self.sides, strict=True)]

    def note_frames(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Forward hook of the projector."""
        if isinstance(output, Tensor) and output.dim() == 3:
            self.frames, self.per_frame = output.shape[:2]

    def of_call(self, parts: list[Attended]) -> dict[str, Any]:
        if self.grid_thw is None:
            (frames,) = parts
            return of_frames(frames, math.isqrt(self.per_frame))
        sizes = [h * w for t, h, w in self.grids for _ in range(t)]  # tokens of each frame
        each = [side**2 for (t, _, _), side in zip(self.grids, self.sides, strict=True) for _ in range(t)]
        lengths = [part.queries.shape[2] for part in parts]
        if lengths != [size * patches for size, patches in zip(sizes, each, strict=True)]:
            raise unknown(lengths, sizes)
        made: dict[str, list[Tensor]] = {name: [] for name in self.needs}
        for (_, patches), run in groupby(zip(parts, lengths, each, strict=True), key=lambda frame: frame[1:]):
            frames = together([part for part, *_ in run])  # of one size
            if "attention" in made:
                made["attention"].append(frames.received().unflatten(1, (-1, patches)).mean(2).flatten())
            if "keys" in made:
                made["keys"].append(frames.mean_keys().unflatten(1, (-1, patches)).mean(2).flatten(0, 1))
            if "mean_query_attention" in made:
                made["mean_query_attention"].append(frames.from_mean(patches).flatten())
        whole = {name: torch.cat(values) for name, values in made.items()}  # of all tokens of the call
        if (order := self.in_tower(self.grid_thw)) is not None:
            whole = {name: value[order.to(value.device, non_blocking=True)] for name, value in whole.items()}
        return {name: value.split(sizes) for name, value in whole.items()}


def _as_wide(value: Any, kept: Kept | None) -> bool:
    """Whether a value covers all columns of a prompt, `[B, S, ...]`, of which only some are `kept`."""
    return kept is not None and isinstance(value, Tensor) and value.dim() > 1 and value.shape[1] == kept.whole


def _first(owner: Any, names: tuple[str, ...]) -> Any:
    return next((found for name in names if (found := getattr(owner, name, None)) is not None), None)
