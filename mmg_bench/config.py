"""From composed configurations to the values that the package works with."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from itertools import product
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig, OmegaConf

from mmg_bench.benchmarks.lmms import BenchmarkSpec
from mmg_bench.models.loading import ModelSpec
from mmg_bench.runner.cells import Cell, make_cell

_PACKAGE = Path(__file__).parent
CONFIGS = next(p for p in (_PACKAGE.parent / "configs", _PACKAGE / "configs") if p.is_dir())
"""The folder of configuration files: the checkout's, or the copy inside an installed package."""
ONLY_FOR_DOCTOR = ("download_gb", "disk_gb", "gpu_gb", "dataset", "videos")
"""Entries that say what a model or benchmark needs, and are no part of it."""


def load(group: str, name: str) -> dict[str, Any]:
    """One file of a config group. Raises ValueError, listing the valid names, for an unknown one."""
    path = CONFIGS / group / f"{name}.yaml"
    if not path.is_file():
        names = sorted(p.stem for p in (CONFIGS / group).glob("*.yaml"))
        raise ValueError(f"no {group} is called {name!r}; choose one of: {', '.join(names)}")
    return plain(OmegaConf.load(path))


def composed(name: str, overrides: Sequence[str]) -> DictConfig:
    """Compose `name`.yaml with overrides, once. Raises ValueError, listing the valid ones, for an unknown option."""
    with initialize_config_dir(str(CONFIGS), version_base=None):
        return _compose(name, overrides)


def _compose(name: str, overrides: Sequence[str]) -> DictConfig:
    try:
        return compose(name, list(overrides))
    except ConfigCompositionException as error:
        unknown = re.match(r"Could not override '([\w.]+)'", str(error))
        if unknown is None:
            raise
        group, _, _ = unknown[1].rpartition(".")
        known = compose(name, [o for o in overrides if o.partition("=")[0] != unknown[1]])
        options = OmegaConf.select(known, group) if group else known
        if not isinstance(options, DictConfig):
            raise
        raise ValueError(f"{unknown[1]}: no such option; {group or name} has: {', '.join(map(str, options))}") from None


def sweep(name: str, overrides: Sequence[str]) -> list[DictConfig]:
    """Compose `name`.yaml once for every combination of the values that `overrides` list, as Hydra's multirun does.

    Composed together, not one job after another, so that what they share can be done once.
    """
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    choices = [
        [f"{o.get_key_element()}={value}" for value in o.sweep_string_iterator()]
        if o.is_sweep_override()
        else [o.input_line or ""]
        for o in parsed
    ]
    with initialize_config_dir(str(CONFIGS), version_base=None):
        return [_compose(name, combination) for combination in product(*choices)]


def plain(config: Any) -> dict[str, Any]:
    """A configuration as plain dictionaries and lists, every reference resolved."""
    return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)  # type: ignore[return-value]


def model_spec(config: Mapping[str, Any]) -> ModelSpec:
    """The model that a configuration describes."""
    return ModelSpec(**_known(ModelSpec, config, "model"))


def benchmark_spec(config: Mapping[str, Any]) -> BenchmarkSpec:
    """The benchmark that a configuration describes."""
    values = _known(BenchmarkSpec, config, "benchmark")
    values["tasks"] = tuple(values["tasks"])
    if values.get("include_path") == "embedded":
        values["include_path"] = str(_PACKAGE / "benchmarks" / "embedded" / "task")
    return BenchmarkSpec(**values)


def cell(config: DictConfig | Mapping[str, Any], retention_ratio: float, positions: Any = None) -> Cell:
    """The cell of a method's configuration (`name`, and its parameters)."""
    values: dict[str, Any] = plain(config) if isinstance(config, DictConfig) else dict(config)
    return make_cell(values.pop("name"), retention_ratio, positions, **values)


def table_cells(methods: list[dict[str, Any]], retention_ratios: list[float]) -> list[Cell]:
    """Every method of a table at every retention ratio; dense once, first.

    An entry of `methods` is a name and what differs from the method's configuration file; it may set `positions`, and
    `retention_ratios` of its own.
    """
    if not any(entry["name"] == "dense" for entry in methods):
        methods = [{"name": "dense"}, *methods]
    cells: list[Cell] = []
    for entry in sorted(methods, key=lambda e: e["name"] != "dense"):
        changed = {k: v for k, v in entry.items() if k not in ("positions", "retention_ratios")}
        config = {**load("method", entry["name"]), **changed}
        wanted = entry.get("retention_ratios", retention_ratios)
        ratios = [1.0] if entry["name"] == "dense" else sorted(wanted, reverse=True)
        cells += [cell(config, ratio, entry.get("positions")) for ratio in ratios]
    return cells


def _known(kind: type, config: Mapping[str, Any], group: str) -> dict[str, Any]:
    values = {k: v for k, v in config.items() if k not in ONLY_FOR_DOCTOR}
    names = [f.name for f in fields(kind)]
    if unknown := sorted(set(values) - set(names)):
        raise ValueError(f"{group} has no option {', '.join(unknown)}; it has: {', '.join(names)}")
    return values
