"""LLaVA-OneVision: SigLIP tower, 2x2 bilinear pooling of the projected patches, one newline token after a video."""

from __future__ import annotations

import math
from collections.abc import Collection
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from mmg_bench.models import siglip, tower
from mmg_bench.models.adapter import Adapter, Capture, Layout, hooked, marked, unseen
from mmg_bench.tokens import VideoTokens

_FRAMES_AT_ONCE = 4  # bounds the memory of the recomputation


class LlavaOnevision(Adapter):
    """Adapter of `LlavaOnevisionForConditionalGeneration`."""

    @property
    def supplies(self) -> frozenset[str]:
        return tower.FIELDS | self.from_siglip if siglip.attached(self.model) else tower.FIELDS

    @property
    def from_siglip(self) -> frozenset[str]:
        return siglip.FIELDS

    @property
    def multimodal(self) -> nn.Module:
        return self.model.model

    @property
    def language_model(self) -> Any:
        return self.model.model.language_model

    @property
    def video_token_id(self) -> int:
        return self.model.config.video_token_index

    @property
    def grid(self) -> tuple[int, int]:
        vision = self.model.config.vision_config
        side = math.ceil(vision.image_size // vision.patch_size / 2)
        return side, side

    @property
    def trailing(self) -> int:
        return 1

    def layouts(self, inputs: dict[str, Any], captured: Capture) -> list[Layout]:
        assert isinstance(captured, SiglipCapture)
        encoded = self.encoded(inputs)
        if encoded is not None:
            videos, length, _ = encoded.pooler_output.shape
            frames = (length - self.trailing) // (self.placeholders((1, *self.grid)) - self.trailing)
        else:
            videos, frames = inputs["pixel_values_videos"].shape[:2]
        if not frames:
            raise ValueError("videos were passed without their frames: leave prefill_chunk_size unset")
        if captured.frames:  # `generate` repeats videos for beams
            videos = captured.frames // frames
        return [(frames, *self.grid)] * videos

    def encode(self, videos: dict[str, Tensor], needs: Collection[str]) -> tuple[list[VideoTokens], dict[str, Any]]:
        pixels = videos["pixel_values_videos"]  # [V, T, 3, H, W]
        with torch.inference_mode(), self.capture(needs) as captured:
            outputs = self.model.get_video_features(pixels, return_dict=True)
        frames = pixels.shape[1]
        features = outputs.pooler_output[:, self.body((frames, *self.grid))]  # [V, T * N, D]
        per_video = features.unflatten(1, (frames, -1))
        tokens = [captured.video(features, self.grid, v * frames) for v, features in enumerate(per_video)]
        # features only: some versions of transformers also return the states of every tower layer
        alone = marked(type(outputs)(pooler_output=outputs.pooler_output), outputs)
        return tokens, {"mm_encoder_outputs": {"video": alone}}

    def capture(self, needs: Collection[str]) -> AbstractContextManager[Capture]:
        captured = SiglipCapture(self, frozenset(needs))
        handles = [
            captured.layer.register_forward_hook(captured.note, with_kwargs=True),
            self.model.model.vision_tower.register_forward_hook(captured.note_output),
        ]
        return hooked(captured, handles)

    def pool(self, maps: Tensor) -> Tensor:
        """Pool per-patch values `[T, P, C]` to per-token values `[T, N, C]` as the model pools its features."""
        return self.model.model.apply_pooling(maps)

    def _ways(self, fields: Collection[str]) -> list[str]:
        width = self.model.config.vision_config.hidden_size
        return [siglip.to_attach(width)] if siglip.FIELDS & set(fields) else []


class SiglipCapture(Capture):
    """Recompute what the tower does not return, for the layer that produces the features."""

    def __init__(self, adapter: LlavaOnevision, needs: frozenset[str]):
        self.adapter, self.siglip = adapter, siglip.attached(adapter.model)
        self.needs = needs & adapter.supplies & (tower.FIELDS | siglip.TOWER_FIELDS)
        layers = adapter.model.model.vision_tower.encoder.layers
        self.layer = tower.feature_layer(layers, adapter.model.config.vision_feature_layer)
        self.forget()

    def forget(self) -> None:
        super().forget()
        self.seen: tuple[Tensor, Tensor] | None = None  # input and output of the layer, [frames, P, C]
        self.frames = 0  # of the last call

    def note(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        """Forward hook of the layer: keep its input and output."""
        self.frames = len(output)
        if self.needs:
            self.seen = (args[0] if args else kwargs["hidden_states"]).detach(), output.detach()

    @torch.no_grad()
    def fields(self, first: int, count: int) -> dict[str, Tensor]:
        if not self.needs:
            return {}
        if self.seen is None or len(self.seen[0]) < first + count:
            raise unseen(self.needs)
        frames = range(first, first + count)
        chunks = [frames[i : i + _FRAMES_AT_ONCE] for i in range(0, count, _FRAMES_AT_ONCE)]
        parts = [self._of(*(x[chunk.start : chunk.stop] for x in self.seen)) for chunk in chunks]
        return {name: self._pooled(name, torch.cat([part[name] for part in parts])) for name in self.needs}

    def _of(self, inputs: Tensor, outputs: Tensor) -> dict[str, Tensor]:
        """The fields of frames, per patch, given the layer's input and output `[F, P, C]`."""
        found: dict[str, Tensor] = {}
        if self.needs & tower.FIELDS:
            (attended,) = tower.attended(self.layer.self_attn, (self.layer.layer_norm1(inputs),), {})
            found["attention"], found["keys"] = attended.received(), attended.mean_keys()
        if self.siglip is not None:
            found |= {name: self.siglip.tower_field(name, outputs) for name in self.needs & siglip.TOWER_FIELDS}
        return found

    def _pooled(self, name: str, value: Tensor) -> Tensor:
        if name == "frame_features":
            return value
        return self.adapter.pool(value) if value.dim() == 3 else self.adapter.pool(value[..., None]).squeeze(-1)
