"""Carries out `mmg-bench table`: passes each kind of table to the command that measures it."""

from __future__ import annotations

from omegaconf import DictConfig

from mmg_bench import config as cfg
from mmg_bench.commands import evaluation, measure
from mmg_bench.commands.profiles import profiles_of


def table(config: DictConfig) -> int:
    """Make a table of accuracy, or a table of speed: the profiles of the latter name workloads, not benchmarks."""
    of_speed = all("workloads" in profile for profile in profiles_of(cfg.plain(config)["table"]).values())
    return measure.table(config) if of_speed else evaluation.table(config)
