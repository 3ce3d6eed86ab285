"""Tables of speed from rows."""

from __future__ import annotations

import dataclasses

import pandas as pd
import pytest

from mmg_bench.report.efficiency import efficiency_layout
from mmg_bench.report.rows import Measurement, pending_rows, result_rows
from mmg_bench.report.table import FLAG, measured_line, to_markdown

PROVENANCE = {
    "key": {
        "device": "a GPU",
        "model": {"dtype": "bfloat16"},
        "attention": "sdpa",
        "date": "2026-01-02",
        "commit": "abc123",
        "command": "mmg-bench measure",
        "video": "generated",
        "text_tokens": 64,
        "ceilings": {"multiply_adds_per_second": 4e14, "bytes_per_second": 4.3e12},
        "out_of_memory": {"mmg_vid R=0.1": "out of memory in prefill: no room"},
    }
}
SNAPSHOT = """\
## efficiency: big, 32 frames

- Model: big, weights: random; 32 frames
- Measured (key): a GPU, bfloat16, sdpa, 2026-01-02, commit abc123; reproduce with `mmg-bench measure`
- Input: generated, a prompt of 64 random words
- Ceilings of this run: 400 T multiply-adds/s, 4300 GB/s
- Times: medians of 20 rounds, dense and every cell in each. Three speed-ups, with 95 % intervals: prefill (pruning + \
prefill), TTFT (+ encoding), E2E (everything). FLOPs: multiply-adds (`flops_gqa`). Of roofline: time over the least \
possible. Prefill ratio: dense over the cell, without pruning; in parentheses, the same at the roofline \
(docs/measuring.md)

| Method | Tokens | FLOPs (of dense) | Prune ms (of dense prefill) | Prefill ms | Prefill ratio (of least work) \
| of roofline | Prefill speed-up | KV cache |
|:--|--:|--:|--:|--:|--:|--:|--:|--:|
| dense | 6272 | 48.82 T | – | 200 | – | 1.6× | 1× | 360.00 MB |
| **R = 25 %** |  |  |  |  |  |  |  |  |
| mmg_vid | 1568 | 10.73 T (22.0 %) | 1 (0.5 %) | 47.6 | 4.20× (4.50×) | 1.8× | 4.12× [4.10, 4.20] | 90.00 MB |
| **R = 10 %** |  |  |  |  |  |  |  |  |
| mmg_vid | – | – | – | out of memory | – | – | – | – |

- mmg_vid R=0.1: out of memory in prefill: no room

## efficiency: later, 64 frames

- Weights: random. Not yet measured: no such machine has been available

| Method | R | Prefill ms |
|:--|--:|--:|
| dense | 100 % | pending |
| mmg_vid | 25, 10 % | pending |
"""


def measurement(method: str, ratio: float, metric: str, value: float, **changes: object) -> Measurement:
    base = Measurement("big", "-", 32, method, ratio, metric, value, float("nan"), float("nan"), 20, "key")
    return dataclasses.replace(base, realised_tokens=6272 if method == "dense" else 1568, **changes)


def measured() -> list[Measurement]:
    dense = {
        "prune_ms": 0.1,
        "prefill_ms": 200,
        "flops_gqa": 48.82e12,
        "kv_cache_bytes": 3.6e8,
        "prefill_roofline_ms": 135,
    }
    ours = {
        "prune_ms": 1.0,
        "prefill_ms": 47.6,
        "flops_gqa": 10.73e12,
        "kv_cache_bytes": 0.9e8,
        "prefill_roofline_ms": 30,
    }
    dense |= {"prefill_over_roofline": 1.6, "prefill_speedup": 1}
    ours |= {"prefill_over_roofline": 1.8}
    return [
        *(measurement("dense", 1, metric, value) for metric, value in dense.items()),
        *(measurement("mmg_vid", 0.25, metric, value) for metric, value in ours.items()),
        measurement("mmg_vid", 0.25, "prefill_speedup", 4.12, ci_low=4.1, ci_high=4.2),
        measurement("mmg_vid", 0.1, "prefill_ms", float("nan"), n=0, n_errors=1),
    ]


def table_of(measurements: list[Measurement], *others: pd.DataFrame) -> str:
    rows = result_rows([], table="efficiency", weights={"big": "random"}, measurements=measurements)
    return to_markdown(efficiency_layout(pd.concat([*others, rows], ignore_index=True), PROVENANCE))


def test_bounds_of_pixels_stand_beside_the_dtype() -> None:
    facts = {**PROVENANCE["key"], "model": {"dtype": "bfloat16", "min_pixels": None, "max_pixels": 602112}}
    assert measured_line("key", {"key": facts}).startswith(
        "Measured (key): a GPU, bfloat16, sdpa, 2026-01-02, max_pixels=602112, commit abc123; "
    )


def test_markdown() -> None:
    cells = [("dense", 1.0), ("mmg_vid", 0.25), ("mmg_vid", 0.1)]
    later = pending_rows(
        table="efficiency",
        model="later",
        weights="random",
        frames=64,
        benchmarks=["-"],
        cells=cells,
        metric="prefill_ms",
    )
    assert table_of(measured(), later) == SNAPSHOT


@pytest.mark.parametrize("rounds", [2, 9, 10])
def test_intervals_of_few_rounds_say_so(rounds: int) -> None:
    says = (
        f"- {FLAG} only {rounds} rounds: below 10, intervals of speed-ups and percentiles of times in rows.csv mean "
        "little; set measure.repeats higher (20 is usual)\n"
    )
    few = [dataclasses.replace(m, n=rounds) if m.n == 20 else m for m in measured()]
    assert (says in table_of(few)) == (rounds < 10)
    without = [m for m in few if not m.metric.endswith("_speedup")]  # dense alone, or all others failed
    assert f"only {rounds} rounds" not in table_of(without)


def test_what_was_measured_is_not_pending() -> None:
    given = {"table": "efficiency", "model": "big", "frames": 32, "benchmarks": ["-"], "metric": "prefill_ms"}
    cells = [("dense", 1.0), ("mmg_vid", 0.25), ("mmg_vid", 0.1)]  # measured all, the last one out of memory
    rows = result_rows([], table="efficiency", weights={"big": "random"}, measurements=measured())
    alone = efficiency_layout(rows, PROVENANCE)
    later = pending_rows(**given, weights="trained", cells=cells)
    for parts in ([rows, later], [later, rows]):
        assert efficiency_layout(pd.concat(parts, ignore_index=True), PROVENANCE) == alone
    further = pending_rows(**given, weights="random", cells=[*cells, ("fastv", 0.1)])
    (table,) = efficiency_layout(pd.concat([rows, further], ignore_index=True), PROVENANCE)
    (last, fastv) = table.blocks[-1].lines
    prefill = table.columns.index("Prefill ms")
    assert (last[0].text, last[prefill].text) == ("mmg_vid", "out of memory")
    assert (fastv[0].text, fastv[prefill].text) == ("fastv", "pending")


def test_a_machine_that_was_busy_is_flagged() -> None:
    times = {"ci_low": 999.6, "ci_high": 1604.0}
    busy = [
        dataclasses.replace(m, **times) if (m.method, m.metric) == ("dense", "prefill_ms") else m for m in measured()
    ]
    assert "⚠ dense's own prefill took from 1000 to 1604 ms" in table_of(busy)
    assert "⚠" not in table_of(measured())


def test_a_batch_has_a_table_of_its_own() -> None:
    batch = [dataclasses.replace(m, skill="batch=8", value=8 * m.value) for m in measured()]
    text = table_of([*measured(), *batch])
    assert text.count("## efficiency: big, 32 frames\n") == 1
    assert text.count("## efficiency: big, 32 frames, batch 8\n") == 1
    assert "1600" in text.split("batch 8")[1]


def test_missing_provenance_and_rows_are_errors() -> None:
    stray = [dataclasses.replace(m, provenance="other") for m in measured()]
    with pytest.raises(ValueError, match=r"'other', which provenance.json lacks"):
        table_of(stray)
    with pytest.raises(ValueError, match="no rows"):
        table_of([])


def test_the_engine_is_told() -> None:
    rows = result_rows([], table="efficiency", weights={"big": "random"}, measurements=measured())
    for engine, told in (("stock", False), ("graphs", True)):
        (table,) = efficiency_layout(rows, {"key": {**PROVENANCE["key"], "latency": {"engine": engine}}})
        assert (
            any(line.startswith("Prefill by measure.engine=graphs; methods that prune inside") for line in table.header)
            == told
        )
        assert any("attention" in line or ", measure.engine=graphs, commit" in line for line in table.header) == told
    (table,) = efficiency_layout(rows, {"key": {**PROVENANCE["key"], "latency": {"sdpa": "cudnn"}}})
    assert ", measure.sdpa=cudnn, commit" in table.header[1]


def test_the_steps_of_decoding_are_told() -> None:
    rows = result_rows([], table="efficiency", weights={"big": "random"}, measurements=measured())
    (table,) = efficiency_layout(rows, {"key": {**PROVENANCE["key"], "latency": {"new_tokens": 4}}})
    assert "Input: generated, a prompt of 64 random words; 4 decoding steps" in table.header
