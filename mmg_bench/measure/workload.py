"""The workload of every measurement: some frames of a video and a prompt, encoded, prefilled and decoded."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmg_bench.benchmarks.embedded.dataset import cache_folder
from mmg_bench.benchmarks.embedded.render import VERSION, write_video
from mmg_bench.benchmarks.embedded.world import make_world
from mmg_bench.benchmarks.video import Clip, Timing, read_clip
from mmg_bench.cells import Cell
from mmg_bench.models.caches import CACHE
from mmg_bench.models.loading import Encoded, Pixels, VideoLLM
from mmg_bench.options import check_folder, check_path, check_whole

PIXELS = (360, 640)
"""Height and width of random frames."""
_SIDE = 384  # pixels of the standard video


@dataclass(frozen=True)
class Workload:
    """A prompt about some frames of a video, repeated in one batch."""

    video: Path | None
    """None: random pixels, and no video decoding."""
    prompt: str
    frames: int
    batch: int = 1

    def __post_init__(self) -> None:
        for name in ("frames", "batch"):
            check_whole(name, getattr(self, name), 1)

    def decode(self) -> list[Clip]:
        """The frames of each video in the batch."""
        if self.video is None:
            return [self._random] * self.batch
        return [read_clip(self.video, self.frames) for _ in range(self.batch)]

    @cached_property
    def _random(self) -> Clip:
        pixels = np.random.default_rng(0).integers(256, size=(self.frames, *PIXELS, 3), dtype=np.uint8)
        return Clip(pixels, Timing.every_second(self.frames))

    def inputs(self, llm: VideoLLM, encoded: Encoded) -> dict[str, Tensor]:
        """The output of `VideoLLM.tokenize` for the prompt, `[batch, S]` each."""
        one = llm.tokenize(self.prompt, encoded.texts[:1])
        return {name: value.repeat(self.batch, 1) for name, value in one.items()}


def standard_video() -> Path:
    """The default mp4 file for measurements: created on first use, 384 pixels per side."""
    path = cache_folder() / f"measure-{_SIDE}-{VERSION}.mp4"
    if not path.exists():
        check_folder("MMG_BENCH_CACHE", str(cache_folder()))
        write_video(make_world("test", 0), path, _SIDE)
    return path


def video_file(given: str) -> Path:
    """The file that the option `video` names, which need not exist; for `generated`, the standard one."""
    return standard_video() if given == "generated" else check_path("video", given)


def preprocess(llm: VideoLLM, clips: Sequence[Clip]) -> Pixels:
    """Process a batch of videos with the model's processor."""
    each = [llm.preprocess(clip.pixels, clip.timing) for clip in clips]
    tensors = {name: torch.cat([pixels.tensors[name] for pixels in each]) for name in each[0].tensors}
    texts, times = ([value for pixels in each for value in getattr(pixels, name)] for name in ("texts", "times"))
    return Pixels(tensors, texts, times)


def tower_needs(llm: VideoLLM, cell: Cell) -> frozenset[str]:
    """The fields that a cell needs from the vision tower: they make encoding slower, which is charged to the cell."""
    return cell.method.needs & llm.adapter.supplies


def needs_sets(llm: VideoLLM, cells: Collection[Cell]) -> list[frozenset[str]]:
    """The distinct needs of some cells, plain encoding first."""
    return sorted({tower_needs(llm, cell) for cell in cells}, key=lambda needs: (len(needs), sorted(needs)))


def prefill(llm: VideoLLM, encoded: Encoded, inputs: dict[str, Tensor]) -> Any:
    """One forward call on encoded video, up to the first token's logits."""
    return llm.model(**inputs, **encoded.arguments, use_cache=True, logits_to_keep=1)


def decode_steps(llm: VideoLLM, out: Any, mask: Tensor, steps: int) -> None:
    """Decode `steps` more tokens after a prefill, greedily."""
    for _ in range(steps):
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        out = llm.model(
            input_ids=out.logits[:, -1:].argmax(-1),
            attention_mask=mask,
            position_ids=llm.adapter.next_ids(mask),
            use_cache=True,
            **{CACHE: getattr(out, CACHE)},
        )


def random_prompt(tokenizer: Any, words: int) -> str:
    """`words` random words from the tokenizer's own vocabulary, most of them one token each."""
    known = {token.lstrip("Ġ▁") for token in tokenizer.get_vocab()}
    choices = sorted(word for word in known if word.isascii() and word.isalpha())
    return " ".join(np.random.default_rng(0).choice(choices, size=words))
