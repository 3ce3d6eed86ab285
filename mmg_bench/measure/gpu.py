"""Settings and energy use of a GPU, from NVIDIA's management library."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from mmg_bench.measure.clock import Clock


def _handle(device: torch.device) -> tuple[Any, Any] | None:
    """The library and its handle for a device; None if the library or the driver is missing."""
    if device.type != "cuda":
        return None
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        return pynvml, pynvml.nvmlDeviceGetHandleByUUID(uuid)
    except pynvml.NVMLError:
        return None


def _ask(device: torch.device, question: Callable[[Any, Any], Any]) -> Any:
    """The answer to a query, given the library and its handle for the device; None if it is not available."""
    found = _handle(device)
    if found is None:
        return None
    library, handle = found
    try:
        return question(library, handle)
    except library.NVMLError:
        return None


def _energy(device: torch.device) -> int | None:
    """The board's energy counter in mJ; None if not reported."""
    counted: int | None = _ask(device, lambda nvml, handle: nvml.nvmlDeviceGetTotalEnergyConsumption(handle))
    return counted


def gpu_facts(device: torch.device) -> dict[str, Any]:
    """GPU settings that affect its speed, as far as they can be read; empty for a CPU."""
    if device.type != "cuda":
        return {}
    milliwatts = _ask(device, lambda nvml, handle: nvml.nvmlDeviceGetEnforcedPowerLimit(handle))
    return {
        "gpu_memory_bytes": torch.cuda.get_device_properties(device).total_memory,
        "cuda": torch.version.cuda,
        "driver": _ask(device, lambda nvml, _: nvml.nvmlSystemGetDriverVersion()),
        "power_limit_w": None if milliwatts is None else milliwatts / 1000,
    }


def joules(device: torch.device, task: Callable[[], Any], seconds: float) -> float | None:
    """Energy of the whole board per call of a task, measured for at least `seconds`; None if not reported.

    The counter updates in steps of up to a tenth of a second: half a second or more is needed.
    """
    if (before := _energy(device)) is None:
        return None
    clock, calls, elapsed = Clock(device), 0, 0.0
    while elapsed < 1000 * seconds:
        with clock.stage("task"):
            task()
        elapsed += clock.read()["task"]
        calls += 1
    after = _energy(device)
    return None if after is None else (after - before) / 1000 / calls
