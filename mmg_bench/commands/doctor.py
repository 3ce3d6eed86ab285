"""Carries out `mmg-bench doctor`: says what a run or a table lacks here, and how to get it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig

from mmg_bench import config as cfg
from mmg_bench import specs
from mmg_bench.commands.evaluation import timing
from mmg_bench.commands.profiles import checks, named, what
from mmg_bench.measure.latency import LatencySettings, check_engine
from mmg_bench.options import check_whole
from mmg_bench.runner.requirements import Check, check_all
from mmg_bench.runner.workers import workers_for


def doctor(config: DictConfig) -> int:
    """Check what a configuration composed from run.yaml or table.yaml needs. Returns how many things are missing.

    For a table with `profile=auto`, every profile is shown, and the smallest number is returned: one that can run is
    enough.
    """
    plain = cfg.plain(config)
    settings = timing(plain)
    workers_for(plain["workers"], "cpu")
    if plain["limit"] is not None:
        check_whole("limit", plain["limit"], 1, ", or null for every question")
    if "table" in plain:
        return _table(plain, settings)
    model, benchmark = plain["model"], plain["benchmark"]
    spec = specs.model_spec(model)
    on_gpu = bool(model.get("gpu_gb")) and spec.device != "cpu"
    if settings is not None:
        check_engine(settings, spec)
    cell = specs.cell(plain["method"], plain["retention_ratio"], plain["positions"])
    described = [(specs.benchmark_spec(benchmark), benchmark)]
    found = check_all(model, spec, described, on_gpu, {cell.label: cell.method})
    return _show(f"This run: {model['name']} on {benchmark['name']}", found)


def _table(plain: dict[str, Any], settings: LatencySettings | None) -> int:
    profiles = named(plain)
    for profile in profiles.values():
        for spec in [run.spec for run in profile["runs"]]:
            if settings is not None and not profile["needs_gpu"]:  # for a GPU profile, a check reports a missing GPU
                check_engine(settings, spec)
    return min(
        _show(f"Table {plain['table']['name']}, profile {name}: {what(profile)}", checks(plain, profile))
        for name, profile in profiles.items()
    )


def _show(title: str, found: Sequence[Check]) -> int:
    print(title)
    for check in found:
        print(f"  {'ok     ' if check.missing is None else 'MISSING'} {check}")
    missing = sum(check.missing is not None for check in found)
    print(f"  {missing} of {len(found)} missing\n" if missing else "  Everything is there.\n", flush=True)
    return missing
