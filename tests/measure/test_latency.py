"""Latency: a planted delay shows up in its own stage and nowhere else.

Time stands still in these tests, but for the delays: so they are exact, on a busy machine too.
"""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from mmg_bench.cells import Cell, make_cell
from mmg_bench.measure import latency
from mmg_bench.measure.clock import Clock
from mmg_bench.measure.failures import Failure
from mmg_bench.measure.latency import (
    SPEEDUPS,
    STAGES,
    TIMES,
    CellTimes,
    LatencySettings,
    measure_cells,
    speedup,
    time_values,
)
from mmg_bench.measure.workload import Workload, random_prompt
from mmg_bench.methods.base import Method
from mmg_bench.models.llava_onevision import SiglipCapture
from mmg_bench.models.loading import VideoLLM
from mmg_bench.tokens import PrunedTokens, VideoTokens, keep

DELAY = 0.25  # seconds
FAST = LatencySettings(repeats=2, warmup=1, new_tokens=2)
QUESTION = "What colour is the star?"
DENSE = make_cell("dense", 1.0)


class Time:
    """A clock that only `delay` moves."""

    now = 100.0


def delay() -> None:
    Time.now += DELAY


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time that stands still."""
    monkeypatch.setattr(time, "perf_counter", lambda: Time.now)


@dataclass(frozen=True)
class First(Method):
    """Keeps the first tokens."""

    name: ClassVar[str] = "first"

    def select(self, tokens: VideoTokens) -> PrunedTokens:
        return keep(tokens, torch.arange(self.budget(tokens), device=tokens.features.device))


@dataclass(frozen=True)
class Slow(First):
    """Sleeps while it prunes."""

    name: ClassVar[str] = "slow"

    def select(self, tokens: VideoTokens) -> PrunedTokens:
        delay()
        return super().select(tokens)


@dataclass(frozen=True)
class Attentive(First):
    """Asks for attention of the vision tower."""

    name: ClassVar[str] = "attentive"
    needs: ClassVar[frozenset[str]] = frozenset({"attention"})


@dataclass(frozen=True)
class Hungry(First):
    """Runs out of memory while it prunes."""

    name: ClassVar[str] = "hungry"

    def select(self, tokens: VideoTokens) -> PrunedTokens:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB\nand more words")


@dataclass(frozen=True)
class Broken(First):
    """Fails while it prunes, once it was called so often."""

    name: ClassVar[str] = "broken"
    sound_calls: ClassVar[list[int]] = [0]

    def select(self, tokens: VideoTokens) -> PrunedTokens:
        if not self.sound_calls[0]:
            raise ValueError("a mistake of the method")
        self.sound_calls[0] -= 1
        return super().select(tokens)


def cell(method: type[Method]) -> Cell:
    return Cell(method(0.25), "original")


@pytest.fixture
def workload(video: Path) -> Workload:
    return Workload(video, QUESTION, frames=4)


def slow_stages(times: CellTimes) -> set[str]:
    """Stages that took the delay, each time; all others must have taken no time at all."""
    assert all(np.isin(samples.round(6), (0, 1000 * DELAY)).all() for samples in times.stages.values())
    return {stage for stage, samples in times.stages.items() if samples.all()}


@pytest.mark.usefixtures("still")
def test_a_slow_prune_is_charged_to_prune(llm: VideoLLM, workload: Workload) -> None:
    dense, slow = measure_cells(llm, [DENSE, cell(Slow)], workload, FAST)
    assert slow_stages(dense) == set()
    assert slow_stages(slow) == {"prune_ms"}
    assert (dense.realised_tokens, slow.realised_tokens) == (64, 16)
    assert dense.prompt_tokens - slow.prompt_tokens == 48
    assert speedup(dense, slow, ("prune_ms", "prefill_ms"))[0] == 0


@pytest.mark.usefixtures("still")
@pytest.mark.parametrize(
    ("owner", "name", "stage"),
    [
        (Workload, "decode", "decode_ms"),
        (VideoLLM, "preprocess", "preprocess_ms"),
        (VideoLLM, "encode", "encode_ms"),
        (latency, "prefill", "prefill_ms"),
        (latency, "decode_steps", "decode_token_ms"),
    ],
)
def test_other_slow_stages(
    llm: VideoLLM, workload: Workload, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, stage: str
) -> None:
    original = getattr(owner, name)

    def delayed(*args: Any) -> Any:
        delay()
        return original(*args)

    monkeypatch.setattr(owner, name, delayed)
    (dense,) = measure_cells(llm, [DENSE], workload, LatencySettings(repeats=2, warmup=0, new_tokens=1))
    assert slow_stages(dense) == {stage}


@pytest.mark.usefixtures("still")
@pytest.mark.parametrize(
    ("module", "prefills", "stage"),
    [
        ("vision_tower", None, "encode_ms"),
        ("language_model.layers.0", True, "prefill_ms"),
        ("language_model.layers.0", False, "decode_token_ms"),
    ],
)
def test_a_slow_part_of_the_model(
    llm: VideoLLM, workload: Workload, module: str, prefills: bool | None, stage: str
) -> None:
    def slow(module: Any, args: tuple[Any, ...]) -> None:
        if prefills is None or (args[0].shape[1] > 1) == prefills:
            delay()

    handle = llm.model.model.get_submodule(module).register_forward_pre_hook(slow)
    try:
        times = measure_cells(llm, [DENSE, cell(First)], workload, FAST)
    finally:
        handle.remove()
    assert [slow_stages(t) for t in times] == [{stage}, {stage}]


@pytest.mark.usefixtures("still")
def test_attention_of_the_tower_is_charged_to_those_who_ask(
    llm: VideoLLM, workload: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = SiglipCapture.fields

    def delayed(self: SiglipCapture, *args: Any) -> Any:
        if self.needs:
            delay()
        return original(self, *args)

    monkeypatch.setattr(SiglipCapture, "fields", delayed)
    dense, plain, attentive = measure_cells(llm, [DENSE, cell(First), cell(Attentive)], workload, FAST)
    assert [slow_stages(t) for t in (dense, plain, attentive)] == [set(), set(), {"encode_ms"}]
    assert "encode_ms" in SPEEDUPS["ttft_speedup"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_work_that_is_only_queued_is_charged_where_it_was_queued(llm: VideoLLM) -> None:
    @dataclass(frozen=True)
    class Queues(First):
        """Queues work and does not wait for it."""

        name: ClassVar[str] = "queues"

        def select(self, tokens: VideoTokens) -> PrunedTokens:
            torch.cuda._sleep(int(1e9))  # cycles: about half a second
            return super().select(tokens)

    on_gpu = VideoLLM(llm.spec.__class__(**{**vars(llm.spec), "device": "cuda"}))
    dense, queues = measure_cells(on_gpu, [DENSE, cell(Queues)], Workload(None, QUESTION, 4), FAST)
    assert np.median(dense.stages["prune_ms"]) < 50 < np.median(queues.stages["prune_ms"])
    assert np.median(queues.stages["prefill_ms"]) < 2 * np.median(dense.stages["prefill_ms"])


def test_a_batch_is_several_prompts_with_a_video_each(llm: VideoLLM, video: Path) -> None:
    one, three = (
        measure_cells(llm, [DENSE, cell(First)], Workload(video, QUESTION, 4, batch), FAST) for batch in (1, 3)
    )
    assert [t.realised_tokens for t in three] == [t.realised_tokens for t in one] == [64, 16]
    assert [t.prompt_tokens for t in three] == [t.prompt_tokens for t in one]


def test_random_pixels_have_nothing_to_decode(llm: VideoLLM) -> None:
    dense, pruned = measure_cells(llm, [DENSE, cell(First)], Workload(None, QUESTION, 4), FAST)
    assert set(dense.stages) == set(STAGES) - {"decode_ms"}
    assert set(time_values(dense, pruned)) == set(TIMES) - {"decode_ms", "e2e_ms", "e2e_speedup"}


def test_a_random_prompt_has_about_as_many_tokens(llm: VideoLLM) -> None:
    tokenizer = llm.processor.tokenizer
    prompt = random_prompt(tokenizer, 30)
    assert len(tokenizer(prompt).input_ids) == 30
    assert len(set(prompt.split())) > 10
    assert prompt == random_prompt(tokenizer, 30)


def test_out_of_memory_is_a_result(llm: VideoLLM, workload: Workload) -> None:
    dense, hungry, pruned = measure_cells(llm, [DENSE, cell(Hungry), cell(First)], workload, FAST)
    assert hungry.failure == Failure("out of memory in prefill: CUDA out of memory. Tried to allocate 9 GiB", True)
    assert hungry.stages == {}
    assert time_values(dense, hungry) == {}
    assert set(time_values(dense, pruned)) == set(TIMES)


@pytest.mark.usefixtures("still")
@pytest.mark.parametrize("sound_rounds", [0, 2])
def test_a_method_that_fails_is_told_of_and_the_others_are_measured(
    llm: VideoLLM,
    workload: Workload,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    sound_rounds: int,
) -> None:
    """In the first warm-up, or in the last round that counts."""
    monkeypatch.setattr(Broken, "sound_calls", [sound_rounds])
    dense, broken, slow = measure_cells(llm, [DENSE, cell(Broken), cell(Slow)], workload, FAST, "table.methods")
    assert broken.failure is not None
    assert not broken.failure.memory
    assert broken.failure.why.startswith("ValueError: a mistake of the method (test_latency.py:")
    assert time_values(dense, broken) == broken.stages == {}
    assert [slow_stages(t) for t in (dense, slow)] == [set(), {"prune_ms"}]
    assert {len(samples) for samples in slow.stages.values()} == {FAST.repeats}
    told = capsys.readouterr().out
    assert told.count("cannot be measured") == 1  # not anew in each round
    assert told.startswith("broken at R = 25 % cannot be measured: ValueError: a mistake of the method (test_latency")
    assert told.endswith("fix this, or leave the method out of `table.methods`\n")


def test_a_tower_that_cannot_give_what_some_need_serves_the_others(
    llm: VideoLLM, workload: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = VideoLLM.encode

    def fails(self: VideoLLM, pixels: Any, needs: Any) -> Any:
        if bool(needs) == with_needs:
            raise RuntimeError("no attention here")
        return original(self, pixels, needs)

    monkeypatch.setattr(VideoLLM, "encode", fails)
    with_needs = True
    dense, attentive = measure_cells(llm, [DENSE, cell(Attentive)], workload, FAST)
    assert dense.failure is None
    assert attentive.failure is not None
    assert attentive.failure.why.startswith("RuntimeError: no attention here")
    with_needs = False  # no method's fault
    with pytest.raises(RuntimeError, match=r"^no attention here"):
        measure_cells(llm, [DENSE, cell(Attentive)], workload, FAST)


def test_without_dense_there_are_times_but_no_speedups(llm: VideoLLM, workload: Workload) -> None:
    hungry, pruned = measure_cells(llm, [cell(Hungry), cell(First)], workload, FAST)
    values = time_values(hungry, pruned)
    assert "prefill_ms" in values
    assert not any(name.endswith("speedup") for name in values)


@pytest.mark.parametrize(("stage", "cells_lost"), [("preprocess", 2), ("encode", 1)])
def test_memory_that_ends_before_the_language_model(
    llm: VideoLLM, workload: Workload, monkeypatch: pytest.MonkeyPatch, stage: str, cells_lost: int
) -> None:
    original = getattr(VideoLLM, stage)

    def fails(self: VideoLLM, given: Any, *needs: Any) -> Any:
        if not needs or needs[0]:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return original(self, given, *needs)

    monkeypatch.setattr(VideoLLM, stage, fails)
    times = measure_cells(llm, [cell(Attentive), DENSE], workload, FAST)
    lost = [t.failure.why for t in times if t.failure]
    assert len(lost) == cells_lost
    assert all(why.startswith(f"out of memory in {stage}: DefaultCPUAllocator") for why in lost)


def test_nothing_of_lmms_eval_or_decord_is_needed() -> None:
    check = "import sys, mmg_bench.commands.measure; sys.exit(bool({'lmms_eval', 'decord', 'av'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def times(prefill: list[float], **others: Any) -> CellTimes:
    zero = np.zeros(len(prefill))
    return CellTimes({**dict.fromkeys(STAGES, zero), "prefill_ms": np.array(prefill), **others}, (1,))


def test_speedup_and_its_interval() -> None:
    value, low, high = speedup(times([40.0] * 9), times([10.0] * 9), ("prune_ms", "prefill_ms"))
    assert (value, low, high) == (4, 4, 4)
    value, low, high = speedup(times([40, 41, 39, 60, 40]), times([10, 10, 11, 9, 20]), ("prefill_ms",))
    assert low < value == 4 < high


def test_sums_count_every_decoded_token() -> None:
    stages = {stage: np.full(3, 2.0**i) for i, stage in enumerate(STAGES)}
    measured = CellTimes(stages, (1,), new_tokens=10)
    values = time_values(measured, measured)
    assert values["ttft_ms"][0] == 4 + 8 + 16
    assert values["e2e_ms"][0] == 1 + 2 + 4 + 8 + 16 + 10 * 32
    in_batch = CellTimes(stages, (1,), new_tokens=10, batch=4)
    assert time_values(in_batch, in_batch)["tokens_per_second"][0] == 4 * 1000 / 32


@pytest.mark.parametrize(("field", "value"), [("repeats", 1), ("warmup", -1), ("new_tokens", 0)])
def test_settings_are_checked(field: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"measure.{field}={value}"):
        LatencySettings(**{field: value})
    with pytest.raises(ValueError, match="batch=0"):
        Workload(None, "", 4, 0)


def test_a_gpu_is_timed_by_events_on_its_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one at hand: a stand-in whose queue advances its own time."""
    log: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool):
            assert enable_timing

        def record(self, stream: str) -> None:
            assert stream == "the stream"
            log.append("mark")
            self.at = len(log)

        def synchronize(self) -> None: ...

        def elapsed_time(self, end: Event) -> float:
            return float(end.at - self.at)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "the stream")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: log.append("wait"))
    clock = Clock(torch.device("cuda"))
    with clock.stage("one"):
        log.extend("work" * 3)
    with clock.stage("two"):
        pass
    assert log[:2] == ["wait", "mark"]
    assert clock.read() == {"one": 13, "two": 1}
    assert clock.read() == {}
