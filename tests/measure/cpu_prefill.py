"""What pruning leaves of the language model's prefill on a CPU, as docs/measuring.md shows it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from mmg_bench.report.rows import read_rows

RESULTS = Path(__file__).parents[2] / "results" / "efficiency" / "cpu"
BEGIN, END = "<!-- cpu:begin -->", "<!-- cpu:end -->"
METHOD = "mmg_vid"
HEAD = (
    "| MMG-Vid | dense / pruned prefill, ms | ratio | of least work | of counted FLOPs | pruning, of dense prefill |",
    "|:--|--:|--:|--:|--:|--:|",
)


@dataclass(frozen=True)
class Saving:
    """Of one model, batch size and retention ratio."""

    model: str
    batch: int
    where: str
    ratio: float
    dense_ms: float
    pruned_ms: float
    least: float
    """Dense over pruned at the roofline."""
    counted: float
    """Dense over pruned in counted FLOPs."""
    share: float
    """Of pruning in a dense prefill."""

    @property
    def took(self) -> float:
        """Dense over pruned."""
        return self.dense_ms / self.pruned_ms

    def __str__(self) -> str:
        dense, pruned = (f"{ms:.0f}" if ms > 100 else f"{ms:.1f}" for ms in (self.dense_ms, self.pruned_ms))
        times = f"{dense} / {pruned} | {self.took:.2f} | {self.least:.2f} | {self.counted:.2f}"
        return f"| {self.where}, R = {100 * self.ratio:g} % | {times} | {100 * self.share:.1f} % |"


def table() -> str:
    """A line a model, batch size and retention ratio that was measured."""
    return "\n".join([*HEAD, *map(str, savings())])


def savings() -> list[Saving]:
    """From the committed rows."""
    rows = read_rows(RESULTS / "rows.csv")
    provenance = json.loads((RESULTS / "provenance.json").read_text())
    measured = rows[rows.source == "measured"]
    groups = [part for _, part in measured.groupby(["model", "frames", "skill"], sort=False)]
    return [saving for part in groups for saving in savings_of(part, provenance)]


def savings_of(rows: pd.DataFrame, provenance: dict[str, Any]) -> list[Saving]:
    """Of one model and batch size."""
    value = rows.set_index(["method", "retention_ratio", "metric"]).value
    first = rows.iloc[0]
    facts = provenance[first["provenance"]]
    batch = "" if facts["batch_size"] == 1 else f", batch of {facts['batch_size']}"
    dense = {m: value["dense", 1.0, m] for m in ("prefill_ms", "prefill_roofline_ms", "flops_counted")}
    return [
        Saving(
            model=first["model"],
            batch=facts["batch_size"],
            where=f"{first['model']}, {facts['model']['dtype']}, {first['frames']} frames{batch}",
            ratio=ratio,
            dense_ms=dense["prefill_ms"],
            pruned_ms=value[METHOD, ratio, "prefill_ms"],
            least=dense["prefill_roofline_ms"] / value[METHOD, ratio, "prefill_roofline_ms"],
            counted=dense["flops_counted"] / value[METHOD, ratio, "flops_counted"],
            share=value[METHOD, ratio, "prune_ms"] / dense["prefill_ms"],
        )
        for ratio in sorted(rows[rows.method == METHOD].retention_ratio.unique(), reverse=True)
    ]
