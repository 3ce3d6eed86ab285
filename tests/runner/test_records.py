"""Records on disk: what is unique, what is torn, what is damaged, and no space left."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from mmg_bench.runner.records import Record, RecordFile, drop_errors, read_records

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
    with RecordFile(tmp_path / "records.jsonl") as file:
        file.append(records[:2])
        file.append(records[2:])
    assert read_records(tmp_path) == records
    assert read_records(tmp_path / "nothing here") == []


def test_a_torn_line_is_dropped_and_written_over(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(json.dumps(asdict(RECORD)) + "\n" + json.dumps(asdict(RECORD))[:40])
    assert read_records(tmp_path) == [RECORD]
    with RecordFile(path) as file:
        file.append([replace(RECORD, question="q1")])
    assert [r.question for r in read_records(tmp_path)] == ["q0", "q1"]


def test_damage_is_named(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text("not json\n" + json.dumps(asdict(RECORD)) + "\n")
    with pytest.raises(ValueError, match=r"records\.jsonl:1: not JSON"):
        read_records(tmp_path)
    path.write_text('{"model": "m"}\n')
    with pytest.raises(ValueError, match=r"records\.jsonl:1: not a record"):
        read_records(tmp_path)


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


def test_errors_are_dropped_and_the_rest_kept(tmp_path: Path) -> None:
    failed = replace(RECORD, question="q1", prediction=None, score=None, error="OSError: x")
    with RecordFile(tmp_path / "records.jsonl") as file:
        file.append([RECORD, failed])
    drop_errors(tmp_path)
    assert read_records(tmp_path) == [RECORD]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device that is always full")
def test_no_space_left(tmp_path: Path) -> None:
    file = RecordFile(tmp_path / "records.jsonl")
    file._file.close()
    file._file = Path("/dev/full").open("a")  # noqa: SIM115 (closing it would raise once more)
    with pytest.raises(OSError, match=r"(?s)cannot write records.*free some space.*records\.jsonl"):
        file.append([RECORD])
