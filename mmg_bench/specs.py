"""Turns composed configurations into the values that the package works with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from mmg_bench import config as cfg
from mmg_bench.benchmarks import embedded
from mmg_bench.benchmarks.lmms import BenchmarkSpec
from mmg_bench.cells import Cell, make_cell
from mmg_bench.measure.latency import LatencySettings
from mmg_bench.models.spec import ModelSpec


def model_spec(config: Mapping[str, Any], called: Mapping[str, str] | None = None) -> ModelSpec:
    """The model that a configuration describes; for `called`, see ModelSpec."""
    return ModelSpec(**cfg.known(ModelSpec, config, "model"), called=called or {})


def table_model(key: str, config: Mapping[str, Any]) -> ModelSpec:
    """A model of a table. Messages name its options by `key`, the table's name for the model's file."""
    return model_spec(config, {f.name: f"model.{key}.{f.name}" for f in fields(ModelSpec)})


def benchmark_spec(config: Mapping[str, Any]) -> BenchmarkSpec:
    """The benchmark that a configuration describes."""
    values = cfg.known(BenchmarkSpec, config, "benchmark")
    values["tasks"] = tuple(cfg.listed("benchmark.tasks", values.get("tasks")))
    if values.get("include_path") == "embedded":
        values["include_path"] = str(Path(embedded.__file__).parent / "task")
    return BenchmarkSpec(**values)


def latency_settings(config: Mapping[str, Any]) -> LatencySettings:
    """The settings with which a configuration measures latency."""
    return LatencySettings(**cfg.known(LatencySettings, config["measure"], "measure"))


def cell(config: Mapping[str, Any], retention_ratio: float, positions: Any = None) -> Cell:
    """The cell for a method's configuration (its `name` and parameters)."""
    values = dict(config)
    for option in ("retention_ratio", "positions"):
        if option in values:
            raise ValueError(
                f"method.{option}={values[option]!r}: not a method option, but one of the command: give {option}=... "
                "there, or, in a table, positions or retention_ratios in the method's entry"
            )
    return make_cell(values.pop("name"), retention_ratio, positions, **values)


def dense() -> Cell:
    """The reference of every percentage and every speed-up."""
    return cell({"name": "dense"}, 1.0)


def cells(configs: Iterable[Mapping[str, Any]]) -> list[Cell]:
    """The cells of configurations with `method`, `retention_ratio` and `positions`, each once; dense first."""
    own = (cell(c["method"], c["retention_ratio"], c["positions"]) for c in configs)
    return list(dict.fromkeys([dense(), *own]))


def table_cells(methods: list[dict[str, Any]], retention_ratios: list[float], where: str = "methods") -> list[Cell]:
    """Every method of a table at every retention ratio, each once; dense first.

    An entry of `methods` has the name of a configuration file or method, and the options that differ from it; it may
    set `positions`, and its own `retention_ratios`. Raises ValueError, naming `where` and the entry, for a wrong one.
    """
    if not any(entry["name"] == "dense" for entry in methods):
        methods = [{"name": "dense"}, *methods]
    cells: list[Cell] = []
    for entry in sorted(methods, key=lambda e: e["name"] != "dense"):
        try:
            cells += _cells_of(entry, retention_ratios)
        except ValueError as error:
            raise ValueError(f"{where}: {entry['name']}: {error}") from error
    return list(dict.fromkeys(cells))


def _cells_of(entry: Mapping[str, Any], retention_ratios: list[float]) -> list[Cell]:
    """One entry of a table's methods at every retention ratio."""
    changed = {k: v for k, v in entry.items() if k not in ("name", "positions", "retention_ratios")}
    config = {**cfg.load("method", entry["name"]), **changed}
    wanted = cfg.listed("retention_ratios", entry.get("retention_ratios", retention_ratios))
    ratios = [1.0] if entry["name"] == "dense" else sorted(wanted, reverse=True)
    return [cell(config, ratio, entry.get("positions")) for ratio in ratios]
