"""All efficiency measurements of some cells on one workload: times, FLOPs, memory, roofline, energy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mmg_bench.cells import Cell
from mmg_bench.measure.clock import Clock
from mmg_bench.measure.failures import Failure, attempt, tell
from mmg_bench.measure.flops import flops_4nd2, flops_counted, flops_gqa
from mmg_bench.measure.gpu import joules
from mmg_bench.measure.latency import (
    SPEEDUPS,
    CellTimes,
    LatencySettings,
    measure_cells,
    time_values,
)
from mmg_bench.measure.memory import PeakMemory, memory_values
from mmg_bench.measure.roofline import Ceilings, LanguageModel
from mmg_bench.measure.workload import Workload, needs_sets, prefill, preprocess, tower_needs
from mmg_bench.models.engines import attention_backend
from mmg_bench.models.hooks import pruning
from mmg_bench.models.loading import Encoded, VideoLLM

ENERGY = "prefill_energy_joules"


@dataclass(frozen=True)
class Value:
    """A measured value; `low` and `high` are the 5th and 95th percentile of a time, or the 95 % interval of a ratio."""

    value: float
    low: float = math.nan
    high: float = math.nan
    n: int = 1
    """Number of repeats behind it."""


@dataclass(frozen=True)
class CellResult:
    """Measurements of one cell."""

    values: dict[str, Value]
    """By metric."""
    realised_tokens: float
    """Visual tokens per video that entered layer 0."""
    failure: Failure | None
    """Why values are missing, if any are: all of them if the cell failed in the rounds, else those of `_watch`."""


def measure_efficiency(
    llm: VideoLLM,
    cells: Sequence[Cell],
    workload: Workload,
    settings: LatencySettings,
    ceilings: Ceilings,
    energy_seconds: float = 0,
    option: str = "method",
) -> list[CellResult]:
    """Measure every cell; the first should be dense. FLOPs, bytes and energy are those of the whole batch.

    A cell that fails is reported at once, and the others continue, as in `measure_cells`.
    """
    all_times = measure_cells(llm, cells, workload, settings, option)
    with attention_backend(settings.sdpa):
        watched = _watch(llm, cells, all_times, workload, energy_seconds, option)
    results = []
    for cell, times, (others, failure) in zip(cells, all_times, watched, strict=True):
        values = {k: Value(*v, settings.repeats) for k, v in time_values(all_times[0], times).items()}
        if times.failure is None:
            values |= {k: Value(v) for k, v in {**_formulas(llm, cell, times, workload, ceilings), **others}.items()}
        results.append(CellResult(values, times.realised_tokens, failure))
    return results


def _watch(
    llm: VideoLLM,
    cells: Sequence[Cell],
    all_times: Sequence[CellTimes],
    workload: Workload,
    energy_seconds: float,
    option: str,
) -> list[tuple[dict[str, float], Failure | None]]:
    """For each cell, the values that are observed rather than timed, and its failure here or in timing, if any.

    A failure here does not lose the minutes of timing before it.
    """
    clock = Clock(llm.device)
    clock.stage_now = "the pass that measures memory"
    watched: list[tuple[dict[str, float], Failure | None]] = [({}, times.failure) for times in all_times]
    alive = [i for i, times in enumerate(all_times) if times.failure is None]
    for needs in needs_sets(llm, [cells[i] for i in alive]):
        encoded = attempt(clock, _encode, llm, workload, needs)
        for i in alive:
            if tower_needs(llm, cells[i]) != needs:
                continue
            found: dict[str, float] | Failure
            if isinstance(encoded, Failure):
                found = encoded
            else:
                steps = all_times[i].new_tokens
                found = attempt(clock, _answer, llm, cells[i], workload, *encoded, steps, energy_seconds)
            if isinstance(found, Failure):
                watched[i] = {}, found
                tell(f"Memory of {cells[i]}", found, option)
            else:
                watched[i] = found, None
    return watched


def _encode(llm: VideoLLM, workload: Workload, needs: frozenset[str]) -> tuple[Encoded, PeakMemory]:
    pixels = preprocess(llm, workload.decode())
    with PeakMemory(llm.device) as memory:
        encoded = llm.encode(pixels, needs)
    return encoded, memory


def _answer(
    llm: VideoLLM,
    cell: Cell,
    workload: Workload,
    encoded: Encoded,
    encoding: PeakMemory,
    new_tokens: int,
    energy_seconds: float,
) -> dict[str, float]:
    """Memory, FLOPs as counted by torch, and energy if the board reports it."""
    inputs, tokens = workload.inputs(llm, encoded), encoded.tokens
    values: dict[str, float] = {**memory_values(llm, cell, encoded, encoding, inputs, new_tokens)}
    with torch.inference_mode(), pruning(llm.model, cell.method, cell.positions, encoded=tokens):
        values["flops_counted"] = flops_counted(llm.model, {**inputs, **encoded.arguments})

    def once() -> None:  # a context of its own: inside one, a video is pruned only once
        with torch.inference_mode(), pruning(llm.model, cell.method, cell.positions, encoded=tokens):
            prefill(llm, encoded, inputs)

    energy = joules(llm.device, once, energy_seconds) if energy_seconds else None
    return values if energy is None else {**values, ENERGY: energy}


def _formulas(llm: VideoLLM, cell: Cell, times: CellTimes, workload: Workload, ceilings: Ceilings) -> dict[str, float]:
    """Values derived from token counts: FLOPs as published, and distances to the roofline, if the formulas apply."""
    model, batch = LanguageModel.of(llm.adapter), workload.batch
    visual = [round(n) for n in times.layer_tokens]
    seen = {"retention_layer_mean": sum(visual) / len(visual) / times.total_tokens}
    if not model.geometry.dense:
        return seen
    prompt = [n + times.prompt_tokens - visual[0] for n in visual]
    cached = prompt[-1:] * len(prompt) if cell.method.prunes_caches else prompt
    middle = [n + (times.new_tokens - 1) / 2 for n in cached]  # mean context of the decoded tokens
    prefill_floor = model.prefill(prompt, batch).floor_ms(ceilings)
    decode_floor = model.decode_step(middle, batch).floor_ms(ceilings)
    return {
        **seen,
        "flops_gqa": batch * flops_gqa(model.geometry, visual),
        "flops_4nd2": batch * flops_4nd2(model.geometry, visual),
        "prefill_roofline_ms": prefill_floor,
        "decode_roofline_ms": decode_floor,
        "prefill_over_roofline": float(np.median(times.total(SPEEDUPS["prefill_speedup"]))) / prefill_floor,
        "decode_over_roofline": float(np.median(times.stages["decode_token_ms"])) / decode_floor,
    }
