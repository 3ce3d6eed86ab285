"""All that is measured of the speed of some cells on one workload: times, FLOPs, memory, roofline, energy."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mmg_bench.measure.clock import Clock
from mmg_bench.measure.flops import flops_4nd2, flops_counted, flops_gqa
from mmg_bench.measure.gpu import joules
from mmg_bench.measure.latency import (
    SPEEDUPS,
    CellTimes,
    LatencySettings,
    measure_cells,
    time_values,
    within_memory,
)
from mmg_bench.measure.memory import memory_values
from mmg_bench.measure.roofline import Ceilings, LanguageModel
from mmg_bench.measure.workload import Workload, prefill, preprocess, tower_needs
from mmg_bench.models.hooks import pruning
from mmg_bench.models.loading import VideoLLM
from mmg_bench.runner.cells import Cell

ENERGY = "prefill_energy_joules"


@dataclass(frozen=True)
class Value:
    """A measured value; of a time the 5th and 95th percentile, of a ratio its 95 % interval."""

    value: float
    low: float = math.nan
    high: float = math.nan
    n: int = 1
    """Repeats that it rests on."""


@dataclass(frozen=True)
class CellResult:
    """What was measured of one cell."""

    values: dict[str, Value]
    """By metric."""
    realised_tokens: float
    """Visual tokens of a video that entered layer 0."""
    failure: str | None
    """Where the memory ended, if it did; then values are missing, all of them where it was in the rounds."""


def measure_efficiency(
    llm: VideoLLM,
    cells: Sequence[Cell],
    workload: Workload,
    settings: LatencySettings,
    ceilings: Ceilings,
    energy_seconds: float = 0,
) -> list[CellResult]:
    """Measure every cell; the first should be dense. FLOPs, bytes and energy are those of the whole batch."""
    all_times = measure_cells(llm, cells, workload, settings)
    clock = Clock(llm.device)
    passes: list[tuple[str, Callable[..., Mapping[str, float]], float]] = [
        ("a pass that watches memory", memory_values, settings.new_tokens),
        ("a pass that counts", _counts, energy_seconds),
    ]
    results = []
    for cell, times in zip(cells, all_times, strict=True):
        values, failure = dict[str, Value](), times.failure
        if failure is None:
            values = {k: Value(*v, settings.repeats) for k, v in time_values(all_times[0], times).items()}
            values |= {k: Value(v) for k, v in _formulas(llm, times, workload, ceilings).items()}
            for purpose, task, option in passes:
                clock.stage_now = purpose
                found, message = within_memory(clock, task, llm, cell, workload, option)
                values |= {k: Value(v) for k, v in (found or {}).items()}
                failure = failure or message or None
        results.append(CellResult(values, times.realised_tokens, failure))
    return results


def _formulas(llm: VideoLLM, times: CellTimes, workload: Workload, ceilings: Ceilings) -> dict[str, float]:
    """What follows from token counts: FLOPs as published, and distances to the roofline."""
    model, batch = LanguageModel.of(llm.adapter), workload.batch
    visual = [round(n) for n in times.layer_tokens]
    prompt = [n + times.prompt_tokens - visual[0] for n in visual]
    middle = [n + times.new_tokens / 2 for n in prompt]  # of the tokens that were decoded
    prefill_floor = model.prefill(prompt, batch).floor_ms(ceilings)
    decode_floor = model.decode_step(middle, batch).floor_ms(ceilings)
    return {
        "retention_layer_mean": sum(visual) / len(visual) / times.total_tokens,
        "flops_gqa": batch * flops_gqa(model.geometry, visual),
        "flops_4nd2": batch * flops_4nd2(model.geometry, visual),
        "prefill_roofline_ms": prefill_floor,
        "decode_roofline_ms": decode_floor,
        "prefill_over_roofline": float(np.median(times.total(SPEEDUPS["prefill_speedup"]))) / prefill_floor,
        "decode_over_roofline": float(np.median(times.stages["decode_token_ms"])) / decode_floor,
    }


def _counts(llm: VideoLLM, cell: Cell, workload: Workload, energy_seconds: float) -> dict[str, float]:
    """What is counted while the cell prefills: FLOPs by torch, and energy by the board where it tells."""
    encoded = llm.encode(preprocess(llm, workload.decode()), tower_needs(llm, cell))
    inputs = workload.inputs(llm, encoded)
    tokens = encoded.tokens
    with torch.inference_mode(), pruning(llm.model, cell.method, cell.positions, encoded=tokens):
        values: dict[str, float] = {"flops_counted": flops_counted(llm.model, {**inputs, **encoded.arguments})}

    def once() -> None:  # a context of its own: inside one, a video is pruned only once
        with torch.inference_mode(), pruning(llm.model, cell.method, cell.positions, encoded=tokens):
            prefill(llm, encoded, inputs)

    energy = joules(llm.device, once, energy_seconds) if energy_seconds else None
    return values if energy is None else {**values, ENERGY: energy}
