"""docs/measuring.md shows what was measured on a CPU."""

from __future__ import annotations

from pathlib import Path

import cpu_prefill

PAGE = Path(__file__).parents[2] / "docs" / "measuring.md"


def test_the_table_is_what_was_measured() -> None:
    shown = f"{cpu_prefill.BEGIN}\n{cpu_prefill.table()}\n{cpu_prefill.END}"
    assert shown in PAGE.read_text(), "run scripts/refresh_docs.py"
