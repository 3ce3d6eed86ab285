"""The time between two moments, on a CPU and on a GPU."""

from __future__ import annotations

import time
from typing import Any

import torch


class Elapsed:
    """Time from construction to `stop`: by `perf_counter`, or by events on a GPU's stream.

    Events do not block until `ms` is read. They time the work queued in between, not what the host did meanwhile.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self._start = self._end = self._now()

    def stop(self) -> None:
        """Set the end of the interval to now."""
        self._end = self._now()

    @property
    def ms(self) -> float:
        """Milliseconds from construction to `stop`."""
        if self.device.type != "cuda":
            return 1000 * float(self._end - self._start)
        self._end.synchronize()
        return float(self._start.elapsed_time(self._end))

    def _now(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event
