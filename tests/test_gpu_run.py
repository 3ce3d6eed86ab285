"""scripts/gpu_run.sh: steps that fail or take too long do not lose the others, and what is done is not done again."""

from __future__ import annotations

import os
import runpy
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from mmg_bench import config as cfg
from mmg_bench.commands import measure
from mmg_bench.commands.profiles import named
from mmg_bench.methods.registry import method_names
from mmg_bench.runner import provenance

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "gpu_run.sh"
CHECK = ROOT / "scripts" / "gpu_check.py"
STAND_IN = """\
#!/usr/bin/env bash
# Stands in for python: notes what it is called with; some steps fail, some hang.
case "$1" in
    scripts/gpu_check.py) printf '%s\\n%s\\n' "$CARD" "$CODE"; exit "$AMISS" ;;
    *) printf '%q ' "$@" >>"$CALLS"; echo >>"$CALLS"
       case "$*" in *$FAILS*) exit 3 ;; *$HANGS*) sleep 60 ;; esac ;;
esac
"""
CODE = "commit 0123456789ab+01234567, torch 2.11.0+cu130, transformers 5.23.0"
COLLECTED = """\
import shlex, sys
sys.modules.update(dict.fromkeys(("datasets", "lmms_eval", "av", "accelerate", "matplotlib")))
import pytest
sys.exit(max(pytest.main([*shlex.split(line), "--collect-only"]) for line in sys.argv[1:]))
"""
"""Collects the tests of some command lines where packages cannot be imported that a machine with a GPU may lack."""


@pytest.fixture
def run(tmp_path: Path):
    python = tmp_path / "python"
    python.write_text(STAND_IN)
    python.chmod(0o755)
    clocks = tmp_path / "nvidia-smi"
    clocks.write_text("#!/bin/sh\necho 1980 MHz\n")
    clocks.chmod(0o755)

    def call(
        fails: str = "nothing",
        hangs: str = "nothing",
        limit: int | str = 600,
        card: str = "A",
        code: str = CODE,
        amiss: int = 0,
        **more: str,
    ) -> tuple[int, list[str], str]:
        """Exit status, what was called, and the output."""
        calls = tmp_path / "calls"
        calls.write_text("")
        settings = {"PYTHON": str(python), "RESULTS": str(tmp_path / "results"), "LIMIT": str(limit)}
        settings |= {
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "WHEELS": "/nowhere",
            "OUT": str(tmp_path / "out"),
            "CALLS": str(calls),
            "FAILS": fails,
            "HANGS": hangs,
            "CARD": card,
            "CODE": code,
            "AMISS": str(amiss),
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
    test, table, bench = "pytest -q", "mmg_bench table", "mmg_bench bench-methods"
    assert calls == [test, table, bench, test, *6 * [table], bench, test]
    lines = (tmp_path / "results" / "log.txt").read_text().splitlines()
    notes = [line.split("\t")[1:4] for line in lines if line.startswith("step\t")]
    before = ("graphs", "efficiency_32", "bench_rivals")
    tables = ("efficiency_64", "efficiency_0_5b", "efficiency", "stock", "flash", "compiled")
    after = (*tables, "bench_methods", "gpu_tests")
    expected = [*((name, "ok") for name in before), ("golden", "3"), *((name, "ok") for name in after)]
    assert notes == [[*note, CODE] for note in expected]
    assert [lines[0], lines[-1]] == [f"nvidia-smi {when} the steps: 1980 MHz" for when in ("before", "after")]
    assert not (tmp_path / "out").exists()  # others may use that name
    status, calls, output = run()
    assert status == 0
    assert calls == [test]  # the rest was done
    assert "bench_methods: done before" in output


def test_other_code_or_other_packages_are_run_anew(run) -> None:
    number = len(run()[1])
    for other in (CODE.replace("89ab", "89ac"), CODE.replace("2.11.0", "2.12.0"), CODE.replace("5.23.0", "5.23.1")):
        assert len(run(code=other)[1]) == number
        assert run(code=other)[1] == []
    assert run()[1] == []


def test_parts_of_the_table_of_speed_are_units_of_the_whole(run, tmp_path: Path) -> None:
    """In one folder, so that a step resumes behind what those before it measured."""
    run()
    calls = [shlex.split(line)[3:] for line in (tmp_path / "calls").read_text().splitlines()]
    folder = f"output_dir={tmp_path}/results/efficiency"
    tables = [cfg.plain(cfg.composed("table", call)) for call in calls if folder in call]
    parts = [measure.units(named(table)["gpu"]) for table in tables]
    whole = parts[-1]
    assert [[unit.name for unit in part] for part in parts[:2]] == [
        [f"llava_onevision_7b: {frames} frames, batch 1" for frames in several] for several in ((32,), (32, 64))
    ]
    assert [len(part) for part in parts] == [1, 2, 4, 6]
    assert all(unit in whole for part in parts for unit in part)
    assert all(table["measure"] == tables[0]["measure"] for table in tables)
    assert tables[0]["measure"]["repeats"] == 20


def test_its_commands_have_options_that_exist(run, tmp_path: Path) -> None:
    run()
    calls = [shlex.split(line) for line in (tmp_path / "calls").read_text().splitlines()]
    commands = [call[2:] for call in calls if call[1] == "mmg_bench"]
    assert len(commands) == 9
    for name, *options in commands:
        composed = cfg.plain(cfg.composed(name.replace("-", "_"), options))
        if name == "table":
            assert measure.units(named(composed)["gpu"])
        else:
            assert composed["methods"] == "all" or set(composed["methods"]) <= set(method_names())


def test_the_whole_is_over_in_time(run) -> None:
    status, calls, output = run(hangs="replayed_prefills", limit=6)
    assert status == 1
    assert calls == ["pytest -q"]
    assert "efficiency_32: no time left" in output


def test_results_are_of_one_device(run) -> None:
    assert run()[0] == 0
    status, calls, output = run(card="B")
    assert (status, calls) == (1, [])
    assert "holds the results of A, PROFILE=gpu, VIDEO=generated: give another RESULTS" in output
    assert run(VIDEO="random")[:2] == (1, [])


def test_settings_that_are_none(run, tmp_path: Path) -> None:
    assert "nowhere.mp4" in run(VIDEO=str(tmp_path / "nowhere.mp4"))[2]
    assert "LIMIT=abc: it must be a number of seconds" in run(limit="abc")[2]


def test_nothing_is_run_where_something_is_amiss(run) -> None:
    assert run(amiss=1)[:2] == (1, [])


def test_its_tests_are_collected_where_packages_are_missing(run, tmp_path: Path) -> None:
    run()
    calls = [shlex.split(line) for line in (tmp_path / "calls").read_text().splitlines()]
    lines = [shlex.join(call[2:]) for call in calls if call[:2] == ["-m", "pytest"]]
    assert len(lines) == 3
    done = subprocess.run(
        [sys.executable, "-c", COLLECTED, *lines],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(f"tests/{name}.py: " in done.stdout for name in ("test_golden", "models/test_engines"))


def checked(device: str, video: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines that scripts/gpu_check.py prints."""
    runpy.run_path(str(CHECK))["main"](device, video)
    return capsys.readouterr().out.splitlines()


def test_the_check_names_device_and_code(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(provenance.COMMIT, "0123456789ab")
    packages = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "transformers"))
    assert checked("cpu", "random", capsys) == ["the CPU", f"commit 0123456789ab, {packages}"]


def test_the_check_names_all_that_is_amiss(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    there = metadata.version

    def version(name: str) -> str:
        if name in ("antlr4-python3-runtime", "lmms-eval", "av", "matplotlib"):
            raise metadata.PackageNotFoundError(name)
        return {"transformers": "5.17.0", "filelock": "4.3.0"}.get(name) or there(name)

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(provenance, "_commit", lambda: "unknown")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setenv("MMG_BENCH_CACHE", str(tmp_path))
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.setitem(sys.modules, "hydra", None)
    with pytest.raises(SystemExit) as stopped:
        checked("cuda", "generated", capsys)
    expected = (
        ("transformers is 5.17.0: put a wheel of transformers", " into WHEELS"),
        ("hydra-core ", "put wheels that fit together into WHEELS"),
        ("antlr4-python3-runtime is not installed: put a wheel of antlr4-python3-runtime==4.9.* into WHEELS", ""),
        ("the commit is unknown", "set MMG_BENCH_COMMIT"),
        ("torch sees no CUDA device", "set DEVICE=cpu PROFILE=cpu"),
        ("VIDEO=generated cannot be written without av", "or set MMG_BENCH_CACHE or VIDEO=random"),
    )
    faults = str(stopped.value).splitlines()
    assert len(faults) == len(expected), faults
    for fault, (begin, end) in zip(faults, expected, strict=True):
        assert fault.startswith(begin)
        assert fault.endswith(end)


def test_the_check_decodes_the_video(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(provenance.COMMIT, "0123456789ab")
    (file := tmp_path / "v.mp4").write_text("no video")
    with pytest.raises(SystemExit, match=r"VIDEO=.*v\.mp4 cannot be used .*cannot be decoded.*: give another one"):
        checked("cpu", str(file), capsys)
    monkeypatch.setitem(sys.modules, "decord", None)
    with pytest.raises(SystemExit, match=r"^decord .* cannot be imported[^\n]*$"):
        checked("cpu", str(file), capsys)
    assert checked("cpu", "random", capsys)
