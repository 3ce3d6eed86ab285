"""Tables of speed from result rows without a benchmark: one per model, number of frames and batch size."""

from __future__ import annotations

import math
from collections.abc import Callable

import pandas as pd

from mmg_bench.benchmarks.reserved import ALL
from mmg_bench.report.answers import Key, Sources
from mmg_bench.report.rows import DENSE, ResultRow, as_tuples, measured_over_pending, provenance_keys, prunes_inside
from mmg_bench.report.table import (
    FLAG,
    NONE,
    Block,
    Column,
    Entry,
    Table,
    few_rounds,
    flops_of_dense,
    measured_line,
    table_by_ratio,
    three_digits,
    unsteady,
    with_interval,
    with_unit,
)


def cell_key(method: str, ratio: float) -> str:
    """The name of a cell in provenance, under `cells`, `out_of_memory` and `failed`."""
    return f"{method} R={ratio:g}"


def efficiency_layout(rows: pd.DataFrame, provenance: Sources) -> list[Table]:
    """The tables of `rows`; pending ones come last. A pending row is dropped if it was also measured.

    provenance: the content of provenance.json. Raises ValueError if there are no rows, or if they name a key that is
    missing there.
    """
    if rows.empty:
        raise ValueError("there are no rows to make a table from")
    apart = measured_over_pending(rows).groupby(["model", "frames", "skill"], sort=False)
    groups = [_Group(part, provenance) for _, part in apart]
    return [g.table() for g in sorted(groups, key=lambda g: g.pending)]


class _Group:
    """Makes the table of one model, number of frames and batch size."""

    def __init__(self, rows: pd.DataFrame, provenance: Sources):
        self.rows, self.provenance = rows, provenance
        self.pending = bool((rows.source == "pending").all())
        self.found = {(r.method, r.retention_ratio, r.metric): r for r in as_tuples(rows)}
        self.prunes_inside = prunes_inside(rows)
        self.cells: list[Key] = list(dict.fromkeys(zip(rows.method, rows.retention_ratio, strict=True)))

    def table(self) -> Table:
        first = self.rows.iloc[0]
        batch = "" if first["skill"] == ALL else f", {first['skill'].replace('=', ' ')}"
        title = f"{first['table']}: {first['model']}, {first['frames']} frames{batch}"
        if self.pending:
            return self._not_yet(title)
        return table_by_ratio(title, self._header(), self.cells, self._columns(), self._notes())

    def _not_yet(self, title: str) -> Table:
        ratios: dict[str, list[str]] = {}
        for method, ratio in self.cells:
            ratios.setdefault(method, []).append(f"{100 * ratio:.4g}")
        lines = tuple(
            (Entry(method), Entry(f"{', '.join(found)} %"), Entry("pending")) for method, found in ratios.items()
        )
        weights = ", ".join(self.rows.weights.unique())
        header = (f"Weights: {weights}. Not yet measured: no such machine has been available",)
        return Table(title, header, ("Method", "R", "Prefill ms"), (Block("", lines),), ())

    def _columns(self) -> list[Column]:
        texts: dict[str, Callable[[Key], str]] = {
            "Tokens": self._tokens,
            "Layer mean": self._layer_mean,
            "FLOPs (of dense)": self._flops,
            "Encode ms": lambda c: self._number(c, "encode_ms"),
            "Prune ms (of dense prefill)": self._prune,
            "Prefill ms": self._prefill,
            "Prefill ratio (of least work)": self._ratio,
            "of roofline": lambda c: self._number(c, "prefill_over_roofline", "×"),
            "Decode ms/token": lambda c: self._number(c, "decode_token_ms"),
            "of its roofline": lambda c: self._number(c, "decode_over_roofline", "×"),
            "TTFT ms": lambda c: self._number(c, "ttft_ms"),
            "Prefill speed-up": lambda c: self._speedup(c, "prefill_speedup"),
            "TTFT speed-up": lambda c: self._speedup(c, "ttft_speedup"),
            "E2E speed-up": lambda c: self._speedup(c, "e2e_speedup"),
            "KV cache": lambda c: self._bytes(c, "kv_cache_bytes"),
            "Activations": lambda c: self._bytes(c, "activation_memory_bytes"),
            "Peak": lambda c: self._bytes(c, "peak_memory_bytes"),
            "Energy J": lambda c: self._number(c, "prefill_energy_joules"),
        }
        return [(name, {cell: Entry(text(cell)) for cell in self.cells}) for name, text in texts.items()]

    def _row(self, cell: Key, metric: str) -> ResultRow | None:
        """The row of a metric, if it has a value."""
        row = self.found.get((*cell, metric))
        return row if row is not None and math.isfinite(row.value) else None

    def _number(self, cell: Key, metric: str, unit: str = "") -> str:
        row = self._row(cell, metric)
        return NONE if row is None else f"{three_digits(row.value)}{unit}"

    def _tokens(self, cell: Key) -> str:
        row = self._row(cell, "prefill_ms")
        return NONE if row is None else f"{row.realised_tokens:.1f}".removesuffix(".0")

    def _layer_mean(self, cell: Key) -> str:
        row = self._row(cell, "retention_layer_mean")
        return NONE if row is None or not self.prunes_inside else f"{100 * row.value:.1f} %"

    def _flops(self, cell: Key) -> str:
        return flops_of_dense(self._row(cell, "flops_gqa"), self._row((DENSE, 1.0), "flops_gqa"))

    def _prune(self, cell: Key) -> str:
        row, dense = self._row(cell, "prune_ms"), self._row((DENSE, 1.0), "prefill_ms")
        if row is None or cell[0] == DENSE:
            return NONE
        return three_digits(row.value) + ("" if dense is None else f" ({100 * row.value / dense.value:.1f} %)")

    def _prefill(self, cell: Key) -> str:
        row = self.found.get((*cell, "prefill_ms"))
        if row is not None and row.source == "pending":
            return "pending"
        if row is not None and row.n_errors:
            return "failed" if cell_key(*cell) in self._told("failed") else "out of memory"
        return self._number(cell, "prefill_ms")

    def _told(self, kind: str) -> dict[str, str]:
        """Cell -> reason, for the cells listed under `kind` in provenance (`out_of_memory` or `failed`)."""
        told: dict[str, str] = {}
        for key in provenance_keys(self.rows):
            told |= self.provenance[key].get(kind, {})
        return told

    def _ratio(self, cell: Key) -> str:
        """Dense's prefill over the cell's, without pruning; in parentheses, the same for the least possible times."""
        rows = [(self._row((DENSE, 1.0), m), self._row(cell, m)) for m in ("prefill_ms", "prefill_roofline_ms")]
        if cell[0] == DENSE or any(row is None for pair in rows for row in pair):
            return NONE
        took, least = (dense.value / row.value for dense, row in rows if dense is not None and row is not None)
        return f"{took:.2f}× ({least:.2f}×)"

    def _speedup(self, cell: Key, metric: str) -> str:
        row = self._row(cell, metric)
        return NONE if row is None else "1×" if cell[0] == DENSE else with_interval(row, 2, "×")

    def _bytes(self, cell: Key, metric: str) -> str:
        row, dense = self._row(cell, metric), self._row((DENSE, 1.0), metric)
        return NONE if row is None else with_unit(row.value, scale=row.value if dense is None else dense.value) + "B"

    def _header(self) -> tuple[str, ...]:
        first = self.rows.iloc[0]
        keys = provenance_keys(self.rows)
        lines = [f"Model: {first['model']}, weights: {', '.join(self.rows.weights.unique())}; {first['frames']} frames"]
        lines += [measured_line(key, self.provenance) for key in keys]
        for facts in (self.provenance[key] for key in keys):
            video, text = facts.get("video"), facts.get("text_tokens")
            how = facts.get("latency", {})
            if video is not None:
                steps = f"; {how['new_tokens']} decoding steps" if "new_tokens" in how else ""
                lines.append(f"Input: {video}, a prompt of {text} random words{steps}")
            if (engine := how.get("engine", "stock")) != "stock":
                lines.append(
                    f"Prefill by measure.engine={engine}; methods that prune inside the language model run the stock "
                    "forward, against a dense that the engine makes faster"
                )
            if ceilings := facts.get("ceilings"):
                lines.append(
                    f"Ceilings of this run: {ceilings['multiply_adds_per_second'] / 1e12:.3g} T multiply-adds/s, "
                    f"{ceilings['bytes_per_second'] / 1e9:.4g} GB/s"
                )
        repeats = int(self.rows.n.max())
        lines.append(
            f"Times: medians of {repeats} rounds, dense and every cell in each. Three speed-ups, with 95 % intervals: "
            "prefill (pruning + prefill), TTFT (+ encoding), E2E (everything). FLOPs: multiply-adds (`flops_gqa`). "
            "Of roofline: time over the least possible. Prefill ratio: dense over the cell, without pruning; in "
            "parentheses, the same at the roofline (docs/measuring.md)"
        )
        return tuple(lines)

    def _notes(self) -> tuple[str, ...]:
        failures = self._told("out_of_memory") | self._told("failed")
        flags = [*unsteady(self._row((DENSE, 1.0), "prefill_ms")), *few_rounds(self.rows)]
        return (*(f"{FLAG} {line}" for line in flags), *(f"{cell}: {why}" for cell, why in failures.items()))
