"""One clock for the CPU and the GPU."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class Clock:
    """Milliseconds of named stages: by events on a GPU's stream, by `perf_counter` on a CPU.

    A stage begins once all work queued before it is done, and holds all work queued inside it.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.stage_now = "start"
        """The stage that is running, or was the last to run."""
        self._spans: dict[str, tuple[Any, Any]] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what happens inside as `name`."""
        self.stage_now = name
        self._wait()
        start = self._mark()
        yield
        self._spans[name] = start, self._mark()

    def read(self) -> dict[str, float]:
        """Milliseconds of every stage since the last call, once all of them are over."""
        self._wait()
        spans, self._spans = self._spans, {}
        if self.device.type == "cuda":
            return {name: start.elapsed_time(end) for name, (start, end) in spans.items()}
        return {name: 1000 * (end - start) for name, (start, end) in spans.items()}

    def clear(self) -> None:
        """Forget the stages since the last `read`: something went wrong in one of them."""
        self._spans.clear()

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _mark(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event
