"""Processes that share a run: they do all of it, fail loudly, and never outlive what started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmg_bench.runner.workers import WorkerError, in_processes, workers_for


def note(index: int, count: int, folder: str) -> None:
    import torch

    Path(folder, f"{index}-of-{count}").write_text(str(torch.get_num_threads()))


def fail_second(index: int, count: int) -> None:
    if index == 1:
        raise ValueError("no such thing")


def sleep(index: int, count: int, folder: str) -> None:
    from tqdm import tqdm

    with tqdm(total=1):
        Path(folder, f"{os.getpid()}").touch()
        time.sleep(300)


def test_every_share_is_done_on_its_part_of_the_cores(tmp_path: Path) -> None:
    in_processes(2, note, str(tmp_path))
    threads = max(1, len(os.sched_getaffinity(0)) // 2)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"0-of-2": str(threads), "1-of-2": str(threads)}


def test_a_failing_worker_is_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(WorkerError, match="worker 1 of 2 failed"):
        in_processes(2, fail_second)
    assert "mmg-bench: no such thing" in capfd.readouterr().err


def kill_second(index: int, count: int) -> None:
    if index == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_was_killed_left_no_message() -> None:
    with pytest.raises(WorkerError, match=r"worker 1 of 2 failed \(ended by SIGKILL, perhaps out of memory: use fewer"):
        in_processes(2, kill_second)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_workers_end_with_their_parent(tmp_path: Path, how: signal.Signals) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import sys\n"
        f"sys.path[:0] = {sys.path!r}\n"
        "from mmg_bench.runner.workers import in_processes\n"
        "from runner.test_workers import sleep\n"
        f"if __name__ == '__main__':\n    in_processes(2, sleep, {str(tmp_path)!r})\n"
    )
    parent = subprocess.Popen([sys.executable, str(script)], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    pids: list[int] = []
    while len(pids) < 2 and time.monotonic() < deadline:
        pids = [int(p.name) for p in tmp_path.iterdir() if p.name.isdigit()]
        time.sleep(0.1)
    assert len(pids) == 2
    parent.send_signal(how)
    errors = parent.communicate(timeout=60)[1]  # of all processes
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(alive, pids))
    assert "leaked" not in errors


def test_how_many() -> None:
    assert workers_for("auto", "cpu") == len(os.sched_getaffinity(0))
    assert workers_for("auto", "cuda") == 1
    assert workers_for(3, "cuda") == 3
    with pytest.raises(ValueError, match="workers='all': it must be auto or a positive number"):
        workers_for("all", "cpu")
