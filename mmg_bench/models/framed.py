"""Shared code of InternVL and SmolVLM: the model sees a video as its frames, each an image in the prompt.

Neither placeholders nor pixels tell a video from an image. So that nothing is pruned on a guess, a prompt may contain
only one video and no other visual input: two or more frames, each a run of as many placeholders as a frame has, with
the same words before each except for its number or time. Anything else raises an error that says so. Images that a
prompt introduces in the way the processor introduces frames count as frames.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from mmg_bench.models.adapter import Adapter, Capture, Layout, UnsupportedModelError, hooked
from mmg_bench.models.tower import Attended, TowerCapture, of_frames
from mmg_bench.tokens import VideoTokens

_DIGITS = 4  # maximum difference in length between the words before two frames: frame 1 and frame 10000


class Framed(Adapter):
    """Adapter of a model that takes videos as frames."""

    words = 0
    """Minimum number of tokens between two frames: more than between images, fewer than the processor's words take."""
    numbered = False
    """Whether those words number the frames, so that no two of them are the same in one video."""

    @property
    def multimodal(self) -> Any:
        return self.model.model

    @property
    def video_token_id(self) -> int:
        return self.model.config.image_token_id

    @property
    @abstractmethod
    def tower(self) -> nn.Module:
        """The vision tower, which is called with `pixel_values` `[frames, 3, height, width]`."""

    @property
    @abstractmethod
    def last_attention(self) -> Any:
        """The attention module of the tower layer that produces the features."""

    @property
    @abstractmethod
    def side(self) -> int:
        """Tokens per side of a frame."""

    def in_a_row(self, layout: Layout) -> int:
        _, height, width = layout
        return height * width

    def holds_videos(self, inputs: dict[str, Any]) -> bool:
        return self.encoded(inputs) is not None or inputs.get("pixel_values") is not None

    def encoded(self, inputs: dict[str, Any]) -> Any:
        return (inputs.get("mm_encoder_outputs") or {}).get("image")

    def layouts(self, inputs: dict[str, Any], captured: Capture) -> list[Layout]:
        assert isinstance(captured, FrameCapture)
        found = [self._layout(number, row) for number, row in enumerate(inputs["input_ids"])]
        frames = sum(layout[0] for layout in found if layout is not None)
        copies, rest = divmod(frames, captured.frames or 1)
        prompts = found[:: copies or 1]  # `generate` repeats them for beams
        if rest or [layout for layout in prompts for _ in range(copies)] != found:  # the tower saw others, or none
            prompts = found
        return [layout for layout in prompts if layout is not None]

    def _layout(self, number: int, row: Tensor) -> Layout | None:
        """Layout of the video in a prompt `[S]`, the `number`-th of the batch; None if it has no visual tokens."""
        columns = (row == self.video_token_id).nonzero().flatten()
        if not len(columns):
            return None
        firsts = columns[columns.diff(prepend=columns[:1] - 2) > 1]
        lasts = columns[columns.diff(append=columns[-1:] + 2) > 1]
        between = [row[end + 1 : start].tolist() for end, start in zip(lasts[:-1], firsts[1:], strict=True)]
        lengths = {len(words) for words in between}
        if set((lasts - firsts + 1).tolist()) != {self.side**2}:
            fault = f"holds an image that does not have {self.side**2} adjacent tokens"
        elif not between:
            fault = "holds a single image, which may or may not be a frame"
        elif min(lengths) < self.words or max(lengths) - min(lengths) > _DIGITS:
            fault = "holds images that do not follow one another like a video's frames"
        elif not _alike(row[: int(firsts[0])].tolist(), between[0][1:]):
            fault = "holds a first image that is not introduced like the others"
        elif self.numbered and len({tuple(words) for words in between}) < len(between):
            fault = "holds frames with the same number"
        else:
            return len(firsts), self.side, self.side
        raise ValueError(
            f"prompt {number} {fault}: models of type {self.model.config.model_type!r} see videos as images: a "
            "prompt must hold one video of two or more frames, made by the model's own processor, and no images"
        )

    def encode(self, videos: dict[str, Tensor], needs: Collection[str]) -> tuple[list[VideoTokens], dict[str, Any]]:
        with torch.inference_mode(), self.capture(needs) as captured:
            frames, outputs = self._encoded(videos)
        tokens, first = [], 0
        for flat in frames:
            features = flat.reshape(-1, self.side**2, flat.shape[-1])  # [T, N, D]
            tokens.append(captured.video(features, (self.side, self.side), first))
            first += len(features)
        return tokens, {"mm_encoder_outputs": {"image": outputs}}

    @abstractmethod
    def _encoded(self, videos: dict[str, Tensor]) -> tuple[Any, Any]:
        """The features of each video, `[T * N, D]` or `[T, N, D]`, and what the model's own encoder returned."""

    def capture(self, needs: Collection[str]) -> AbstractContextManager[Capture]:
        captured = FrameCapture(self, self.supplies & set(needs))
        handles = [self.tower.register_forward_pre_hook(captured.note, with_kwargs=True)]
        handles += captured.handles(self.tower)
        return hooked(captured, handles)


def _alike(before: list[int], words: list[int]) -> bool:
    """Whether more than half of the `words` before the second frame also end the prompt up to the first frame."""
    same = sum(a == b for a, b in zip(before[-len(words) :], words, strict=False)) if len(before) >= len(words) else 0
    return 2 * same > len(words)


class FrameCapture(TowerCapture):
    """The number of frames in the vision tower's last call, and the attention of one of its layers."""

    def __init__(self, adapter: Framed, needs: frozenset[str]):
        self.side = adapter.side
        super().__init__(adapter.last_attention, needs)

    def forget(self) -> None:
        super().forget()
        self.frames = 0
        self.seen: Tensor | None = None  # bool `[frames, height, width]`: patches that are not padding

    def note(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook of the tower."""
        self.forget()
        self.frames = len(args[0] if args else kwargs["pixel_values"])
        self.seen = kwargs.get("patch_attention_mask")

    def of_call(self, parts: list[Attended]) -> dict[str, Any]:
        (frames,) = parts
        if self.seen is not None and not self.seen.all():
            raise UnsupportedModelError(
                "some patches are marked as padding: the attention that they receive in the vision tower is not known; "
                "pass frames from the model's own video processor, or choose a method that does not need this "
                "attention, such as mmg_vid"
            )
        return of_frames(frames, self.side)
