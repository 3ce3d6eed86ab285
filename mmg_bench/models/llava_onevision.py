"""LLaVA-OneVision: SigLIP tower, 2x2 bilinear pooling of the projected patches, one newline token behind a video."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mmg_bench.models.adapter import Adapter, Capture
from mmg_bench.tokens import VideoTokens

_FRAMES_AT_ONCE = 4  # bounds the memory of the [frames, heads, P, P] attention that is recomputed


class LlavaOnevision(Adapter):
    """Adapter of `LlavaOnevisionForConditionalGeneration`."""

    supplies = frozenset({"attention", "keys"})

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

    def frames(self, inputs: dict[str, Any]) -> int | None:
        encoded = (inputs.get("mm_encoder_outputs") or {}).get("video")
        if encoded is not None:
            return (encoded.pooler_output.shape[1] - self.trailing) // math.prod(self.grid)
        pixels = inputs.get("pixel_values_videos")
        return None if pixels is None else pixels.shape[1]

    def encode(self, videos: dict[str, Tensor], needs: Collection[str]) -> tuple[list[VideoTokens], dict[str, Any]]:
        pixels = videos["pixel_values_videos"]  # [V, T, 3, H, W]
        needs = set(needs) & self.supplies
        with torch.inference_mode(), self.capture(needs) as captured:
            outputs = self.model.get_video_features(pixels.to(self.model.dtype), return_dict=True)
        features = outputs.pooler_output[:, : -self.trailing]  # [V, T * N, D]
        per_video = features.unflatten(1, (pixels.shape[1], -1))
        frames = pixels.shape[1]
        tokens = [VideoTokens(f, self.grid, **captured.fields(v * frames, frames)) for v, f in enumerate(per_video)]
        return tokens, {"mm_encoder_outputs": {"video": outputs}}

    @contextmanager
    def capture(self, needs: Collection[str]) -> Iterator[Capture]:
        captured = SiglipCapture(self, frozenset(needs) & self.supplies)
        handle = captured.attention.register_forward_pre_hook(captured.note, with_kwargs=True)
        try:
            yield captured
        finally:
            handle.remove()

    def pool(self, maps: Tensor) -> Tensor:
        """Pool per-patch values `[T, P, C]` to per-token values `[T, N, C]` as the model pools its features."""
        return self.model.model.apply_pooling(maps)


class SiglipCapture(Capture):
    """Recomputes, for the one layer that the features come from, what scaled-dot-product attention does not return."""

    def __init__(self, adapter: LlavaOnevision, needs: frozenset[str]):
        self.adapter, self.needs = adapter, needs
        layer = adapter.model.config.vision_feature_layer
        if not isinstance(layer, int):  # several layers are concatenated; the last of them is the deepest
            layer = layer[-1]
        # hidden state 0 is the input of layer 0, hidden state -1 the output of the last one
        layers = adapter.model.model.vision_tower.encoder.layers
        self.attention = layers[layer if layer < 0 else layer - 1].self_attn
        self.inputs: Tensor | None = None  # [frames, P, C]

    def note(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook of the attention: keep its input."""
        if self.needs:
            self.inputs = (args[0] if args else kwargs["hidden_states"]).detach()

    @torch.no_grad()
    def fields(self, first: int, count: int) -> dict[str, Tensor]:
        if not self.needs:
            return {}
        if self.inputs is None or len(self.inputs) < first + count:
            raise RuntimeError(
                "the vision tower did not encode these frames inside the context: open it before the videos are encoded"
            )
        attention, keys = [], []
        for frames in self.inputs[first : first + count].split(_FRAMES_AT_ONCE):
            received, metric = self._attend(frames)
            attention.append(received)
            keys.append(metric)
        maps = {"attention": torch.cat(attention)[..., None], "keys": torch.cat(keys)}
        pooled = {name: self.adapter.pool(maps[name]) for name in self.needs}
        return {name: value.squeeze(-1) if name == "attention" else value for name, value in pooled.items()}

    def _attend(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Received attention `[F, P]` and head-mean keys `[F, P, head width]` of frames `[F, P, C]`, in float32."""
        split = (self.attention.num_heads, self.attention.head_dim)
        q = self.attention.q_proj(x).unflatten(-1, split).transpose(1, 2).float()  # [F, heads, P, width]
        k = self.attention.k_proj(x).unflatten(-1, split).transpose(1, 2).float()
        weights = (q @ k.transpose(-1, -2) * self.attention.scale).softmax(-1)  # [F, heads, P, P]
        return weights.mean(dim=(1, 2)), k.mean(dim=1)
