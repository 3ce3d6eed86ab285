"""A Hydra launcher that answers all jobs of a sweep in one process and one pass over the videos."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class OnePassConfig:
    """Config node of `hydra/launcher: one_pass`."""

    _target_: str = "mmg_bench.runner.launcher.OnePassLauncher"


class OnePassLauncher(Launcher):
    """Composes the configuration of every job, and runs them together."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from mmg_bench.commands import run

        configs = [self.context.config_loader.load_sweep_config(self.config, list(job)) for job in job_overrides]
        failed = run(configs)
        return [
            JobReturn(overrides=list(job), cfg=config, status=JobStatus.COMPLETED, _return_value=failed)
            for job, config in zip(job_overrides, configs, strict=True)
        ]


def register() -> None:
    """Make `hydra/launcher=one_pass` known."""
    plugins: Any = Plugins.instance()
    plugins.register(OnePassLauncher)
    ConfigStore.instance().store(group="hydra/launcher", name="one_pass", node=OnePassConfig, provider="mmg_bench")
