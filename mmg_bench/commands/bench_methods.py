"""What `mmg-bench bench-methods` does with its composed configuration."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from omegaconf import DictConfig

from mmg_bench import config as cfg
from mmg_bench.measure.prune_time import PruneTimes, PruneTimeSettings, measure_methods
from mmg_bench.methods.registry import get_method, method_names
from mmg_bench.report.prune_time import prune_time_rows, prune_time_table
from mmg_bench.report.rows import write_rows
from mmg_bench.report.table import print_tables, to_markdown
from mmg_bench.runner import provenance


def run(config: DictConfig) -> int:
    """Time the methods; write rows.csv, table.md and provenance.json; print the table."""
    values = cfg.plain(config)
    for name in ("methods", "frames"):  # one alone is a list of one
        if not isinstance(values[name], list) and values[name] != "all":
            values[name] = [values[name]]
    wanted, ratio, out = values.pop("methods"), values.pop("retention_ratio"), Path(values.pop("out"))
    names = [n for n in method_names() if n != "dense"] if wanted == "all" else list(dict.fromkeys(wanted))
    methods = {name: get_method(name, retention_ratio=ratio) for name in names}
    settings = PruneTimeSettings(**{**values, "frames": tuple(values["frames"])})
    device = settings.torch_device
    described = {**asdict(settings), "torch_device": str(device), "methods": names, "retention_ratio": ratio}
    entry = provenance.describe(described, device)
    model = f"synthetic {settings.tokens} x {settings.width}"
    key = provenance.key_of(entry)
    results: list[PruneTimes] = []
    for found in measure_methods(methods, settings):  # written as they come, so that a stop loses no other length
        results += found
        rows = prune_time_rows(results, model=model, retention_ratio=ratio, provenance=key)
        table = prune_time_table(rows, {key: entry})
        write_rows(rows, out / "rows.csv")
        (out / "table.md").write_text(to_markdown([table]), encoding="utf-8")
        provenance.write(out, {key: entry})
    print_tables([table])
    print(f"\nWritten: {out}/table.md, rows.csv, provenance.json")
    return 0
