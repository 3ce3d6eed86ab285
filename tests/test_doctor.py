"""`mmg-bench doctor`: what it says, and its exit status."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from mmg_bench import config as cfg
from mmg_bench.commands.doctor import doctor


@pytest.fixture(autouse=True)
def _bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without GPU, weights and data."""
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: namedtuple("Usage", "free")(10**13))


def test_a_table_lists_all_it_lacks(capsys: pytest.CaptureFixture[str]) -> None:
    config = cfg.composed("table", ["profile=paper"])
    assert doctor(config) == 7
    said = capsys.readouterr().out
    assert said.startswith(
        "Table table1, profile paper: llava_onevision_7b on videomme, mvbench, mlvu, longvideobench\n"
    )
    for what in (
        "GPU with 20 GB",
        "weights of llava",
        "data of videomme",
        "data of mvbench",
        "data of mlvu",
        "SigLIP's pooling head",
    ):
        assert f"  MISSING {what}" in said
    assert "  ok      decoding of H.264 video" in said
    assert said.count("      -> ") == 7
    assert "  ok      1274 GB and data of unknown size of disk below" in said
    assert "  7 of 10 missing\n" in said


def test_one_profile_that_can_run_is_enough(capsys: pytest.CaptureFixture[str]) -> None:
    config = cfg.composed("table", [])
    assert doctor(config) == 0
    said = capsys.readouterr().out
    assert "profile paper" in said
    assert said.endswith("  ok      data of embedded\n  Everything is there.\n\n")


def test_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    config = cfg.composed("run", ["model=llava_onevision_0_5b"])
    assert doctor(config) == 2
    assert "  MISSING GPU with 4 GB for llava_onevision_0_5b" in capsys.readouterr().out
    config = cfg.composed("run", ["model=llava_onevision_0_5b", "model.device=cpu"])
    assert doctor(config) == 1
    assert "GPU" not in capsys.readouterr().out


def test_changes_to_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As docs/reproducing.md says them: a folder in place of the hub."""
    changes = [f"model.llava_onevision_7b.path={tmp_path}/nowhere", f"benchmark.mlvu.data={tmp_path}"]
    config = cfg.composed("table", ["profile=paper", *changes])
    assert doctor(config) == 7
    said = capsys.readouterr().out
    assert f"{tmp_path}/nowhere: no such checkpoint folder" in said
    assert f"data of mlvu: its videos below {tmp_path}" in said  # no word of annotations
    assert "or set model.llava_onevision_7b.siglip to a folder" in said


def test_a_line_names_its_method_once(capsys: pytest.CaptureFixture[str]) -> None:
    changes = ("path=embedded", "revision=null", "siglip=null")
    config = cfg.composed("table", ["profile=paper", *(f"model.llava_onevision_7b.{change}" for change in changes)])
    assert doctor(config) > 0
    said = capsys.readouterr().out.splitlines()
    for method in ("cdpruner", "fastvid"):
        (line,) = [line for line in said if f"what {method} reads" in line]
        assert line.startswith(f"  MISSING what {method} reads: models of type 'llava_onevision' do not supply ")
        assert line.count(method) == 1


def test_a_method_that_wants_a_checkpoint_which_the_model_has_not(capsys: pytest.CaptureFixture[str]) -> None:
    config = cfg.composed("run", ["model=embedded", "method=fastvid"])
    assert doctor(config) == 1
    said = capsys.readouterr().out
    assert (
        "probe_attention (they supply attention, keys)\n      -> use its stand-in, fastvid with frame_source=" in said
    )
    assert "google" not in said  # which this tower was not made of
    config = cfg.composed(
        "run", ["model=embedded", "method=fastvid", "method.frame_source=mean", "method.salience=received"]
    )
    assert doctor(config) == 0
    config = cfg.composed("run", ["model=smolvlm2_2_2b", "model.device=cpu", "method=fastvid"])
    doctor(config)
    said = capsys.readouterr().out
    assert (
        "(they supply attention, keys)\n      -> use its stand-in, fastvid with frame_source=mean and salience=" in said
    )
    assert ", or choose another method or model\n" in said


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("model.path=x", r"model.path: no such model option in table 'table1'; it has: model.llava_onevision_7b"),
        ("model=embedded", r"model=embedded: the table's file chooses its models; change one with model.<name>.<"),
        ("benchmark.nextqa_mc.data=x", r"benchmark.nextqa_mc: .* benchmark.videomme.<option>, benchmark.mvbench.<"),
        ("model.embedded.foo=1", r"model has no option foo; it has: name, path"),
    ],
)
def test_changes_that_nothing_would_see(change: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        doctor(cfg.composed("table", [change]))


def test_the_exit_status(tmp_path: Path) -> None:
    env = {**os.environ, "HF_HOME": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "mmg_bench", "doctor", "benchmark=videomme"]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith("This run: embedded on videomme\n")
    assert done.stderr == ""


def test_an_unknown_profile() -> None:
    config = cfg.composed("table", ["profile=papers"])
    with pytest.raises(ValueError, match=r"has no profile 'papers'; choose auto or paper, embedded"):
        doctor(config)
