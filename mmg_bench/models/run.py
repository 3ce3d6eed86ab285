"""Report of a pruned model on its last prompt."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from mmg_bench.elapsed import Elapsed
from mmg_bench.methods.base import Method, Positions
from mmg_bench.models.adapter import Layout


@dataclass(frozen=True)
class VideoReport:
    """How one video of one prompt was pruned; one report even if `generate` repeats the prompt for beams or answers."""

    total_tokens: int
    realised_tokens: int
    """Visual tokens that enter layer 0."""
    layout: Layout
    """Frames, rows and columns of its tokens: T, H, W."""
    positions: Tensor = field(repr=False, compare=False)
    """`[realised_tokens]` int64: flat raster indices of these tokens into T * H * W, on the model's device."""
    features: Tensor = field(repr=False, compare=False)
    """`[realised_tokens, D]`: these tokens, as the method left them."""
    left: Tensor = field(repr=False, compare=False)
    """`[n]` int64: those that the last layer sees; same as `positions` unless the method prunes inside the model."""
    elapsed: Elapsed = field(repr=False)
    notes: dict[str, Any]
    stages: tuple[tuple[int, int], ...] = ()
    """`(layer, visual tokens that enter it)` for each later layer before which the method pruned."""

    def entering(self, layer: int) -> int:
        """Number of its visual tokens that enter a layer of the language model."""
        return next((n for at, n in reversed(self.stages) if at <= layer), self.realised_tokens)

    @property
    def prune_seconds(self) -> float:
        """Seconds spent before layer 0, device work included; work inside the language model counts as the model's."""
        return self.elapsed.ms / 1000


@dataclass
class Run:
    """A model that is being pruned with a method; `report` describes the last prompt."""

    method: Method
    positions: Positions
    report: list[VideoReport] = field(default_factory=list)
    prompt_tokens: int | None = None
    """Tokens that entered layer 0 at the last prefill: visual, newline and text."""

    @property
    def stages(self) -> list[list[int]]:
        """`[layer, visual tokens that enter it]`, summed over all videos of the last prompt."""
        layers = sorted({layer for video in self.report for layer, _ in video.stages})
        return [[layer, sum(video.entering(layer) for video in self.report)] for layer in layers]
