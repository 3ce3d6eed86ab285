"""The tables in results/, made anew from their rows."""

import json
from pathlib import Path

from mmg_bench.report.accuracy import layout
from mmg_bench.report.efficiency import efficiency_layout
from mmg_bench.report.prune_time import prune_time_table
from mmg_bench.report.rows import read_rows
from mmg_bench.report.table import to_markdown

RESULTS = Path(__file__).resolve().parents[2] / "results"
LAYOUTS = {
    "efficiency": efficiency_layout,
    "bench_methods": lambda rows, sources: [prune_time_table(rows, sources)],
}
FILES = sorted(RESULTS.rglob("table.md"))

TIMES_BEGIN, TIMES_END = (
    "<!-- times:begin (tests/report/test_committed.py compares this table) -->",
    "<!-- times:end -->",
)
"""Around the methods' own times in docs/measuring.md."""


def times() -> str:
    """The table of the methods' own times, without its heading and header."""
    text = (RESULTS / "bench_methods" / "table.md").read_text(encoding="utf-8")
    return "\n".join(line for line in text.splitlines() if line.startswith("|"))


def made(file: Path) -> str:
    """What a table.md is to say by the rows beside it."""
    rows = read_rows(file.parent)
    sources = json.loads((file.parent / "provenance.json").read_text(encoding="utf-8"))
    return to_markdown(LAYOUTS.get(rows.table.iloc[0], layout)(rows, sources))
