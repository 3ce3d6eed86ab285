"""Latency: a planted delay shows up in its own stage and nowhere else."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from mmg_bench.benchmarks.embedded.render import write_video
from mmg_bench.benchmarks.embedded.world import make_world
from mmg_bench.measure.latency import STAGES, CellTimes, LatencySettings, measure_cells, speedup
from mmg_bench.methods.base import Method
from mmg_bench.models.loading import ModelSpec, VideoLLM
from mmg_bench.runner.cells import Cell, make_cell
from mmg_bench.tokens import PrunedTokens, VideoTokens, keep

DELAY = 0.25
FAST = LatencySettings(repeats=2, warmup=1, new_tokens=2)


@dataclass(frozen=True)
class Slow(Method):
    """Sleeps while it prunes."""

    name: ClassVar[str] = "slow"

    def select(self, tokens: VideoTokens) -> PrunedTokens:
        import torch

        time.sleep(DELAY)
        return keep(tokens, torch.arange(self.budget(tokens)))


@pytest.fixture(scope="module")
def llm(tiny_folder: Path) -> VideoLLM:
    return VideoLLM(ModelSpec("tiny", str(tiny_folder), frames=4, dtype="float32", device="cpu"))


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "v.mp4"
    write_video(make_world("train", 0, sampled=4), path, size=32)
    return path


def slow_stages(times: CellTimes) -> set[str]:
    return {stage for stage in STAGES if np.median(times.stages[stage]) > 1000 * DELAY / 2}


def test_a_slow_prune_is_charged_to_prune(llm: VideoLLM, video: Path) -> None:
    cells = [make_cell("dense", 1.0), Cell(Slow(0.25), "original")]
    dense, slow = measure_cells(llm, cells, video, "What colour is the star?", FAST)
    assert slow_stages(dense) == set()
    assert slow_stages(slow) == {"prune_ms"}
    assert (dense.realised_tokens, slow.realised_tokens) == (64, 16)
    assert speedup(dense, slow, ("prune_ms", "prefill_ms"))[0] < 1


@pytest.mark.parametrize(
    ("owner", "name", "stage"),
    [
        ("mmg_bench.measure.latency", "read_frames", "decode_ms"),
        (VideoLLM, "preprocess", "preprocess_ms"),
        (VideoLLM, "encode", "encode_ms"),
    ],
)
def test_other_slow_stages(
    llm: VideoLLM, video: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, stage: str
) -> None:
    from mmg_bench.measure import latency

    owner = latency if isinstance(owner, str) else owner
    original = getattr(owner, name)

    def delayed(*args: Any) -> Any:
        time.sleep(DELAY)
        return original(*args)

    monkeypatch.setattr(owner, name, delayed)
    (dense,) = measure_cells(llm, [make_cell("dense", 1.0)], video, "What colour is the star?", FAST)
    assert slow_stages(dense) == {stage}


@pytest.mark.parametrize(("layer_call", "stage"), [("prefill", "prefill_ms"), ("decode", "decode_token_ms")])
def test_a_slow_language_model(llm: VideoLLM, video: Path, layer_call: str, stage: str) -> None:
    def delay(module: Any, args: tuple[Any, ...]) -> None:
        if (args[0].shape[1] > 1) == (layer_call == "prefill"):
            time.sleep(DELAY)

    handle = llm.model.model.language_model.layers[0].register_forward_pre_hook(delay)
    try:
        (dense,) = measure_cells(llm, [make_cell("dense", 1.0)], video, "What colour is the star?", FAST)
    finally:
        handle.remove()
    assert slow_stages(dense) == {stage}


def times(prefill: list[float]) -> CellTimes:
    zero = np.zeros(len(prefill))
    return CellTimes({**dict.fromkeys(STAGES, zero), "prefill_ms": np.array(prefill)}, 1)


def test_speedup_and_its_interval() -> None:
    value, low, high = speedup(times([40.0] * 9), times([10.0] * 9), ("prune_ms", "prefill_ms"))
    assert (value, low, high) == (4, 4, 4)
    value, low, high = speedup(times([40, 41, 39, 60, 40]), times([10, 10, 11, 9, 20]), ("prefill_ms",))
    assert low < value == 4 < high


@pytest.mark.parametrize(("field", "value"), [("repeats", 1), ("warmup", -1), ("new_tokens", 0)])
def test_settings_are_checked(field: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"measure.{field}={value}"):
        LatencySettings(**{field: value})
