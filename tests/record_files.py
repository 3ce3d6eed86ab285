"""Files of records that were made up in the test."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from mmg_bench.runner.lines import LineFile
from mmg_bench.runner.records import Record


def append(path: Path, records: Iterable[Record]) -> None:
    """Add records to a file, as a run does."""
    with LineFile(path) as file:
        file.append(map(asdict, records))
