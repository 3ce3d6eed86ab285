"""The tiny model ready to be measured, and a video for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmg_bench.benchmarks.embedded.render import write_video
from mmg_bench.benchmarks.embedded.world import make_world
from mmg_bench.models.loading import VideoLLM
from mmg_bench.models.spec import ModelSpec


@pytest.fixture(scope="module")
def llm(tiny_folder: Path) -> VideoLLM:
    return VideoLLM(ModelSpec("tiny", str(tiny_folder), frames=4, dtype="float32", device="cpu"))


@pytest.fixture(scope="session")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "v.mp4"
    write_video(make_world("train", 0, sampled=4), path, size=32)
    return path
