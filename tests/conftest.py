"""Shared fixtures: a tiny random LLaVA-OneVision of the real class, and a folder of made data."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from tiny import TINY

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach for a hub
with suppress(ImportError):  # not where only what needs a GPU is run (scripts/gpu_run.sh)
    import datasets  # noqa: F401 - reads HF_HOME for good at its first import: not while a test has one of its own

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has what it starts with & ignore Ctrl-C
torch.set_num_threads(1)  # of two, each waits at every operation of a tiny model for the other, busily


@pytest.fixture(autouse=True)
def _hf_home_of_one_test() -> Iterator[None]:
    """lmms-eval, too, would keep for all others the HF_HOME of the first test that loads a task."""
    yield
    if (task := sys.modules.get("lmms_eval.api.task")) is not None:
        task._resolve_hf_datasets_cache_dir.cache_clear()


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails the test that comes to load one."""

    def load(*_: object) -> None:
        pytest.fail("a model is loaded")

    monkeypatch.setattr("mmg_bench.models.loading.VideoLLM.__init__", load)


@pytest.fixture(scope="session")
def tiny() -> tuple[Any, Any]:
    """Model and processor; a frame gives 4 x 4 visual tokens."""
    from mmg_bench.benchmarks.embedded.questions import vocabulary
    from mmg_bench.models.small import SmallSpec, small_llava_onevision

    torch.manual_seed(0)
    model, processor = small_llava_onevision(vocabulary(), SmallSpec(**TINY))
    with torch.no_grad():  # random logits are nearly flat: spread them, so that generated ids can differ
        model.lm_head.weight.mul_(40)
        model.model.image_newline.normal_()
    return model, processor


@pytest.fixture(scope="session")
def tiny_folder(tiny: tuple[Any, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as a checkpoint folder."""
    folder = tmp_path_factory.mktemp("checkpoint")
    for part in tiny:
        part.save_pretrained(folder)
    return folder
