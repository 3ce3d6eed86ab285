"""scripts/gpu_run.sh: steps that fail or take too long do not lose the others, and what is done is not done again."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "gpu_run.sh"
STAND_IN = """\
#!/usr/bin/env bash
# Stands in for python: notes what it is called with; some steps fail, some hang.
case "$1" in
    -) cat >/dev/null; echo "$CARD" ;;
    -c) exit "$NO_VIDEO" ;;
    *) echo "$*" >>"$CALLS"; case "$*" in *$FAILS*) exit 3 ;; *$HANGS*) sleep 60 ;; esac ;;
esac
"""


@pytest.fixture
def run(tmp_path: Path):
    python = tmp_path / "python"
    python.write_text(STAND_IN)
    python.chmod(0o755)

    def call(
        fails: str = "nothing",
        hangs: str = "nothing",
        limit: int | str = 600,
        card: str = "A",
        no_video: int = 0,
        **more: str,
    ) -> tuple[int, list[str], str]:
        """Exit status, what was called, and the output."""
        calls = tmp_path / "calls"
        calls.write_text("")
        settings = {"PYTHON": str(python), "OUT": str(tmp_path / "out"), "LIMIT": str(limit), "WHEELS": "/nowhere"}
        settings |= {
            "CALLS": str(calls),
            "FAILS": fails,
            "HANGS": hangs,
            "CARD": card,
            "NO_VIDEO": str(no_video),
        } | more
        done = subprocess.run(
            [str(SCRIPT)], env={**os.environ, **settings}, capture_output=True, text=True, check=False
        )
        return (
            done.returncode,
            [line.split()[1] + " " + line.split()[2] for line in calls.read_text().splitlines()],
            (done.stdout + done.stderr),
        )

    return call


def test_a_failing_step_does_not_lose_the_others(run, tmp_path: Path) -> None:
    status, calls, output = run(fails="test_golden")
    assert status == 1
    table = "mmg_bench table"
    assert calls == ["pytest -q", table, "mmg_bench bench-methods", "pytest -q", *3 * [table]]
    notes = [line.split("\t")[1:3] for line in (tmp_path / "out" / "log.txt").read_text().splitlines()]
    names = ["efficiency", "bench_methods", "gpu_tests", "stock", "flash", "compiled"]
    assert notes == [["golden", "3"], *([name, "ok"] for name in names)]
    status, calls, output = run()
    assert status == 0
    assert calls == ["pytest -q"]  # the rest was done
    assert "bench_methods: done before" in output


def test_the_whole_is_over_in_time(run) -> None:
    status, calls, output = run(hangs="test_golden", limit=6)
    assert status == 1
    assert calls == ["pytest -q"]
    assert "efficiency: no time left" in output


def test_results_are_of_one_device(run) -> None:
    assert run()[0] == 0
    status, calls, output = run(card="B")
    assert (status, calls) == (1, [])
    assert "holds the results of A, PROFILE=gpu, VIDEO=generated: give another OUT" in output
    assert run(VIDEO="random")[:2] == (1, [])


def test_settings_that_are_none(run, tmp_path: Path) -> None:
    assert "nowhere.mp4" in run(VIDEO=str(tmp_path / "nowhere.mp4"))[2]
    assert "LIMIT=abc: it must be a number of seconds" in run(limit="abc")[2]


def test_a_video_that_cannot_be_made_is_no_other_one(run) -> None:
    status, calls, output = run(no_video=1)
    assert (status, calls) == (1, [])
    assert "the video cannot be made: see VIDEO" in output
