"""Rows and table of `mmg-bench bench-methods`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from mmg_bench.benchmarks.reserved import ALL, NO_BENCHMARK
from mmg_bench.measure.clock import quantiles
from mmg_bench.measure.prune_time import GRAM, PruneTimes
from mmg_bench.report.answers import Sources
from mmg_bench.report.rows import ResultRow, as_tuples, provenance_keys, to_frame
from mmg_bench.report.table import NONE, Block, Entry, Table, measured_line, with_interval

TABLE = "bench_methods"
CITED_MS = {"fastvid": 6.1, "prunevid": 37.0, "flashvid": 60.0, "holitom": 78.0}
"""Overhead of the official code on an A100 (LLaVA-OneVision-7B, 32 frames), as reported by its paper or a peer."""
CITED_MODEL, CITED_FRAMES = "synthetic 196 x 3584", 32
"""The synthetic video of the same size as the cited ones."""
NO_WORK = "none before the LLM"


def prune_time_rows(
    results: Sequence[PruneTimes], *, model: str, retention_ratio: float, provenance: str
) -> pd.DataFrame:
    """Result rows: `prune_ms` and `gram_ratio` of every method, `gram_ms`, growth with the frames, and cited overheads.

    Overheads are cited only for videos of the same size.

    The value is the median over the rounds, and the interval is their 5th and 95th percentile. Growth is the time at
    the most frames over that at the fewest. A method that failed, or ran out of memory, has an error and no value; a
    method without work before the language model has neither.
    """
    rows: list[ResultRow] = []

    def add(
        method: str,
        frames: int,
        metric: str,
        values: Sequence[float],
        n: int,
        realised: float = math.nan,
        errors: int = 0,
        source: str = "measured",
    ) -> None:
        value, low, high = values
        key = provenance if source == "measured" else ""
        what = TABLE, model, "none", NO_BENCHMARK, ALL, frames, method, retention_ratio, realised, metric
        rows.append(ResultRow(*what, value, low, high, n, errors, source, key))

    nothing = (math.nan, math.nan, math.nan)
    frames = sorted({r.frames for r in results})
    medians: dict[tuple[str, int], float] = {}
    for t in frames:
        at = [r for r in results if r.frames == t]
        add(GRAM, t, "gram_ms", quantiles(at[0].gram), len(at[0].gram), at[0].total_tokens)
        medians[GRAM, t] = rows[-1].value
        for r in at:
            left = math.nan if r.realised_tokens is None else r.realised_tokens
            if not len(r.ms):
                add(r.name, t, "prune_ms", nothing, 0, left, errors=int(r.failure is not None))
            else:
                taken = int(np.isfinite(r.ms).sum())
                add(r.name, t, "prune_ms", quantiles(r.ms), taken, left)
                medians[r.name, t] = rows[-1].value
                add(r.name, t, "gram_ratio", quantiles(r.ms / r.gram), taken, left)
    few, many = frames[0], frames[-1]
    for name in dict.fromkeys((GRAM, *(r.name for r in results))):
        if few < many and (name, few) in medians and (name, many) in medians:
            growth = medians[name, many] / medians[name, few]
            add(name, many, "frames_growth", (growth, math.nan, math.nan), 1)
    for name in dict.fromkeys(r.name for r in results):
        if name in CITED_MS and model == CITED_MODEL and CITED_FRAMES in frames:
            add(name, CITED_FRAMES, "prune_ms", (CITED_MS[name], math.nan, math.nan), 0, source="cited")
    return to_frame(rows)


def failed_key(method: str, frames: int) -> str:
    """The name of a method at a number of frames in provenance, under `failed`."""
    return f"{method}, {frames} frames"


def prune_time_table(rows: pd.DataFrame, provenance: Sources) -> Table:
    """The table of `rows`: one line per method, a group of columns for each number of frames."""
    found = {(r.method, r.frames, r.metric, r.source): r for r in as_tuples(rows)}
    frames = sorted(set(rows.frames[rows.metric == "gram_ms"]))
    methods = list(dict.fromkeys(rows.method))
    keys = provenance_keys(rows)
    failed = provenance[keys[0]].get("failed", {})
    cited, note = [], []
    if (rows.source == "cited").any():
        cited = [f"Cited, ms (A100, {CITED_FRAMES} frames)"]
        note = [
            "Cited: overhead of the official code on an A100, as reported by its paper or a peer; not measured here"
        ]

    def text(name: str, t: int, metric: str, digits: int = 2, source: str = "measured") -> str:
        row = found.get((name, t, metric, source))
        if row is None:
            return NONE
        if row.n_errors:
            return "failed" if failed_key(name, t) in failed else "out of memory"
        return with_interval(row, digits) if math.isfinite(row.value) else NO_WORK

    lines = []
    for name in methods:
        texts = [name]
        for t in frames:
            texts.append(text(name, t, "gram_ms" if name == GRAM else "prune_ms"))
            texts.append("1" if name == GRAM else text(name, t, "gram_ratio"))
        if len(frames) > 1:
            texts.append(text(name, frames[-1], "frames_growth"))
        if cited:
            texts.append(text(name, CITED_FRAMES, "prune_ms", 1, "cited"))
        lines.append(tuple(map(Entry, texts)))
    growth = [f"{frames[-1]} over {frames[0]} frames"] if len(frames) > 1 else []
    run = provenance[keys[0]]
    on_gpu = str(run["torch_device"]).startswith("cuda")
    return Table(
        title=f"{TABLE}: {rows.model.iloc[0]}, R = {100 * rows.retention_ratio.iloc[0]:g} %",
        header=(
            *(measured_line(key, provenance) for key in keys),
            "Milliseconds of `prune`: median over the rounds [5th, 95th percentile], every method once a round; "
            + ("CUDA events" if on_gpu else f"`perf_counter`, {run['threads']} threads"),
            "× Gram: over one batched product of every frame with itself (float32), timed in the same round"
            + (f"; linear growth is {frames[-1] / frames[0]:g}" if growth else ""),
            *note,
        ),
        columns=(
            "Method",
            *(c for t in frames for c in (f"{t} frames, ms", f"{t} frames, × Gram")),
            *growth,
            *cited,
        ),
        blocks=(Block("", tuple(lines)),),
        footnotes=tuple(f"{who}: {why}" for who, why in failed.items()),
    )
