"""The commands as on a machine with a GPU: they go through to the end there, and answers are a CPU's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import command_line
from mmg_bench.measure import roofline
from mmg_bench.report.rows import read_rows
from mock_cuda import mock_cuda

TABLE1 = (
    "mmg-bench table table=table1 profile=embedded limit=1 latency=false table.retention_ratios=[0.25] "
    "model.embedded.frames=8"
)


def answered(folder: Path) -> dict[tuple[str, float, str, str], float]:
    """The values of a table of accuracy, by method, ratio, skill and metric."""
    rows = read_rows(folder / "embedded" / "rows.csv")
    keys = zip(rows.method, rows.retention_ratio, rows.skill, rows.metric, strict=True)
    return dict(zip(keys, rows.value, strict=True))


def test_table_1_is_that_of_a_cpu(tmp_path, monkeypatch):
    for name in ("cpu", "cuda"):
        folders = f"output_dir={tmp_path}/{name} results_dir={tmp_path}/{name}"
        with mock_cuda() as gpu:
            assert command_line.given(f"{TABLE1} model.embedded.device={name} {folders}", monkeypatch) == 0
        assert (gpu.kernels > 10_000) == (name == "cuda")
    there = answered(tmp_path / "cuda")
    assert len(there) > 100
    assert there == pytest.approx(answered(tmp_path / "cpu"), nan_ok=True)
    (told,) = json.loads((tmp_path / "cuda" / "embedded" / "provenance.json").read_text()).values()
    assert told["device"] == "mock"


@pytest.mark.parametrize(
    "command",
    [
        "measure model=embedded method=fastv measure.repeats=2 measure.warmup=1 output_dir={}",
        "bench-methods device=cuda dtype=bfloat16 frames=[4] tokens=16 width=32 repeats=3 out={}",
    ],
)
def test_times_are_taken(command, tmp_path, monkeypatch):
    monkeypatch.setitem(roofline._SIDE, "cuda", 256)  # of a GPU's, a CPU would have for minutes
    monkeypatch.setitem(roofline._COPY_BYTES, "cuda", 2**20)
    with mock_cuda() as gpu:
        assert command_line.given("mmg-bench " + command.format(tmp_path), monkeypatch) == 0
    assert gpu.kernels > 1000
    told = json.loads((tmp_path / "provenance.json").read_text())
    assert {entry["device"] for entry in told.values()} == {"mock"}
    rows = read_rows(tmp_path / "rows.csv")
    times = rows.value[rows.metric.str.endswith("_ms")].dropna()
    assert len(times) > 5
    assert (times >= 0).all()
