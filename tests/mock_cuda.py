"""A machine with a GPU, for tests where there is none: a MockGpu, and what is asked of `torch.cuda` beside tensors."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mmg_bench.mock_gpu import MockGpu

MEMORY = 80 * 10**9


class Event:
    """Of a GPU that does its work at once."""

    def __init__(self, enable_timing: bool = False):
        self._at = 0.0

    def record(self, stream: Any = None) -> None:
        self._at = time.perf_counter()

    def synchronize(self) -> None:
        pass

    def query(self) -> bool:
        return True

    def elapsed_time(self, end: Event) -> float:
        return 1000 * (end._at - self._at)


ANSWERS: dict[str, Any] = {
    "is_available": True,
    "current_device": 0,
    "current_stream": None,
    "set_device": None,
    "synchronize": None,
    "empty_cache": None,
    "is_bf16_supported": True,
    "get_device_capability": (7, 0),  # from 8.0 on, transformers takes kernels that a CPU lacks
    "get_device_name": "mock",
    "get_device_properties": SimpleNamespace(uuid="0", total_memory=MEMORY, multi_processor_count=132, L2_cache_size=0),
    "mem_get_info": (MEMORY, MEMORY),
    "memory_allocated": 0,
    "max_memory_allocated": 0,
    "reset_peak_memory_stats": None,
}
"""By the names of functions of `torch.cuda`."""


@contextmanager
def mock_cuda(count: int = 1) -> Iterator[MockGpu]:
    """While it is entered, torch tells of so many GPUs, and has them."""
    with pytest.MonkeyPatch.context() as patch, MockGpu(count) as gpu:
        patch.setattr(torch.cuda, "Event", Event)
        for name, answer in {**ANSWERS, "device_count": count}.items():
            patch.setattr(torch.cuda, name, lambda *_, answer=answer, **__: answer)
        yield gpu
