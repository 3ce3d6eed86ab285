"""Carries out `mmg-bench bench-methods` with its composed configuration."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pandas as pd
from omegaconf import DictConfig

from mmg_bench import config as cfg
from mmg_bench import specs
from mmg_bench.commands.profiles import method_entry
from mmg_bench.commands.publish import publish
from mmg_bench.measure.failures import listed
from mmg_bench.measure.prune_time import PruneTimes, PruneTimeSettings, measure_methods
from mmg_bench.methods.base import Method
from mmg_bench.methods.registry import method_names, plug_ins, unreadable
from mmg_bench.options import check_folder, check_ratio
from mmg_bench.report.prune_time import failed_key, prune_time_rows, prune_time_table
from mmg_bench.report.table import Table
from mmg_bench.runner import provenance


def run(config: DictConfig) -> int:
    """Time the methods; write rows.csv, table.md and provenance.json; print the table. Returns how many failed."""
    values = cfg.plain(config)
    as_filed = values == cfg.load_file("bench_methods.yaml")
    given = values.pop("out")
    out = check_folder("out", "outputs/bench_methods" if given is None else given)
    wanted, ratio = values.pop("methods"), values.pop("retention_ratio")
    check_ratio("retention_ratio", ratio)
    broken = unreadable(plug_ins(method_names())) if wanted == "all" else {}  # with `all`, these may be left out
    others = [name for name in method_names() if name != "dense" and name not in broken]
    methods = _methods(others if wanted == "all" else cfg.listed("methods", wanted), ratio)
    for fault in broken.values():
        print(f"{fault}; it is left out", flush=True)
    settings = PruneTimeSettings(**{**values, "frames": tuple(cfg.listed("frames", values["frames"]))})
    device = settings.torch_device
    whole = check_folder("out", "results/bench_methods") if as_filed and device.type == "cpu" else out
    described = {**asdict(settings), "torch_device": str(device), "methods": list(methods), "retention_ratio": ratio}
    entry = provenance.describe(described, device)
    model = f"synthetic {settings.tokens} x {settings.width}"
    key = provenance.key_of(entry)
    results: list[PruneTimes] = []
    for found in measure_methods(methods, settings):  # written as they come: a stop loses only one length
        results += found
        rows = prune_time_rows(results, model=model, retention_ratio=ratio, provenance=key)
        faults = {failed_key(r.name, r.frames): r.failure.why for r in results if r.failure and not r.failure.memory}
        sources = {key: {**entry, "failed": faults}}
        publish(rows, sources, out, _layout, shown=False)
    # a table that lacks a method's times does not replace the one in results/
    publish(rows, sources, out if faults or broken else whole, _layout)
    if faults:
        print(f"{listed(faults.items())}\n{len(faults)} of {len(results)} were not timed.")
    return len(faults) + len(broken)


def _methods(wanted: list[Any], ratio: float) -> dict[str, Method]:
    """The methods to time, by their labels. Raises ValueError for entries that are no method, or do not fit here."""
    for given in wanted:
        if isinstance(given, dict) and "retention_ratio" in given:
            raise ValueError(f"methods: {given!r}: the ratio is an option of the command: retention_ratio=...")
    entries = [method_entry("methods", given) for given in wanted]
    for entry in entries:
        if entry["name"] == "dense":
            raise ValueError("methods: dense prunes nothing, so there is nothing to time: leave it out")
        if unfit := {"positions", "retention_ratios"} & set(entry):
            raise ValueError(f"methods: {entry['name']}: {min(unfit)} does not go with bench-methods: leave it out")
    cells = specs.table_cells(entries, [ratio])
    return {cell.label: cell.method for cell in cells if cell.method.name != "dense"}


def _layout(rows: pd.DataFrame, sources: dict[str, Any]) -> list[Table]:
    return [prune_time_table(rows, sources)]
