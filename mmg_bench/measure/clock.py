"""One clock for the CPU and the GPU, and quantiles of times over several rounds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray

from mmg_bench.elapsed import Elapsed


class Clock:
    """Milliseconds of named stages.

    A stage begins once all work queued before it is done, and includes all work queued inside it.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.stage_now = "start"
        """The stage that is running, or the last one that ran."""
        self._spans: dict[str, Elapsed] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the work inside the context as `name`."""
        self.stage_now = name
        self._wait()
        span = Elapsed(self.device)
        yield
        span.stop()
        self._spans[name] = span

    def read(self) -> dict[str, float]:
        """Milliseconds of every stage since the last call, once all stages are finished."""
        self._wait()
        spans, self._spans = self._spans, {}
        return {name: span.ms for name, span in spans.items()}

    def clear(self) -> None:
        """Discard the stages since the last `read`, because one of them failed."""
        self._spans.clear()

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def quantiles(values: NDArray[np.float64]) -> tuple[float, float, float]:
    """Median, 5th and 95th percentile of the measured rounds."""
    middle, low, high = np.nanquantile(values, (0.5, 0.05, 0.95)).tolist()
    return middle, low, high
