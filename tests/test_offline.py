"""Where everything comes from: a mirror of the hub, then the cache that it filled, without any network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from lmms_data import letter_model, videomme
from mirror import mirror

RUN = ["run", "model=embedded", "model.path=made/letters", "model.frames=4", "benchmark=videomme"]
MADE = "benchmark.questions=6"


def mmg_bench(home: Path, *args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING_FACE"))}
    env |= {"HF_HOME": str(home), "CUDA_VISIBLE_DEVICES": "", "no_proxy": "127.0.0.1", **environment}
    command = [sys.executable, "-m", "mmg_bench", *args]
    return subprocess.run(command, capture_output=True, text=True, env=env, check=False)


def answers(folder: Path) -> dict[tuple[str, str], str]:
    records = map(json.loads, (folder / "records.jsonl").read_text().splitlines())
    return {(r["method"], r["question"]): r["prediction"] for r in records}


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_a_mirror_fills_the_cache_from_which_an_offline_machine_runs(tmp_path: Path) -> None:
    letter_model(tmp_path / "hub" / "models" / "made" / "letters")
    data = tmp_path / "hub" / "datasets" / "lmms-eval" / "Video-MME"
    videomme().write(data, tmp_path)
    with zipfile.ZipFile(data / "videos_chunked_01.zip", "w") as archive:  # as the hub holds them
        for video in (tmp_path / "videomme").rglob("*.mp4"):
            archive.write(video, video.relative_to(tmp_path / "videomme"))
    home = tmp_path / "home"
    with mirror(tmp_path / "hub") as (address, asked):
        done = mmg_bench(home, *RUN, MADE, f"output_dir={tmp_path / 'on'}", HF_ENDPOINT=address, HF_TOKEN="hf_any")
        assert done.returncode == 0, done.stderr[-3000:]
    assert any("model.safetensors" in line for line in asked)
    assert any("videos_chunked_01.zip" in line for line in asked)
    done = mmg_bench(home, *RUN, MADE, f"output_dir={tmp_path / 'off'}", HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr[-3000:]
    assert answers(tmp_path / "off") == answers(tmp_path / "on")
    assert len(answers(tmp_path / "on")) == 12
    done = mmg_bench(home, "doctor", *RUN[1:], MADE)
    assert done.returncode == 0, done.stdout
    assert "  ok      data of videomme: 6 questions\n" in done.stdout
