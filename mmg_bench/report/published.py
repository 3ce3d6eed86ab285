"""The published numbers (`results/paper/published.csv`), which tables show beside ours."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

COLUMNS = ("model", "frames", "method", "retention", "benchmark", "score", "flops_t", "source", "note")
_HERE = Path(__file__)


def published_path() -> Path:
    """The file in a checkout, else the copy that a wheel has next to this module."""
    checkout = _HERE.parents[2] / "results" / "paper" / "published.csv"
    return checkout if checkout.exists() else _HERE.with_name("published.csv")


def published(path: Path | None = None) -> pd.DataFrame:
    """All published numbers, one per row.

    `score` is in the unit of `benchmark`: percent for benchmarks and `average_retention_percent`, a factor for
    `prefill_speedup`. `flops_t` is in 10^12 multiply-adds (`flops_gqa`). A number may have several sources.
    """
    path = path or published_path()
    text = dict.fromkeys(("model", "method", "benchmark", "source", "note"), str)
    numbers = ("frames", "retention", "score", "flops_t")
    table = pd.read_csv(path, dtype=text, keep_default_na=False, na_values={c: [""] for c in numbers})
    if tuple(table.columns) != COLUMNS:
        raise ValueError(f"{path}: columns {list(table.columns)}; expected {list(COLUMNS)}")
    return table
