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


def _ask(device: torch.device, question: str) -> Any:
    """The answer to one query of the library; None if it is not available."""
    found = _handle(device)
    if found is None:
        return None
    library, handle = found
    try:
        return getattr(library, question)(handle)
    except library.NVMLError:
        return None


def gpu_facts(device: torch.device) -> dict[str, Any]:
    """GPU settings that affect its speed, as far as they can be read; empty for a CPU."""
    if device.type != "cuda":
        return {}
    milliwatts = _ask(device, "nvmlDeviceGetEnforcedPowerLimit")
    found = _handle(device)
    return {
        "gpu_memory_bytes": torch.cuda.get_device_properties(device).total_memory,
        "cuda": torch.version.cuda,
        "driver": None if found is None else found[0].nvmlSystemGetDriverVersion(),
        "power_limit_w": None if milliwatts is None else milliwatts / 1000,
    }


def joules(device: torch.device, task: Callable[[], Any], seconds: float) -> float | None:
    """Energy of the whole board per call of a task, measured for at least `seconds`; None if not reported.

    The counter updates in steps of up to a tenth of a second: half a second or more is needed.
    """
    if _ask(device, "nvmlDeviceGetTotalEnergyConsumption") is None:
        return None
    clock, calls, elapsed = Clock(device), 0, 0.0
    before = _ask(device, "nvmlDeviceGetTotalEnergyConsumption")  # in mJ
    while elapsed < 1000 * seconds:
        with clock.stage("task"):
            task()
        elapsed += clock.read()["task"]
        calls += 1
    return (_ask(device, "nvmlDeviceGetTotalEnergyConsumption") - before) / 1000 / calls
