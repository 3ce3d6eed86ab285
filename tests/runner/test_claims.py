"""Claims: two commands that would do the same in one folder, and those that would not."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest

from mmg_bench.files import locked
from mmg_bench.runner.claims import Claim, ClaimedError, claimed
from mmg_bench.runner.evaluate import Shard
from mmg_bench.runner.lines import LineFile, read_lines
from mmg_bench.runner.provenance import register


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob(".claim*"))


def test_the_second_of_two_equal_ones_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["mmg-bench", "run", "method=tome"])
    claim = Claim(tmp_path / "new", {"a": "tome at R = 25 %", "b": "tome at R = 10 %"})
    with claimed([claim]):
        with pytest.raises(ClaimedError) as refused, claimed([claim]):
            pytest.fail("both are at work")
        told = str(refused.value)
        who = f"{tmp_path}/new: process {os.getpid()} on {socket.gethostname()} has been working there on "
        assert told.startswith(f"{who}tome at R = 25 % and 1 more since 20")
        assert "+00:00 (`mmg-bench run method=tome`): wait until it ends and run this command again" in told
        assert told.endswith("or set another output_dir")
        assert len(files(tmp_path / "new")) == 1
    with claimed([claim]):
        pass
    assert files(tmp_path / "new") == []


@pytest.mark.parametrize(
    ("work", "shard", "refused"),
    [
        ({"b": "b"}, Shard(), False),
        ({"a": "a", "b": "b"}, Shard(), True),
        ({"a": "a"}, Shard(1, 4), True),
        ({"a": "a"}, Shard(0, 4), False),
        ({"a": "a"}, Shard(0, 2), False),
        ({"a": "a"}, Shard(0, 3), True),  # some videos are of both
    ],
)
def test_what_is_the_same(tmp_path: Path, work: dict[str, str], shard: Shard, refused: bool) -> None:
    with claimed([Claim(tmp_path, {"a": "a"}, Shard(1, 2))]):
        if refused:
            with (
                pytest.raises(ClaimedError, match="has been working there on a since"),
                claimed([Claim(tmp_path, work, shard)]),
            ):
                pass
        else:
            with claimed([Claim(tmp_path, work, shard)]):
                assert len(files(tmp_path)) == 2


def test_a_command_does_not_refuse_itself(tmp_path: Path) -> None:
    with claimed(2 * [Claim(tmp_path, {"a": "a"})]), claimed([Claim(tmp_path / "else" / "where", {"a": "a"})]):
        pass


def test_one_that_is_refused_holds_nothing(tmp_path: Path) -> None:
    first, second = Claim(tmp_path, {"a": "a"}), Claim(tmp_path, {"b": "b"})
    with claimed([first]):
        with pytest.raises(ClaimedError), claimed([second, first]):
            pass
        with claimed([second]):
            pass


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    script = (
        f"import sys, time; sys.path[:0] = {sys.path!r}\n"
        "from pathlib import Path\n"
        "from mmg_bench.runner.claims import Claim, claimed\n"
        f"with claimed([Claim(Path({str(tmp_path)!r}), {{'a': 'a'}})]):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(300)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with pytest.raises(ClaimedError, match=f": process {process.pid} on "), claimed([Claim(tmp_path, {"a": "a"})]):
        pass
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert len(files(tmp_path)) == 1
    started = time.monotonic()
    with claimed([Claim(tmp_path, {"a": "a"})]):
        assert len(files(tmp_path)) == 1
    assert time.monotonic() - started < 10
    assert files(tmp_path) == []


def test_a_claim_that_ends_while_others_are_looked_for_hides_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, claim = Path.glob, Claim(tmp_path, {"a": "a"})
    monkeypatch.setattr(Path, "glob", lambda *args: [tmp_path / ".claim-gone.json", *found(*args)])
    with claimed([claim]), pytest.raises(ClaimedError), claimed([claim]):
        pass


@pytest.mark.parametrize("anew", [False, True])
def test_a_guard_that_was_taken_away_before_its_lock_was_had_is_not_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, anew: bool
) -> None:
    """By whoever had the lock before; the next command may have made it anew, and hold that."""
    guards: list[Path] = []

    @contextmanager
    def late(file: IO[Any]) -> Iterator[bool]:
        if (path := Path(file.name)).suffix == ".lock":
            guards.append(path)
            if len(guards) == 1:
                path.unlink()
                if anew:
                    path.touch()
        with locked(file) as alone:
            yield alone

    monkeypatch.setattr("mmg_bench.runner.claims.locked", late)
    with claimed([Claim(tmp_path, {"a": "a"})]):
        assert len(guards) == 2
    assert not any(path.exists() for path in guards)


def test_of_many_at_once_one_goes_on(tmp_path: Path) -> None:
    claim, start, over = Claim(tmp_path, {"a": "a"}), threading.Barrier(8), threading.Barrier(8)
    refused: list[bool] = []

    def work(_: int) -> None:
        for _ in range(20):
            start.wait()
            try:
                with claimed([claim]):
                    over.wait()
                    refused.append(False)
            except ClaimedError:
                refused.append(True)
                over.wait()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert sorted(refused) == [False] * 20 + [True] * 140
    assert files(tmp_path) == []


def test_without_locks_a_line_says_so_and_work_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def lacking(file: IO[Any], *_: Any) -> None:
        if (path := Path(file.name)).suffix == ".lock":
            path.unlink()  # as another command does, which is not kept out
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", lacking)
    claims = [Claim(tmp_path / folder, {"a": "a"}) for folder in ("one", "two")]
    with claimed(claims):
        (line,) = capsys.readouterr().out.splitlines()
        assert line.startswith(
            f"{tmp_path}/one: its file system has no locks, so commands cannot see that others do the same work there:"
        )
        with claimed(claims):
            pass
    register(tmp_path, {"model": "m"})
    with LineFile(tmp_path / "lines.jsonl") as file:
        file.append([{"a": 1}])
    assert list(read_lines(tmp_path / "lines.jsonl", frozenset("a"))) == [(1, {"a": 1})]
