"""What NVIDIA's management library is asked, and what is made of a library that does not answer."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mmg_bench.measure import gpu
from mmg_bench.measure.gpu import gpu_facts, joules

CUDA = torch.device("cuda:0")


class Library:
    """A stand-in for `pynvml` whose energy counter advances by 500 mJ a read; `silent` queries raise its error."""

    class NVMLError(Exception):
        pass

    def __init__(self, *silent: str) -> None:
        self.silent, self.energy = set(silent), 1000

    def _answer(self, name: str, value: Any) -> Any:
        if name in self.silent:
            raise self.NVMLError(name)
        return value

    def nvmlInit(self) -> None:
        self._answer("init", None)

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        assert uuid == "GPU-abc"
        return "handle"

    def nvmlSystemGetDriverVersion(self) -> str:
        return str(self._answer("driver", "570.1"))

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: str) -> int:
        assert handle == "handle"
        return int(self._answer("power", 700_000))

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        assert handle == "handle"
        self.energy += 500
        return int(self._answer("energy", self.energy))


@pytest.fixture(autouse=True)
def device(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(uuid="abc", total_memory=7)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)


def use(monkeypatch: pytest.MonkeyPatch, library: Library | None) -> Library | None:
    monkeypatch.setitem(sys.modules, "pynvml", library)
    return library


def test_a_gpu_tells_its_driver_and_its_power_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, Library())
    facts = gpu_facts(CUDA)
    assert (facts["gpu_memory_bytes"], facts["driver"], facts["power_limit_w"]) == (7, "570.1", 700)


@pytest.mark.parametrize(
    ("library", "driver", "limit"),
    [
        (Library("driver"), None, 700),
        (Library("power"), "570.1", None),
        (Library("init"), None, None),
        (None, None, None),
    ],
)
def test_what_cannot_be_read_is_none(
    monkeypatch: pytest.MonkeyPatch, library: Library | None, driver: str | None, limit: float | None
) -> None:
    use(monkeypatch, library)
    facts = gpu_facts(CUDA)
    assert (facts["driver"], facts["power_limit_w"]) == (driver, limit)


def test_a_cpu_has_none_of_it() -> None:
    assert gpu_facts(torch.device("cpu")) == {}
    assert joules(torch.device("cpu"), pytest.fail, 1) is None


class Seconds:
    """A clock by which every task takes 0.4 s."""

    def __init__(self, device: torch.device) -> None:
        pass

    def stage(self, name: str) -> Any:
        return nullcontext()

    def read(self) -> dict[str, float]:
        return {"task": 400.0}


def test_energy_is_that_of_one_of_the_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, Library())
    monkeypatch.setattr(gpu, "Clock", Seconds)
    calls: list[int] = []
    assert joules(CUDA, lambda: calls.append(1), 1) == pytest.approx(0.5 / 3)
    assert len(calls) == 3  # the first number of them that takes a second


def test_a_counter_that_stops_answering_gives_no_energy(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library()
    use(monkeypatch, library)
    monkeypatch.setattr(gpu, "Clock", Seconds)
    assert joules(CUDA, lambda: library.silent.add("energy"), 1) is None
    assert joules(CUDA, pytest.fail, 1) is None
