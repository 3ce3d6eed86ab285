"""What `mmg-bench compare` does with two methods and its composed configuration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from mmg_bench import config as cfg
from mmg_bench.options import check_number, check_path
from mmg_bench.report.pairs import Name, pair_tables
from mmg_bench.report.rows import DENSE
from mmg_bench.report.table import print_tables
from mmg_bench.runner import provenance
from mmg_bench.runner.records import Record, read_records


def compare(methods: Sequence[str], config: DictConfig) -> int:
    """Print what one method gains over another, question by question, from the records of a run or a table.

    Raises ValueError unless `methods` are two labels that have records.
    """
    values = cfg.plain(config)
    folder, ratio = check_path("output_dir", values["output_dir"]), values["retention_ratio"]
    check_number("retention_ratio", ratio)
    if len(methods) != 2 or methods[0] == methods[1]:
        raise ValueError(f"compare {' '.join(methods)}: name two methods, such as: mmg-bench compare mmg_vid dpc_knn")
    records: list[Record] = []
    sources: dict[str, Any] = {}
    for part in _folders(folder):
        records += read_records(part)
        sources |= provenance.read(part)
    names = [(method, 1.0 if method == DENSE else ratio) for method in methods]
    for name in names:
        _check_known(name, records, folder)
    print_tables(pair_tables(records, sources, *names))
    return 0


def _folders(folder: Path) -> list[Path]:
    """Where the records are: of a run in the folder itself; of a table one or two below, by profile and benchmark."""
    for depth in ("", "*/", "*/*/"):
        if found := sorted({file.parent for file in folder.glob(f"{depth}records*.jsonl")}):
            return found
    raise ValueError(f"output_dir={str(folder)!r}: no records there; give the output_dir of a run or of a table")


def _check_known(name: Name, records: Sequence[Record], folder: Path) -> None:
    known: dict[str, list[float]] = {}
    for r in records:
        ratios = known.setdefault(r.method, [])
        ratios += [r.retention_ratio] * (r.retention_ratio not in ratios)
    if name[1] not in known.get(name[0], ()):
        there = "; ".join(f"{label} ({', '.join(f'{r:g}' for r in ratios)})" for label, ratios in known.items())
        raise ValueError(f"no {name[0]} at retention_ratio={name[1]:g} in {folder}; there are: {there or 'none'}")
