"""Records on disk: what is unique, what is torn, what is damaged, and no space left."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

import record_files
from mmg_bench.runner.lines import LineFile
from mmg_bench.runner.records import Record, read_records

RECORD = Record(
    model="m",
    benchmark="b",
    frames=4,
    method="dense",
    retention_ratio=1.0,
    cell="c",
    question="q0",
    asked="a",
    video="v",
    skill="s",
    target="rød",
    prediction="rød",
    score=1.0,
    error=None,
    realised_tokens=4,
    total_tokens=4,
    prompt_tokens=9,
    stages=[[2, 3]],
    provenance="p",
)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    records = [replace(RECORD, question=f"q{i}") for i in range(3)]
    record_files.append(tmp_path / "records.jsonl", records[:2])
    record_files.append(tmp_path / "records.jsonl", records[2:])
    assert read_records(tmp_path) == records
    assert read_records(tmp_path / "nothing here") == []


def test_a_torn_line_is_dropped_and_written_over(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(json.dumps(asdict(RECORD)) + "\n" + json.dumps(asdict(RECORD))[:40])
    assert read_records(tmp_path) == [RECORD]
    record_files.append(path, [replace(RECORD, question="q1")])
    assert [r.question for r in read_records(tmp_path)] == ["q0", "q1"]


def test_the_same_answer_of_two_machines_counts_once(tmp_path: Path) -> None:
    """They may round differently what is compared with the video, and are two provenances."""
    other = replace(RECORD, coverage=0.5, quantisation_error=0.1, provenance="q")
    record_files.append(tmp_path / "records-0.jsonl", [replace(RECORD, coverage=0.4999, quantisation_error=0.1001)])
    record_files.append(tmp_path / "records-1.jsonl", [other])
    assert [r.coverage for r in read_records(tmp_path)] == [0.4999]
    record_files.append(tmp_path / "records-2.jsonl", [replace(other, prediction="blå")])
    with pytest.raises(ValueError, match="a second, different record of question 'q0'"):
        read_records(tmp_path)


def test_answers_of_an_older_version_are_read(tmp_path: Path) -> None:
    """They lack what was added since."""
    line = asdict(RECORD)
    for name in ("coverage", "quantisation_error"):
        del line[name]
    (tmp_path / "records.jsonl").write_text(json.dumps(line) + "\n")
    assert read_records(tmp_path) == [RECORD]
    (tmp_path / "records.jsonl").write_text(json.dumps({**line, "colour": "red"}) + "\n")
    with pytest.raises(ValueError, match=r"not written by this version of mmg_bench \(fields \['colour'\] differ\)"):
        read_records(tmp_path)


def test_damage_is_named(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text("not json\n" + json.dumps(asdict(RECORD)) + "\n")
    with pytest.raises(ValueError, match=r"records\.jsonl:1: not JSON"):
        read_records(tmp_path)
    path.write_text('{"model": "m"}\n')
    with pytest.raises(ValueError, match=r"records\.jsonl:1: not written by this version"):
        read_records(tmp_path)
    for line in (b"5", b"[]", b"\xff\xfe", b""):
        path.write_bytes(json.dumps(asdict(RECORD)).encode() + b"\n" + line + b"\n")
        with pytest.raises(ValueError, match=r"records\.jsonl:2: not "):
            read_records(tmp_path)
    path.write_text(json.dumps({**asdict(RECORD), "question": ["x"]}) + "\n")
    with pytest.raises(ValueError, match=r"records\.jsonl:1: question=\['x'\]: not a string"):
        read_records(tmp_path)
    for changes in ({"score": "one"}, {"score": None}, {"score": 7}, {"error": "x"}):
        path.write_text(json.dumps({**asdict(RECORD), **changes}) + "\n")
        with pytest.raises(
            ValueError, match=r"records\.jsonl:1: score=.*a record has either a score in 0..1 or an error"
        ):
            read_records(tmp_path)


def test_a_line_without_its_end_counts_as_torn(tmp_path: Path) -> None:
    """Also where it is whole by chance: appending takes it away, so that it must be answered again."""
    (tmp_path / "records.jsonl").write_text(json.dumps(asdict(RECORD)))
    assert read_records(tmp_path) == []


def test_one_record_a_cell_and_question(tmp_path: Path) -> None:
    line = json.dumps(asdict(RECORD)) + "\n"
    (tmp_path / "records-0.jsonl").write_text(line)
    (tmp_path / "records-1.jsonl").write_text(line)
    assert read_records(tmp_path) == [RECORD]
    (tmp_path / "records-1.jsonl").write_text(json.dumps(asdict(replace(RECORD, provenance="another"))) + "\n")
    assert read_records(tmp_path) == [RECORD]  # of two commands at once
    (tmp_path / "records-1.jsonl").write_text(json.dumps(asdict(replace(RECORD, score=0.0))) + "\n")
    with pytest.raises(ValueError, match="second, different record of question 'q0'"):
        read_records(tmp_path)


def test_an_answer_stands_for_failures_before_and_behind_it(tmp_path: Path) -> None:
    failed = replace(RECORD, prediction=None, score=None, error="OSError: x")
    others = [replace(failed, question="q1", error=f"OSError: {i}") for i in range(2)]
    record_files.append(tmp_path / "records.jsonl", [failed, RECORD, failed, *others])
    assert read_records(tmp_path) == [RECORD, others[-1]]


def test_processes_append_to_one_file(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    with LineFile(path) as one, LineFile(path) as other:
        one.append([asdict(RECORD)])
        with path.open("a") as dead:
            dead.write('{"model": "to')  # killed
        other.append([asdict(replace(RECORD, question="q1"))])
        one.append([asdict(replace(RECORD, question="q2"))])
    assert [r.question for r in read_records(tmp_path)] == ["q0", "q1", "q2"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device that is always full")
def test_no_space_left(tmp_path: Path) -> None:
    def add() -> None:
        with LineFile(tmp_path / "records.jsonl") as file, Path("/dev/full").open("ab", buffering=0) as full:
            file._file = full
            file.append([asdict(RECORD)])

    with pytest.raises(OSError, match=r"(?s)cannot be written.*free some space.*records\.jsonl"):
        add()
