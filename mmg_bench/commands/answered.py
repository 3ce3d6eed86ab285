"""What lies below the output_dir of a run or a table: its records, their provenance, and what of them is missing."""

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
    """What was answered, by whom, and where that was written down."""

    records: list[Record]
    sources: dict[str, Any]
    """Provenance of the records, by its keys."""
    notes: list[str]
    """What to say of shares of the videos that are missing."""


def read_answered(folder: Path) -> Answered:
    """All that was answered into a folder. Raises ValueError where there are no records."""
    records: list[Record] = []
    sources: dict[str, Any] = {}
    notes: list[str] = []
    for part in _folders(folder):
        records += read_records(part)
        entries = provenance.read(part)
        sources |= entries
        notes += _missing_shards(part, entries)
    if not records:
        raise ValueError(f"output_dir={str(folder)!r}: no question is answered there yet")
    return Answered(records, sources, notes)


def _folders(folder: Path) -> list[Path]:
    """Where the records are: of a run in the folder itself; of a table one or two below, by profile and benchmark."""
    for depth in ("", "*/", "*/*/"):
        if found := sorted({file.parent for file in folder.glob(f"{depth}records*.jsonl")}):
            return found
    only_rows = ", which has rows alone" if any(folder.glob("rows.csv")) else ""
    raise ValueError(
        f"output_dir={str(folder)!r}{only_rows}: no records there; give the output_dir of a run or of a table"
    )


def _missing_shards(folder: Path, entries: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A note where a folder lacks the records of a shard: how many there are, its commands tell, or their numbers.

    A command without shards answers what shards left of the cells that it asks for: then only its own workers' may be.
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
    return [f"{folder} has no records of {lacking} of shard.count={count}: its questions are missing"]
