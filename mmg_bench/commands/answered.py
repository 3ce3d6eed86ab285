"""The content of the output_dir of a run or a table: its records, their provenance, and what is missing of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmg_bench.runner import provenance
from mmg_bench.runner.provenance import ASKED
from mmg_bench.runner.records import Record, read_records


@dataclass(frozen=True)
class Answered:
    """The records of a folder, their provenance, and notes on what is missing."""

    records: list[Record]
    sources: dict[str, Any]
    """Key -> provenance entry of the records."""
    notes: list[str]
    """Messages about missing shards of the videos."""


def read_answered(folder: Path) -> Answered:
    """Read everything that was answered into a folder. Raises ValueError if there are no records."""
    records: list[Record] = []
    sources: dict[str, Any] = {}
    notes: list[str] = []
    for part in _folders(folder):
        records += read_records(part)
        entries = provenance.read(part)
        sources |= entries
        notes += _missing_shards(part, entries)
    if not records:
        raise ValueError(f"output_dir={str(folder)!r}: no questions have been answered there yet")
    return Answered(records, sources, notes)


def _folders(folder: Path) -> list[Path]:
    """Folders with records: for a run, the folder itself; for a table, one or two levels down (profile, benchmark)."""
    for depth in ("", "*/", "*/*/"):
        if found := sorted({file.parent for file in folder.glob(f"{depth}records*.jsonl")}):
            return found
    only_rows = ", only rows.csv" if any(folder.glob("rows.csv")) else ""
    raise ValueError(
        f"output_dir={str(folder)!r}: no records there{only_rows}; give the output_dir of a run or of a table"
    )


def _missing_shards(folder: Path, entries: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A note if a folder lacks the records of a shard. The shard count comes from its commands, or the file numbers.

    A command without shards answers what shards left undone in its cells: then only its own workers' shares can be
    missing.
    """
    numbers = {
        int(n) for file in folder.glob("records-*.jsonl") if (n := file.stem.removeprefix("records-")).isdecimal()
    }
    if not numbers or (folder / "records.jsonl").exists():
        return []
    whole = [entry for entry in entries.values() if "shard.count=" not in str(entry.get("command"))]
    answered = {cell for entry in whole for cell in entry.get(ASKED, ())}
    parts = [e for e in entries.values() if e not in whole and not (whole and set(e.get(ASKED, ())) <= answered)]
    shares = r"\bshard\.count=(\d+)" if parts or not whole else r"\bworkers=(\d+)"
    commands = " ".join(str(entry.get("command")) for entry in parts or whole)
    count = max([*map(int, re.findall(shares, commands)), max(numbers) + 1 if parts else 0])
    missing = sorted(set(range(count)) - numbers)
    if not missing:
        return []
    lacking = " and ".join(f"shard.index={n}" for n in missing)
    return [f"{folder} has no records of {lacking} of shard.count={count}, so those questions are missing"]
