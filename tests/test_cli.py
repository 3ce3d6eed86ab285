"""The command line as a user meets it: real processes, the real embedded model."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmg_bench.report.rows import read_rows

COMMAND = [sys.executable, "-m", "mmg_bench"]


def mmg_bench(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **environment}
    return subprocess.run([*COMMAND, *args], capture_output=True, text=True, env=env, check=False)


def test_help_is_quick() -> None:
    mmg_bench("--help")
    started = time.perf_counter()
    done = mmg_bench("--help")
    assert time.perf_counter() - started < 1.5
    assert done.returncode == 0
    assert "mmg-bench run" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "--help"),
        ("table", "tabel=table1"),
        ("run", "-m", "method=random,mmgvid"),
        ("compare", "dense", "random", "output_dir=/nowhere"),
    ],
)
def test_what_needs_no_model_does_not_wait_for_torch(arguments: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "mmg_bench", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == (0 if "--help" in arguments else 2)
    assert "mmg_bench.config" in done.stderr
    assert [module for module in ("torch", "transformers", "lmms_eval") if f" {module}\n" in done.stderr] == []


def test_methods_are_listed() -> None:
    done = mmg_bench("methods")
    assert done.returncode == 0
    assert "mmg_vid" in done.stdout
    assert "tau=0.95" in done.stdout


def test_a_method_is_held_to_the_contract() -> None:
    done = mmg_bench("check-method", "prumerge", "plus=true")
    assert done.returncode == 0
    assert "prumerge passes all" in done.stdout
    wrong = mmg_bench("check-method", "prumerge", "plus=7")
    assert wrong.returncode == 2
    assert "PruMerge.plus=7" in wrong.stderr


def test_whoever_has_read_enough_may_close_the_pipe() -> None:
    process = subprocess.Popen([*COMMAND, "methods"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    errors = process.stderr.read()
    assert process.wait() == 141
    assert errors == ""


def test_a_table_that_nobody_reads_is_no_failed_answer() -> None:
    script = (
        "from mmg_bench import cli\nfrom mmg_bench.report.table import Table, print_tables\n"
        "cli._methods = lambda _: print_tables([Table('t', (), ('c',), (), ())])\ncli.main()"
    )
    command = [sys.executable, "-c", script, "methods"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait() == 141


def test_a_terminal_may_lack_letters() -> None:
    script = "from mmg_bench import cli; cli._methods = lambda _: print('4 \u2212 1'); cli.main()"
    env = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    done = subprocess.run([sys.executable, "-c", script, "methods"], capture_output=True, env=env, check=False)
    assert (done.returncode, done.stdout) == (0, b"4 \\N{MINUS SIGN} 1\n")


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_standard_streams_may_be_closed(closed: str, tmp_path: Path) -> None:
    new = f"{shlex.join(COMMAND)} methods random {closed}"
    assert subprocess.run(["sh", "-c", new], capture_output=True, check=False).returncode == 0
    probe = "from mmg_bench import cli; cli._methods = lambda _: int(open('new', 'w').fileno() < 3); cli.main()"
    which = f"{shlex.quote(sys.executable)} -c {shlex.quote(probe)} methods {closed}"
    assert subprocess.run(["sh", "-c", which], cwd=tmp_path, capture_output=True, check=False).returncode == 0


def test_a_method_is_explained() -> None:
    done = mmg_bench("methods", "fastvid")
    assert done.returncode == 0
    assert "Source: arXiv 2503.11187" in done.stdout
    assert "variant=onevision" in done.stdout
    assert "mmg_vid" not in done.stdout


def test_methods_are_timed(tmp_path: Path) -> None:
    size = ["frames=2", "tokens=4", "width=8", "repeats=3", "warmup=0", "device=cpu"]
    done = mmg_bench("bench-methods", *size, "methods=mmg_vid", f"out={tmp_path}")
    assert done.returncode == 0, done.stderr
    table = (tmp_path / "table.md").read_text()
    assert "| mmg_vid |" in table
    assert "reproduce with `mmg-bench bench-methods frames=2" in table


def test_a_sweep_shares_one_pass(tmp_path: Path) -> None:
    sweep = ["run", "-m", "method=mmg_vid,random", "retention_ratio=0.1,0.25", "limit=6", f"output_dir={tmp_path}"]
    done = mmg_bench(*sweep)
    assert done.returncode == 0, done.stderr
    assert "embedded: 6 questions, 5 cells" in done.stdout
    assert 1 < done.stderr.count("answer") < 15  # states of the bar: in a log, none for each of 30 answers
    rows = read_rows(tmp_path / "rows.csv")
    cells = {(r.method, r.retention_ratio) for r in rows.itertuples()}
    assert cells == {("dense", 1.0), *((m, r) for m in ("mmg_vid", "random") for r in (0.1, 0.25))}
    assert (tmp_path / "table.md").read_text().count("| mmg_vid |") == 2
    assert (tmp_path / "provenance.json").exists()
    sources = json.loads((tmp_path / "provenance.json").read_text())
    # the same questions again, one method more: only its own answers are new
    before = (tmp_path / "records.jsonl").read_text()
    more = ["run", "method=uniform", "limit=6", f"output_dir={tmp_path}"]
    assert mmg_bench(*more).returncode == 0
    now = json.loads((tmp_path / "provenance.json").read_text())
    after = (tmp_path / "records.jsonl").read_text()
    assert after.startswith(before)
    assert len(after.splitlines()) == len(before.splitlines()) + 6
    rows = read_rows(tmp_path / "rows.csv")
    commands = {method: {now[key]["command"] for key in part.provenance} for method, part in rows.groupby("method")}
    assert commands == {"dense": {f"mmg-bench {shlex.join(sweep)}"}, "uniform": {f"mmg-bench {shlex.join(more)}"}}
    assert sources.items() <= now.items()  # earlier records are still there, and so is where they come from


def test_two_processes_share_a_folder(tmp_path: Path) -> None:
    common = ["limit=4", f"output_dir={tmp_path}"]
    both = [
        subprocess.Popen([*COMMAND, "run", f"method={method}", *common], stderr=subprocess.PIPE, text=True)
        for method in ("random", "uniform")
    ]
    errors = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    records = (tmp_path / "records.jsonl").read_text()
    assert 12 <= len(records.splitlines()) <= 16  # dense is each one's own where they are at a question together
    done = mmg_bench("run", "-m", "method=random,uniform", *common)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "records.jsonl").read_text() == records  # all is known, and every line can be read
    rows = read_rows(tmp_path / "rows.csv")
    assert {method: max(part.n) for method, part in rows.groupby("method")} == {"dense": 4, "random": 4, "uniform": 4}


def test_the_second_of_two_equal_runs_is_refused(tmp_path: Path) -> None:
    args = ["run", "method=random", "limit=12", "workers=2", f"output_dir={tmp_path}"]
    first = subprocess.Popen([*COMMAND, *args], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and [path.suffix for path in tmp_path.glob(".claim*")] != [".json"]:
        time.sleep(0.02)
    first.send_signal(signal.SIGSTOP)  # else it might be done before the second has come so far
    second = mmg_bench("run", "-m", "method=uniform,random", *args[2:])
    first.send_signal(signal.SIGCONT)
    assert second.returncode == 2, second.stderr
    assert f"mmg-bench: {tmp_path}: process {first.pid} on " in second.stderr
    assert " has been working there on random at R = 25 % since " in second.stderr
    _, errors = first.communicate()
    assert first.returncode == 0, errors
    records = [line for path in tmp_path.glob("records*.jsonl") for line in path.read_text().splitlines()]
    assert len(records) == 24  # of two cells, each once


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_run_resumes(tmp_path: Path, how: signal.Signals) -> None:
    args = ["run", "method=mmg_vid", "limit=24", f"output_dir={tmp_path}"]
    records = tmp_path / "records.jsonl"
    process = subprocess.Popen([*COMMAND, *args], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and not (records.exists() and len(records.read_text().splitlines()) >= 5):
        time.sleep(0.02)
    process.send_signal(how)
    _, errors = process.communicate()
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert "run the same command again to resume" in errors
        assert "Traceback" not in errors
    left = [line for line in records.read_text().splitlines(keepends=True) if line.endswith("\n")]
    assert 5 <= len(left) < 48
    assert mmg_bench(*args).returncode == 0
    whole = records.read_text().splitlines(keepends=True)
    assert whole[: len(left)] == left
    assert len(whole) == 48


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["run", "model.path=/nowhere"], "/nowhere: no such checkpoint folder"),
        (["tables"], "no command 'tables'; choose one of run, table"),
    ],
)
def test_mistakes_end_in_one_line(args: list[str], says: str, tmp_path: Path) -> None:
    done = mmg_bench(*args, *([f"output_dir={tmp_path}"] if args[0] in ("run", "table") else []))
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_damaged_provenance_is_named(tmp_path: Path) -> None:
    (tmp_path / "provenance.json").write_text("{")
    done = mmg_bench("run", "method=random", "limit=1", f"output_dir={tmp_path}")
    assert done.returncode == 2
    assert f"{tmp_path}/provenance.json is damaged" in done.stderr


def test_failed_answers_show_in_the_exit_status(tmp_path: Path) -> None:
    """A damaged video costs its own questions, and is not scored as wrong."""
    cache = tmp_path / "cache"
    args = ["run", "method=random", "limit=12", f"output_dir={tmp_path / 'out'}"]
    args += ["latency=true", "measure.repeats=2", "measure.warmup=0"]
    assert (
        mmg_bench("run", "method=random", "limit=1", f"output_dir={tmp_path}", MMG_BENCH_CACHE=str(cache)).returncode
        == 0
    )
    (folder,) = cache.glob("embedded-*")
    (folder / "test-0000.mp4").write_bytes(b"damaged")
    done = mmg_bench(*args, MMG_BENCH_CACHE=str(cache))
    assert done.returncode == 1, done.stderr
    assert "12 answers failed (they are not scored as wrong)" in done.stdout
    (told,) = [line for line in done.stdout.splitlines() if line.startswith("failed: ")]
    assert " and 5 more of embedded, dense at R = 100 % and 1 more: VideoError: " in told
    rows = read_rows(tmp_path / "out" / "rows.csv")
    overall = rows[(rows.metric == "accuracy") & (rows.skill == "all")]
    assert set(overall.n_errors) == {6}
    assert set(overall.n) == {6}
    assert rows[rows.metric == "prefill_speedup"].value.gt(0).sum() == 2  # timed on a question that has answers
    (folder / "test-0000.mp4").unlink()  # rendered anew
    # two workers try again what one failed to answer
    assert mmg_bench(*args, "workers=2", MMG_BENCH_CACHE=str(cache)).returncode == 0
    rows = read_rows(tmp_path / "out" / "rows.csv")
    assert set(rows[rows.metric == "accuracy"].n_errors) == {0}
