"""`mmg-bench table`: each kind of table is made by the command that measures such things."""

from __future__ import annotations

from omegaconf import DictConfig

from mmg_bench import config as cfg
from mmg_bench.commands import evaluation, measure
from mmg_bench.commands.profiles import profiles_of
from mmg_bench.options import called, of_table


def table(config: DictConfig) -> int:
    """Make a table of accuracy, or one of speed: the profiles of the latter name workloads, not benchmarks."""
    of_speed = {"workloads" in profile for profile in profiles_of(cfg.plain(config)["table"]).values()}
    if len(of_speed) > 1:
        raise ValueError(f"table {config.table.name!r}: all of its profiles have workloads, or all have benchmarks")
    with called(of_table):
        return measure.table(config) if True in of_speed else evaluation.table(config)
