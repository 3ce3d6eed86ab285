"""`mmg-bench compare`, on records made up in the test."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import pytest

import command_line
import record_files
from mmg_bench.commands.answered import read_answered
from mmg_bench.report.table import table_by_ratio
from mmg_bench.runner import provenance
from mmg_bench.runner.records import Record

LONG = "mmg_vid(positions=contiguous)"


def records(method: str, ratio: float, right: str, frames: int = 8) -> list[Record]:
    shared = ("m", "bench", frames, method, ratio, f"{method}-{ratio}-{frames}")
    tokens = (None, 4, 16, 9, [], "key")
    return [
        Record(*shared, f"q{i}", "", f"v{i}", "skill", "red", "red", float(score), *tokens)
        for i, score in enumerate(right)
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What `mmg-bench table output_dir=...` leaves: records by profile and benchmark."""
    found = tmp_path / "profile" / "bench"
    record_files.append(
        found / "records.jsonl",
        [*records("dense", 1.0, "1111"), *records(LONG, 0.25, "1110"), *records(LONG, 0.1, "1000")],
    )
    provenance.write(found, {"key": {"command": "mmg-bench table t"}})
    return tmp_path


def called(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> object:
    return command_line.given(shlex.join(["mmg-bench", "compare", *arguments]), monkeypatch)


@pytest.mark.parametrize("inner", ["", "profile", "profile/bench"])
def test_a_folder_of_records(
    folder: Path, inner: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert called(monkeypatch, LONG, "dense", "retention_ratio=0.1", f"output_dir={folder / inner}") == 0
    shown = capsys.readouterr().out
    assert f"A: {LONG} at R = 10 %; B: dense at R = 100 %; m, 8 frames" in shown
    assert "-75.0 [-100.0, -25.0]" in shown
    assert "reproduce with `mmg-bench table t`" in shown


def test_the_questions_that_a_third_lost(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ['lost_by="mmg_vid(positions = contiguous)"', "retention_ratio=0.1", f"output_dir={folder}"]
    assert called(monkeypatch, LONG, "dense", *options) == 0
    shown = capsys.readouterr().out
    assert f"Lost by: questions that dense answered better than {LONG} at R = 10 %" in shown
    assert "-100.0 [-100.0, -100.0]" in shown


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["mmgvid", "dense"],
            f"no mmgvid in FOLDER; did you mean {LONG}? there are: dense (1); {LONG} (0.25, 0.1)\n",
        ),
        (["dnse", "dense"], f"no dnse in FOLDER; did you mean dense? there are: dense (1); {LONG} (0.25, 0.1)\n"),
        (["tome", "dense"], f"no tome in FOLDER; there are: dense (1); {LONG} (0.25, 0.1)\n"),
        (
            [LONG, "dense", "a.retention_ratio=0.5"],
            f"no {LONG} at a.retention_ratio=0.5 in FOLDER; there are: dense (1)",
        ),
        (
            ["dense", LONG, "b.frames=9"],
            f"b.frames=9: in FOLDER, {LONG} at R = 25 % has answers with 8 frames only",
        ),
        (["dense", LONG, "frames=9"], "frames=9: in FOLDER, dense at R = 100 % has answers with 8 frames only"),
        (
            ["dense", LONG, "b.frames=0"],
            "b.frames=0: it must be a whole number, at least 1, or null for every number of frames",
        ),
        (["dense", LONG, "b.retention_ratio=x"], "b.retention_ratio='x': it must be a number"),
        (["dense", LONG, "a.retention_ratio=0.1"], "a.retention_ratio=0.1: dense only has ratio 1; leave the option"),
        (["dense", LONG, "b=8"], "b=8: give b.retention_ratio or b.frames"),
        (["dense", LONG, "b.frame=8"], "b.frame: no such option; did you mean frames? b has: retention_ratio, frames"),
        ([LONG, "dense", "retention_ratio=0.5"], f"no {LONG} at retention_ratio=0.5 in FOLDER; there are: dense (1)"),
        (["mmgvid(tau=0.95)", "dense"], f"no mmgvid(tau=0.95) in FOLDER; did you mean {LONG}? there are: "),
        (["mmg_vid(tau=0.95)", "dense"], f"no mmg_vid(tau=0.95) in FOLDER; did you mean {LONG}? there are: "),
        *(
            ([label, "dense"], f"{label!r} is not a label: write the method's name, then in parentheses the parameters")
            for label in (
                "mmg_vid(tau=",
                "mmg_vid(tau)",
                "mmg_vid(tau=)",
                "mmg_vid(",
                "mmg_vid)",
                "dense tau=1",
                "",
                "(control)",
            )
        ),
        (
            ["random", "(control)", "dense"],
            "compare random (control) dense: name two methods, such as: mmg-bench compare mmg_vid dpc_knn; or one "
            "method twice with options that differ, such as: a.retention_ratio=0.1 b.retention_ratio=0.25; put a "
            "label with spaces in quotes\n",
        ),
        ([LONG, "dense", "lost_by=mmgvid"], f"no mmgvid in FOLDER; did you mean {LONG}? there are: dense (1); "),
        ([LONG, "dense", "lost_by=3"], "lost_by=3: give a label, such as fewer_frames, or null"),
        ([LONG, "dense", "lost_by=dense"], "lost_by=dense: dense loses nothing against itself; give another method"),
        ([LONG], f"compare {LONG}: name two methods, such as: mmg-bench compare mmg_vid dpc_knn"),
        (["dense", "dense"], "compare dense dense: name two methods"),
        ([LONG, "dense", "ratio=0.1"], "ratio: no such option; compare has: retention_ratio, frames, a, b, output_dir"),
        ([LONG, "dense", "retention_ratio=a"], "retention_ratio='a': it must be a number"),
        (
            [LONG, "dense", "output_dir=FOLDER/none"],
            "output_dir='FOLDER/none': no records there; give the output_dir of",
        ),
        ([LONG, "dense", "-m"], "-m: only run -m, measure -m and show -m accept several values"),
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


@pytest.mark.parametrize(
    ("arguments", "title"),
    [
        ([LONG, LONG, "a.retention_ratio=0.1"], f"A: {LONG} at R = 10 %; B: {LONG} at R = 25 %; m, 8 frames"),
        ([LONG, LONG, "b.retention_ratio=0.1"], f"A: {LONG} at R = 25 %; B: {LONG} at R = 10 %; m, 8 frames"),
        (
            [LONG, "dense", "a.retention_ratio=0.1", "retention_ratio=0.5", "a.frames=8", "b.frames=4"],
            f"A: {LONG} at R = 10 %, 8 frames; B: dense at R = 100 %, 4 frames; m",
        ),
        (
            [LONG, "dense", "b.frames=4"],  # A answered with 8 alone
            f"A: {LONG} at R = 25 %, 8 frames; B: dense at R = 100 %, 4 frames; m",
        ),
        (
            ["dense", "dense", "frames=8", "b.frames=4"],
            "A: dense at R = 100 %, 8 frames; B: dense at R = 100 %, 4 frames",
        ),
        (["dense", LONG, "frames=8"], f"A: dense at R = 100 %; B: {LONG} at R = 25 %; m, 8 frames"),
    ],
)
def test_each_side_may_have_its_own_ratio_and_frames(
    arguments: list[str],
    title: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    record_files.append(folder / "profile" / "bench" / "records.jsonl", records("dense", 1.0, "1010", frames=4))
    assert called(monkeypatch, *arguments, f"output_dir={folder}") == 0
    assert title in " ".join(capsys.readouterr().out.split())
    assert called(monkeypatch, LONG, "dense", "a.frames=8", f"output_dir={folder}") == 2
    said = "mmg-bench: b.frames=null: dense at R = 100 % has answers of m with 4 and 8 frames; choose one\n"
    assert capsys.readouterr().err == said
    assert called(monkeypatch, "dense", "dense", "frames=8", f"output_dir={folder}") == 2
    assert capsys.readouterr().err.startswith("mmg-bench: compare dense dense: name two methods")


@pytest.mark.parametrize(
    ("known", "given"),
    [
        ("random", ["random (control)", "random(control)", " random "]),
        (
            "random(positions=contiguous)",
            ["random(positions=contiguous) (control)", "random( positions = contiguous )"],
        ),
        (
            "mmg_vid(tau=0.9, beta=2)",
            ["mmg_vid(beta=2, tau=0.9)", "mmg_vid(tau=0.9,beta=2)", "mmg_vid (beta=2,tau=0.9)"],
        ),
        ("m(a=[1, 2], b=[3, 4])", ["m(b=[3,4], a=[1,2])"]),
        ("mmg_vid", ["mmg_vid(tau=0.95)", "mmg_vid(knn=7.0, positions=original, channels=all)", "mmg_vid()"]),
        ("mmg_vid(tau=0.9)", ["mmg_vid(k=0.50, tau=0.9)"]),
        ("holitom(inner=False)", ["holitom(inner=false, tau=0.8)", "holitom(inner=FALSE)"]),
        ("mmg_vid(tau=1)", ["mmg_vid(tau=1.00)", "mmg_vid(tau=1e0, k=0.5)"]),
        ("gone(tau=1.0)", ["gone(tau=1)"]),  # nobody registers it
        ("chain(before=mmg_vid(tau=0.9), inside=fastv)", ["chain(before=mmg_vid(tau=0.90), inside=fastv)"]),
        ("mmg_vid(tau=0.95, k=1)", ["mmg_vid(k=1,tau=0.95)"]),  # its default was another when that ran
    ],
)
def test_a_label_as_a_table_prints_it(
    known: str,
    given: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    record_files.append(
        tmp_path / "records.jsonl",
        [*records("m(a=[1, 4], b=[3, 2])", 0.25, "00"), *records("dense", 1.0, "11"), *records(known, 0.25, "10")],
    )
    provenance.write(tmp_path, {"key": {}})
    (_, block) = table_by_ratio("", (), [("dense", 1.0), (known, 0.25)], [], ()).blocks
    printed = block.lines[0][0].text
    for label in (known, printed, *given):
        assert called(monkeypatch, label, "dense", f"output_dir={tmp_path}") == 0
        assert f"A: {known} at R = 25 %" in capsys.readouterr().out


def test_of_a_method_with_several_labels_the_nearest_is_meant(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record_files.append(
        folder / "profile" / "bench" / "records.jsonl",
        [*records("mmg_vid", 0.25, "1111"), *records("mmg_vid(tau=0.9)", 0.25, "1111")],
    )
    for given, near in (("mmg_vid(position=contiguous)", LONG), ("mmg_vid(tau=0.8)", "mmg_vid(tau=0.9)")):
        assert called(monkeypatch, given, "dense", f"output_dir={folder}") == 2
        assert capsys.readouterr().err.startswith(
            f"mmg-bench: no {given} in {folder}; did you mean {near}? there are: "
        )


@pytest.mark.parametrize(
    ("files", "command", "note"),
    [
        (["records-0.jsonl"], "run shard.count=2 shard.index=0", "has no records of shard.index=1 of shard.count=2"),
        (["records-1.jsonl"], "run workers=2", "has no records of shard.index=0 of shard.count=2"),
        (
            ["records-0.jsonl"],
            "run shard.count=3",
            "has no records of shard.index=1 and shard.index=2 of shard.count=3",
        ),
        (["records-0.jsonl", "records-1.jsonl"], "run shard.count=2 shard.index=0", None),
        (["records-0.jsonl", "records.jsonl"], "run shard.count=2 shard.index=0", None),
        (["records.jsonl"], "run", None),
        (["records-0.jsonl", "records-1.jsonl", "records-3.jsonl"], "run", None),  # workers, however many
    ],
)
def test_a_missing_shard_is_told(
    files: list[str],
    command: str,
    note: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of a benchmark that does not say how many questions it has, such as one's own, nothing else would tell."""
    answers = [*records("dense", 1.0, "1110"), *records(LONG, 0.25, "1100")]
    for i, name in enumerate(files):
        record_files.append(tmp_path / name, answers[i :: len(files)])
    provenance.write(tmp_path, {"key": {"command": f"mmg-bench {command}"}})
    assert called(monkeypatch, LONG, "dense", f"output_dir={tmp_path}") == 0
    shown = capsys.readouterr().out
    assert "A − B" in shown
    assert (
        "no records of" not in shown
        if note is None
        else f"{tmp_path} {note}, so those questions" in " ".join(shown.split())
    )


@pytest.mark.parametrize(("whole", "missed"), [(["dense", "other"], True), (["dense", "ours"], False)])
def test_a_command_without_shards_answers_what_shards_left_of_its_own_cells(
    whole: list[str], missed: bool, tmp_path: Path
) -> None:
    for number in range(3):
        record_files.append(tmp_path / f"records-{number}.jsonl", records(LONG, 0.25, "1100"))
    entries = {
        "part": {"command": "mmg-bench run shard.count=4 shard.index=0", "asked": ["dense", "ours"]},
        "whole": {"command": "mmg-bench run workers=2", "asked": whole},
    }
    provenance.write(tmp_path, entries)
    notes = read_answered(tmp_path).notes
    assert [("shard.index=3 of shard.count=4" in note) for note in notes] == [True] * missed


def test_what_only_tells(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert called(monkeypatch, "--help") == 0
    assert "A and B are labels as in the table" in capsys.readouterr().out


@pytest.mark.parametrize("label", ["mine(power=2)", "chain(before=mine, inside=fastv)"])
def test_other_code_of_a_method_from_elsewhere_is_told(
    label: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of this package's methods the commit tells; `other` was in the command, and is on neither side."""
    old = [replace(r, provenance="old") for r in records(label, 0.25, "1100")]
    record_files.append(
        tmp_path / "records.jsonl", [*records("mine", 0.25, "1110"), *records("random", 0.25, "1110"), *old]
    )
    now, then = ({"mine": f"p 1.0, code {code}", "other": f"p 1.0, code {code}"} for code in "ab")
    provenance.write(tmp_path, {"key": {"plug_ins": now}, "old": {"plug_ins": then}})
    told = "mine may have answered bench with different code on the two sides (p 1.0, code a; p 1.0, code b): run both"
    for one, other, differ in (("mine", label, True), ("mine", "random", False)):
        assert called(monkeypatch, one, other, f"output_dir={tmp_path}") == 0
        shown = " ".join(capsys.readouterr().out.split())
        assert (told in shown) == differ
        assert "different code" not in shown.replace(told, "")
        assert "Measured (key): mine of p 1.0, code a, other of p 1.0, code a" in shown
