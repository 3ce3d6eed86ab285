"""Latency of one question, stage by stage, with dense and every cell interleaved.

This is a separate run: nothing is scored, and every round decodes, preprocesses and encodes the video again. Prefill is
one forward call of the whole model on encoded video, up to the first token's logits. Pruning before the language model
happens inside it and is reported as its own stage instead. A cell that fails or runs out of memory is a result and does
not end the run: the others are still measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from mmg_bench.cells import Cell
from mmg_bench.measure.clock import Clock, quantiles
from mmg_bench.measure.failures import Failure, attempt, tell, within_memory
from mmg_bench.measure.flops import layer_counts
from mmg_bench.measure.workload import (
    Workload,
    decode_steps,
    needs_sets,
    prefill,
    preprocess,
    tower_needs,
)
from mmg_bench.models.engines import BACKENDS, ROUNDS, Backend, Engine, Switch, attention_backend, prefill_engine
from mmg_bench.models.hooks import pruning
from mmg_bench.models.loading import Encoded, Pixels, VideoLLM
from mmg_bench.models.spec import ModelSpec
from mmg_bench.options import check_whole

STAGES = ("decode_ms", "preprocess_ms", "encode_ms", "prune_ms", "prefill_ms", "decode_token_ms")
SUMS = {"ttft_ms": ("encode_ms", "prune_ms", "prefill_ms"), "e2e_ms": STAGES}
"""Sum -> its stages; all decoded tokens count."""
SPEEDUPS = {
    "prefill_speedup": ("prune_ms", "prefill_ms"),
    "ttft_speedup": SUMS["ttft_ms"],
    "e2e_speedup": SUMS["e2e_ms"],
}
"""Speed-up against dense -> the stages whose sum it compares."""
TIMES = (*STAGES, *SUMS, "tokens_per_second", *SPEEDUPS)
"""Every metric that `time_values` returns."""


@dataclass(frozen=True)
class LatencySettings:
    """How latency is measured."""

    repeats: int = 20
    """Rounds; each runs every cell once, dense first."""
    warmup: int = 3
    """Unmeasured rounds before those."""
    new_tokens: int = 8
    """Decoding steps; their mean time is `decode_token_ms`."""
    engine: Engine = "stock"
    """How the language model prefills (`models/engines.py`)."""
    sdpa: Backend = "auto"
    """Kernels of `scaled_dot_product_attention`, for the whole model; an unusable one is an error."""

    def __post_init__(self) -> None:
        for name, low in (("repeats", 2), ("warmup", 0), ("new_tokens", 1)):
            check_whole(f"measure.{name}", getattr(self, name), low)
        if self.engine not in ROUNDS:
            raise ValueError(f"measure.engine={self.engine!r}: choose one of {', '.join(ROUNDS)}")
        if self.sdpa not in ("auto", *BACKENDS):
            raise ValueError(f"measure.sdpa={self.sdpa!r}: choose one of auto, {', '.join(BACKENDS)}")
        if self.warmup < ROUNDS[self.engine]:
            raise ValueError(
                f"measure.warmup={self.warmup}: measure.engine={self.engine} needs at least {ROUNDS[self.engine]} "
                "rounds to get ready"
            )


@dataclass(frozen=True)
class CellTimes:
    """Milliseconds of each stage in each round, `[repeats]` per stage."""

    stages: dict[str, NDArray[np.float64]]
    """Empty if the cell failed; without `decode_ms` if there was no video file."""
    layer_tokens: tuple[float, ...] = ()
    """Visual tokens per video in each layer of the language model."""
    prompt_tokens: int = 0
    """All tokens of a prompt that entered layer 0."""
    total_tokens: int = 0
    """T * N of a video."""
    failure: Failure | None = None
    """Why there are no times, if there are none."""
    new_tokens: int = 1
    """Tokens decoded after the first."""
    batch: int = 1

    @property
    def realised_tokens(self) -> float:
        """Visual tokens per video that entered layer 0; NaN if the cell never ran."""
        return self.layer_tokens[0] if self.layer_tokens else math.nan

    def total(self, names: Sequence[str]) -> NDArray[np.float64]:
        """Sum of some stages in each round, counting every decoded token."""
        times = {"decode_token_ms": self.new_tokens}
        return np.sum([times.get(name, 1) * self.stages[name] for name in names], axis=0)


def check_engine(settings: LatencySettings, spec: ModelSpec) -> None:
    """Raise ValueError unless a model of `spec` can run with these settings; checked before it is loaded."""
    engine = settings.engine
    if spec.fps is not None:
        raise ValueError(
            f"{spec.option('fps')}={spec.fps:g}: speed is measured at a fixed number of frames: set it to null, or "
            "answer without times (latency=false)"
        )
    if settings.sdpa != "auto" and spec.attn_implementation != "sdpa":
        raise ValueError(
            f"measure.sdpa={settings.sdpa} is a kernel of {spec.option('attn_implementation')}=sdpa, but that is "
            f"{spec.attn_implementation!r}: leave one of the two out"
        )
    if settings.sdpa in ("cudnn", "efficient") and spec.torch_device.type != "cuda":
        raise ValueError(f"measure.sdpa={settings.sdpa} needs a CUDA device, not {spec.torch_device}: leave it at auto")
    if engine == "graphs" and spec.torch_device.type != "cuda":
        raise ValueError(f"measure.engine=graphs needs a CUDA device, not {spec.torch_device}: leave it at stock")
    if engine != "stock" and spec.device_map is not None:
        raise ValueError(
            f"measure.engine={engine} runs a model on one device, but {spec.option('device_map')}={spec.device_map!r} "
            "spreads its layers: leave one of the two out"
        )


def measure_cells(
    llm: VideoLLM, cells: Sequence[Cell], workload: Workload, settings: LatencySettings, option: str = "method"
) -> list[CellTimes]:
    """Time every cell on one workload; the first cell should be dense.

    A cell that fails in any round is reported at once and skipped from then on; `option` is the command's option for
    methods. Errors outside the cells (a video that cannot be read, a vision tower that fails for
    all) are raised; running out of memory there is a failure of the cells. Raises ValueError if the model cannot run
    with the settings' engine.
    """
    check_engine(settings, llm.spec)
    with attention_backend(settings.sdpa), prefill_engine(llm.adapter.language_model, settings.engine) as switch:
        return _measure_cells(llm, cells, workload, settings, switch, option)


def _measure_cells(
    llm: VideoLLM,
    cells: Sequence[Cell],
    workload: Workload,
    settings: LatencySettings,
    switch: Switch,
    option: str,
) -> list[CellTimes]:
    rounds: list[list[dict[str, float]]] = [[] for _ in cells]
    counts: list[tuple[tuple[float, ...], int, int]] = [((), 0, 0)] * len(cells)
    failed: dict[int, Failure] = {}
    depth = llm.model.config.get_text_config().num_hidden_layers
    clock = Clock(llm.device)

    def read() -> tuple[Pixels, dict[str, float]]:
        """Pixels, and the times shared by all cells."""
        with clock.stage("decode_ms"):
            clips = workload.decode()
        with clock.stage("preprocess_ms"):
            pixels = preprocess(llm, clips)
        times = clock.read()
        return pixels, {name: ms for name, ms in times.items() if name != "decode_ms" or workload.video is not None}

    def encode(pixels: Pixels, needs: frozenset[str]) -> tuple[Encoded, float]:
        with clock.stage("encode_ms"):
            encoded = llm.encode(pixels, needs)
        return encoded, clock.read()["encode_ms"]

    def answer(cell: Cell, encoded: Encoded) -> tuple[float, tuple[tuple[float, ...], int, int]]:
        """Prune, prefill and decode once: milliseconds of pruning; tokens per layer, in the prompt, and in total."""
        inputs = workload.inputs(llm, encoded)
        switch.on = not cell.method.prunes_inside(depth)
        switch.unpadded = bool(inputs["attention_mask"].all())  # equal prompts stay unpadded when pruned alike
        with torch.inference_mode(), pruning(llm.model, cell.method, cell.positions, encoded=encoded.tokens) as run:
            with clock.stage("prefill_ms"):
                out = prefill(llm, encoded, inputs)
            with clock.stage("decode_token_ms"):
                decode_steps(llm, out, inputs["attention_mask"], settings.new_tokens)
        prune_ms = 1000 * sum(video.prune_seconds for video in run.report)
        realised = sum(video.realised_tokens for video in run.report)
        visual = [n / workload.batch for n in layer_counts(realised, run.stages, depth)]
        return prune_ms, (tuple(visual), run.prompt_tokens or 0, encoded.tokens[0].total)

    def fail(indices: Iterable[int], failure: Failure) -> None:
        for i in indices:
            if i not in failed:
                failed[i] = failure
                tell(str(cells[i]), failure, option)

    for number in tqdm(range(-settings.warmup, settings.repeats), desc="latency", unit="round"):
        if len(failed) == len(cells):
            break
        begun = within_memory(clock, read)
        if isinstance(begun, Failure):
            fail(range(len(cells)), begun)
            continue
        pixels, shared = begun
        encodings: dict[frozenset[str], tuple[Encoded, float]] = {}
        for needs in needs_sets(llm, [cell for i, cell in enumerate(cells) if i not in failed]):
            # a failure in what some methods need from the tower must not stop the others
            made = (attempt if needs else within_memory)(clock, encode, pixels, needs)
            if isinstance(made, Failure):
                fail((i for i, cell in enumerate(cells) if tower_needs(llm, cell) == needs), made)
            else:
                encodings[needs] = made
        for i, cell in enumerate(cells):
            if i in failed:
                continue
            encoded, encode_ms = encodings[tower_needs(llm, cell)]
            answered = attempt(clock, answer, cell, encoded)
            if isinstance(answered, Failure):
                fail([i], answered)
                continue
            prune_ms, counts[i] = answered
            times = {**shared, **clock.read(), "encode_ms": encode_ms, "prune_ms": prune_ms}
            times["prefill_ms"] -= prune_ms
            times["decode_token_ms"] /= settings.new_tokens
            if number >= 0:
                rounds[i].append(times)
    return [
        CellTimes(
            {} if i in failed else {stage: np.array([r[stage] for r in times]) for stage in times[0]},
            *counts[i],
            failed.get(i),
            settings.new_tokens,
            workload.batch,
        )
        for i, times in enumerate(rounds)
    ]


def time_values(dense: CellTimes, cell: CellTimes) -> dict[str, tuple[float, float, float]]:
    """Metric -> (value, low, high): median, 5th and 95th percentile of times; speed-ups with their 95 % interval.

    Empty for a cell that failed; without speed-ups if dense failed.
    """
    if cell.failure is not None:
        return {}
    times = {name: cell.stages[name] for name in STAGES if name in cell.stages}
    times |= {name: cell.total(stages) for name, stages in SUMS.items() if set(stages) <= set(times)}
    times["tokens_per_second"] = 1000 * cell.batch / times["decode_token_ms"]
    values = {name: quantiles(samples) for name, samples in times.items()}
    for name, stages in SPEEDUPS.items():
        if dense.failure is None and set(stages) <= set(times):
            values[name] = speedup(dense, cell, stages)
    return values


def speedup(dense: CellTimes, cell: CellTimes, names: Sequence[str]) -> tuple[float, float, float]:
    """Ratio of median times, dense / cell, and its 95 % interval from resampling whole rounds (10,000 times)."""
    a, b = dense.total(names), cell.total(names)
    picks = np.random.default_rng(0).integers(len(a), size=(10_000, len(a)))
    ratios = np.median(a[picks], axis=1) / np.median(b[picks], axis=1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(np.median(a) / np.median(b)), float(low), float(high)
