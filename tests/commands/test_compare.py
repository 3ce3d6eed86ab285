"""`mmg-bench compare`, on records made up in the test."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

from mmg_bench import cli
from mmg_bench.runner import provenance
from mmg_bench.runner.records import Record, RecordFile

LONG = "mmg_vid(positions=contiguous)"


def records(method: str, ratio: float, right: str) -> list[Record]:
    shared = ("m", "bench", 8, method, ratio, f"{method}-{ratio}")
    tokens = (None, 4, 16, 9, [], "key")
    return [
        Record(*shared, f"q{i}", "", f"v{i}", "skill", "red", "red", float(score), *tokens)
        for i, score in enumerate(right)
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What `mmg-bench table output_dir=...` leaves: records by profile and benchmark."""
    found = tmp_path / "profile" / "bench"
    with RecordFile(found / "records.jsonl") as file:
        file.add([*records("dense", 1.0, "1111"), *records(LONG, 0.25, "1110"), *records(LONG, 0.1, "1000")])
    provenance.write(found, {"key": {"command": "mmg-bench table t"}})
    return tmp_path


def called(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> object:
    GlobalHydra.instance().clear()
    monkeypatch.setattr(sys, "argv", ["mmg-bench", "compare", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code


@pytest.mark.parametrize("inner", ["", "profile", "profile/bench"])
def test_a_folder_of_records(
    folder: Path, inner: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert called(monkeypatch, LONG, "dense", "retention_ratio=0.1", f"output_dir={folder / inner}") == 0
    shown = capsys.readouterr().out
    assert f"A: {LONG} at R = 10 %; B: dense at R = 100 %; m, 8 frames" in shown
    assert "-75.0 [-100.0, -25.0]" in shown
    assert "reproduce with `mmg-bench table t`" in shown


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["mmgvid", "dense"], f"no mmgvid at retention_ratio=0.25 in FOLDER; there are: dense (1); {LONG} (0.25, 0.1)"),
        ([LONG, "dense", "retention_ratio=0.5"], f"no {LONG} at retention_ratio=0.5 in FOLDER; there are: dense (1)"),
        ([LONG], f"compare {LONG}: name two methods, such as: mmg-bench compare mmg_vid dpc_knn"),
        (["dense", "dense"], "compare dense dense: name two methods"),
        ([LONG, "dense", "ratio=0.1"], "ratio: no such option; compare has: retention_ratio, output_dir"),
        ([LONG, "dense", "retention_ratio=a"], "retention_ratio='a': it must be a number"),
        (
            [LONG, "dense", "output_dir=FOLDER/none"],
            "output_dir='FOLDER/none': no records there; give the output_dir of",
        ),
        ([LONG, "dense", "-m"], "-m: no such flag here; there are --cfg and --help"),
    ],
)
def test_mistakes(
    arguments: list[str],
    says: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [f"output_dir={folder}", *(argument.replace("FOLDER", str(folder)) for argument in arguments)]
    assert called(monkeypatch, *given) == 2
    assert capsys.readouterr().err.startswith(f"mmg-bench: {says.replace('FOLDER', str(folder))}")


def test_what_only_tells(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert called(monkeypatch, "--help") == 0
    assert "A and B are labels as in the table" in capsys.readouterr().out
