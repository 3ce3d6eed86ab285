"""Facts and energy of a GPU, told by a stand-in for NVIDIA's library."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from mmg_bench.measure import gpu

CUDA = torch.device("cuda")


class Library:
    """Uses 2 joules in each call of the task."""

    class NVMLError(Exception):
        pass

    millijoules = 500_000

    def nvmlInit(self) -> None: ...

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        return uuid

    def nvmlSystemGetDriverVersion(self) -> str:
        return "580.1"

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: str) -> int:
        assert handle == "GPU-abc"
        return 700_000

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        return self.millijoules


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    made = Library()
    monkeypatch.setitem(sys.modules, "pynvml", made)
    properties = SimpleNamespace(uuid="abc", total_memory=80)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    return made


def spend(library: Library, monkeypatch: pytest.MonkeyPatch) -> float | None:
    monkeypatch.setattr(gpu, "Clock", lambda device: gpu_clock)
    gpu_clock = SimpleNamespace(stage=nullcontext, read=lambda: {"task": 100.0})

    def task() -> None:
        library.millijoules += 2000

    return gpu.joules(CUDA, task, seconds=0.25)


def test_energy_of_one_call(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    assert spend(library, monkeypatch) == 2
    assert library.millijoules == 500_000 + 3 * 2000  # three calls of a tenth of a second


def test_facts(library: Library) -> None:
    facts = gpu.gpu_facts(CUDA)
    assert (facts["power_limit_w"], facts["driver"], facts["gpu_memory_bytes"]) == (700, "580.1", 80)


def test_nothing_is_told_without_the_library_or_the_right(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(handle: str) -> int:
        raise Library.NVMLError

    monkeypatch.setattr(library, "nvmlDeviceGetTotalEnergyConsumption", refused)
    monkeypatch.setattr(library, "nvmlDeviceGetEnforcedPowerLimit", refused)
    assert spend(library, monkeypatch) is None
    assert gpu.gpu_facts(CUDA)["power_limit_w"] is None
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert spend(library, monkeypatch) is None
    assert gpu.gpu_facts(CUDA)["driver"] is None


@pytest.mark.parametrize(
    ("query", "limit"), [("nvmlSystemGetDriverVersion", 700), ("nvmlInit", None), ("nvmlDeviceGetHandleByUUID", None)]
)
def test_a_library_that_answers_in_part_is_no_error(
    library: Library, monkeypatch: pytest.MonkeyPatch, query: str, limit: float | None
) -> None:
    def refused(*_: str) -> str:
        raise Library.NVMLError

    monkeypatch.setattr(library, query, refused)
    facts = gpu.gpu_facts(CUDA)
    assert (facts["power_limit_w"], facts["driver"], facts["gpu_memory_bytes"]) == (limit, None, 80)


def test_a_counter_that_stops_answering_gives_no_energy(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = iter([500_000])

    def once(handle: str) -> int:
        for value in counted:
            return value
        raise Library.NVMLError

    monkeypatch.setattr(library, "nvmlDeviceGetTotalEnergyConsumption", once)
    assert spend(library, monkeypatch) is None


def test_a_cpu_tells_nothing() -> None:
    assert gpu.gpu_facts(torch.device("cpu")) == {}
    assert gpu.joules(torch.device("cpu"), lambda: None, 1) is None
