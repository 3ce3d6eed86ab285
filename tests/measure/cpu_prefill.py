"""What pruning leaves of the language model's prefill on a CPU, as docs/measuring.md shows it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from mmg_bench.report.rows import read_rows

RESULTS = Path(__file__).parents[2] / "results" / "efficiency" / "cpu"
BEGIN, END = "<!-- cpu:begin -->", "<!-- cpu:end -->"
METHOD = "mmg_vid"
HEAD = (
    "| MMG-Vid | dense / pruned prefill, ms | ratio | ratio of counted FLOPs | pruning, of dense prefill |",
    "|:--|--:|--:|--:|--:|",
)


def table() -> str:
    """A line a model, batch size and retention ratio that was measured, from the committed rows."""
    rows = read_rows(RESULTS / "rows.csv")
    provenance = json.loads((RESULTS / "provenance.json").read_text())
    measured = rows[rows.source == "measured"]
    groups = [part for _, part in measured.groupby(["model", "frames", "skill"], sort=False)]
    return "\n".join([*HEAD, *(line for part in groups for line in lines(part, provenance))])


def lines(rows: pd.DataFrame, provenance: dict[str, Any]) -> list[str]:
    value = rows.set_index(["method", "retention_ratio", "metric"]).value
    first = rows.iloc[0]
    facts = provenance[first["provenance"]]
    batch = "" if facts["batch_size"] == 1 else f", batch of {facts['batch_size']}"
    where = f"{first['model']}, {facts['model']['dtype']}, {first['frames']} frames{batch}"
    made = []
    for ratio in sorted(rows[rows.method == METHOD].retention_ratio.unique(), reverse=True):
        (dense, pruned), (dense_flops, flops) = (
            (value["dense", 1.0, metric], value[METHOD, ratio, metric]) for metric in ("prefill_ms", "flops_counted")
        )
        share = value[METHOD, ratio, "prune_ms"] / dense
        made.append(
            f"| {where}, R = {100 * ratio:g} % | {dense:.4g} / {pruned:.3g} | {dense / pruned:.2f} "
            f"| {dense_flops / flops:.2f} | {100 * share:.1f} % |"
        )
    return made
