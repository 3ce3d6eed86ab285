"""What a model in which a method prunes tells of its last prompt."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from mmg_bench.elapsed import Elapsed
from mmg_bench.methods.base import Method, Positions
from mmg_bench.models.adapter import Layout


@dataclass(frozen=True)
class VideoReport:
    """What was done to one video of one prompt, also where `generate` repeats the prompt for beams or more answers."""

    total_tokens: int
    realised_tokens: int
    """Visual tokens that enter layer 0."""
    layout: Layout
    """Frames, rows and columns of its tokens: T, H, W."""
    positions: Tensor = field(repr=False, compare=False)
    """`[realised_tokens]` int64: which they are, as flat raster indices into T * H * W, on the model's device."""
    left: Tensor = field(repr=False, compare=False)
    """`[n]` int64: those that the last layer sees; the same, unless the method prunes inside the language model."""
    elapsed: Elapsed = field(repr=False)
    notes: dict[str, Any]
    stages: tuple[tuple[int, int], ...] = ()
    """`(layer, visual tokens that enter it)` of each later layer before which the method pruned."""

    def entering(self, layer: int) -> int:
        """How many of its visual tokens enter a layer of the language model."""
        return next((n for at, n in reversed(self.stages) if at <= layer), self.realised_tokens)

    @property
    def prune_seconds(self) -> float:
        """Spent before layer 0, device work included; what a method does inside the language model is part of that."""
        return self.elapsed.ms / 1000


@dataclass
class Run:
    """A model in which a method prunes; `report` tells of the last prompt."""

    method: Method
    positions: Positions
    report: list[VideoReport] = field(default_factory=list)
    prompt_tokens: int | None = None
    """Tokens that entered layer 0 at the last prefill: visual, newline and text."""

    @property
    def stages(self) -> list[list[int]]:
        """`[layer, visual tokens that enter it]` of all videos of the last prompt together."""
        layers = sorted({layer for video in self.report for layer, _ in video.stages})
        return [[layer, sum(video.entering(layer) for video in self.report)] for layer in layers]
