"""Writes a finished table to disk and prints it on the terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from mmg_bench import config as cfg
from mmg_bench.files import written_whole
from mmg_bench.options import check_folder
from mmg_bench.report.rows import provenance_keys, write_rows
from mmg_bench.report.table import Table, last_of_benchmarks, print_tables, to_markdown
from mmg_bench.runner import provenance


def results_folder(config: Mapping[str, Any], profile: str) -> Path:
    """The folder for a composed table. Raises ValueError if it cannot be written to.

    A table goes next to its records, so that it does not replace the complete one, if it is not one of this package's,
    if its settings differ from its file's, if it covers only part of the questions, or if it lacks its times.
    """
    if config["results_dir"] is not None:
        return check_folder("results_dir", config["results_dir"]) / profile
    name = config["table"]["name"]
    usual = cfg.shipped("table", f"table={name}") if (cfg.CONFIGS / f"table/{name}.yaml").is_file() else {}
    as_filed = all(config[section] == usual.get(section) for section in ("table", "measure"))
    all_of_it = config["limit"] is None and config["latency"]
    whole = as_filed and all_of_it and not any(config[group] for group in cfg.OPEN)
    option, folder = ("results_dir", f"results/{name}") if whole else ("output_dir", config["output_dir"])
    return check_folder(option, folder) / profile


def publish(
    rows: pd.DataFrame,
    sources: dict[str, Any],
    folder: Path,
    layout: Callable[[pd.DataFrame, dict[str, Any]], list[Table]],
    *,
    shown: bool = True,
) -> None:
    """Write rows.csv, table.md and provenance.json, and print the table if it is to be shown."""
    tables = layout(rows, sources)  # before anything is written: it raises if rows lack their source, or are empty
    entries = {key: sources[key] for key in {*provenance_keys(rows), *last_of_benchmarks(sources).values()}}
    if any(folder.glob("records*.jsonl")):  # their provenance has more entries: keep them
        provenance.add(folder, entries)
    else:
        asked = provenance.ASKED
        provenance.write(folder, {k: {f: v for f, v in entry.items() if f != asked} for k, entry in entries.items()})
    write_rows(rows, folder / "rows.csv")
    with written_whole(folder / "table.md") as file:
        file.write_text(to_markdown(tables), encoding="utf-8")
    if not shown:
        return
    print_tables(tables)
    print(f"\nWritten: {folder}/table.md, rows.csv, provenance.json")
