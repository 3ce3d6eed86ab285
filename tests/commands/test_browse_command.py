"""`mmg-bench browse`, on the records of a real run and on made ones."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote

import pytest

import record_files
from command_line import given
from mmg_bench.commands.browse import _asked, _pictures, _video
from mmg_bench.report.browse import Asked
from mmg_bench.runner import provenance
from mmg_bench.runner.records import Record, read_records


def data_of(page: Path) -> Any:
    """What the page's script is given."""
    (found,) = re.findall(r'id="data">(.*?)</script>', page.read_text(encoding="utf-8"), re.DOTALL)
    return json.loads(found)


def test_a_run_with_its_prompts_and_videos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "a run, ü"
    run = "mmg-bench run -m model=embedded benchmark=embedded limit=3 method=random retention_ratio=0.25,0.1"
    assert given(f"{run} 'output_dir={folder}'", monkeypatch) == 0
    *_, last = capsys.readouterr().out.splitlines()
    assert given(last.removeprefix("To see every question: "), monkeypatch) == 0
    assert f"Written: {folder}/browse.html" in capsys.readouterr().out
    data = data_of(folder / "browse.html")
    assert (data["title"], data["notes"]) == ("a run, ü", ["Only 3 of the 382 questions of embedded were asked"])
    (part,) = data["parts"]
    assert part["cells"] == [["dense", 1.0], ["random (control)", 0.25], ["random (control)", 0.1]]
    records = {(r.question, r.method, r.retention_ratio): r for r in read_records(folder)}
    assert len(records) == 9
    for question in part["questions"]:
        assert question["prompt"].endswith("Answer with one word.")
        assert (folder / unquote(question["address"])).resolve().is_file()
        for (method, ratio), (_, score, text) in zip(part["cells"], question["answers"], strict=True):
            record = records[question["id"], method.removesuffix(" (control)"), ratio]
            assert (score, part["texts"][text]) == (record.score, record.prediction)

    # a question that is asked otherwise by now: its prompt would not be what was answered
    file = folder / "records.jsonl"
    first = next(iter(records.values())).question
    changed = [replace(r, asked="before") if r.question == first else r for r in records.values()]
    file.unlink()
    record_files.append(file, changed)
    assert given(f"mmg-bench browse 'output_dir={folder}' 'page={tmp_path}/other/page.html'", monkeypatch) == 0
    (part,) = data_of(tmp_path / "other" / "page.html")["parts"]
    assert [q["id"] for q in part["questions"] if q["prompt"] is None] == [first]
    assert data_of(tmp_path / "other" / "page.html")["notes"] == [
        "Only 2 of the 382 questions of embedded were asked",
        "1 answered questions of embedded have since changed or been removed",
    ]
    other = next(q for q in part["questions"] if q["prompt"] is not None)
    assert (tmp_path / "other" / unquote(other["address"])).resolve().is_file()


def test_addresses_of_videos(tmp_path: Path) -> None:
    """As seen from the page, every sign that means something in an address written out; none of what is not there."""

    class Named:
        def video_path(self, question: Any) -> Path:
            return tmp_path / "videos" / question

    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "100 %#.mp4").touch()
    there: Any = Named()
    assert _video(there, "100 %#.mp4", tmp_path / "pages") == ("../videos/100%20%25%23.mp4", [])  # type: ignore[arg-type]
    assert _video(there, "no.mp4", tmp_path) == (None, [])  # type: ignore[arg-type]


def test_some_pictures_of_a_video_that_is_a_folder_of_them(tmp_path: Path) -> None:
    """Spread over the video, in its order, the first among them."""
    for number in range(1, 14):
        (tmp_path / f"{number} #.JPG").touch()
    (tmp_path / "0.txt").touch()
    assert _pictures(tmp_path) == [f"{number}%20%23.JPG" for number in (1, 4, 7, 10, 13)]
    (tmp_path / "empty").mkdir()
    assert _pictures(tmp_path / "empty") == _pictures(tmp_path / "0.txt") == []


def test_pictures_for_a_page_in_a_folder_still_to_be_made(tmp_path: Path) -> None:
    class Made:
        spec = SimpleNamespace(name="bench")
        questions = (SimpleNamespace(task="t", video="a b", id="q", digest="", prompt="?"),)

        def video_path(self, question: Any) -> Path:
            return tmp_path / question.video

    (tmp_path / "a b").mkdir()
    (tmp_path / "a b" / "1.png").touch()
    there: Any = Made()
    found = _asked(there, [record("q", "2026-01-01", 1.0)], tmp_path / "to be" / "made")
    assert found == {("bench", "q"): Asked("?", "../../a%20b", ["1.png"])}


def record(question: str, date: str, score: float) -> Record:
    tokens = (None, 4, 16, 9, [])
    return Record(
        *("m", "bench", 8, "mine", 0.25, f"cell of {date}", question, "", "v", "skill", "red", "red", score),
        *tokens,
        date,
    )


def test_without_the_benchmark_and_in_two_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record_files.append(tmp_path / "records-0.jsonl", [record("q", "2026-01-01", 0.0), record("q", "2026-01-02", 1.0)])
    spec = {"name": "bench", "tasks": ["no_such_task"], "include_path": str(tmp_path), "video": "video"}
    entry = {"benchmark": spec, "command": "mmg-bench run shard.count=2"}
    provenance.write(tmp_path, {date: {**entry, "date": date} for date in ("2026-01-01", "2026-01-02")})
    assert given(f"mmg-bench browse output_dir={tmp_path}", monkeypatch) == 0
    data = data_of(tmp_path / "browse.html")
    shard, version, missing = data["notes"]
    assert "has no records of shard.index=1 of shard.count=2" in shard
    assert version.startswith(
        "mine at R = 25 % on bench (m, 8 frames) answered in 2 versions of its code or settings: the newest, of "
    )
    assert missing.startswith("Prompts and videos of bench are left out: benchmark.include_path=")
    told = capsys.readouterr().out
    assert all(note in told for note in data["notes"])
    ((question,),) = [part["questions"] for part in data["parts"]]
    assert question["prompt"] is None
    assert question["answers"] == [["right", 1.0, 0]]


def test_the_benchmark_is_described_by_the_newest_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dates = {"2026-01-02": "z", "2026-01-03": "newest", "2026-01-01": "a"}
    record_files.append(
        tmp_path / "records.jsonl", [replace(record(f"q{date}", date, 1.0), cell="one") for date in dates]
    )
    spec = {"name": "bench", "tasks": ["no_such_task"], "video": "video"}
    entries = {date: {"benchmark": {**spec, "include_path": f"/{name}"}, "date": date} for date, name in dates.items()}
    provenance.write(tmp_path, entries)
    assert given(f"mmg-bench browse output_dir={tmp_path}", monkeypatch) == 0
    (note,) = data_of(tmp_path / "browse.html")["notes"]
    assert note.startswith("Prompts and videos of bench are left out: benchmark.include_path='/newest'")


@pytest.mark.parametrize("where", ["a_file/page.html", "a_folder"])
def test_a_page_that_cannot_be_written(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record_files.append(tmp_path / "records.jsonl", [record("q", "2026-01-01", 1.0)])
    provenance.write(tmp_path, {"2026-01-01": {}})
    (tmp_path / "a_file").touch()
    (tmp_path / "a_folder").mkdir()
    assert given(f"mmg-bench browse output_dir={tmp_path} page={tmp_path}/{where}", monkeypatch) == 2
    told = capsys.readouterr()
    why = {"a_file/page.html": "File exists", "a_folder": "Is a directory"}[where]
    assert told.err == f"mmg-bench: {tmp_path}/{where} cannot be written ({why}): name another file with page=\n"
    assert "Written" not in told.out


def test_ratios_that_different_commits_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As while a method is written: its column at one ratio may be of other code than that at another."""
    commits = {"2026-01-01": "aaa", "2026-01-02": "bbb"}
    answers = [
        replace(record("q", date, 1.0), method=method, retention_ratio=ratio, cell=f"{method} {ratio}")
        for method, ratio, date in (
            ("mine", 0.25, "2026-01-02"),
            ("mine", 0.1, "2026-01-01"),
            ("other", 0.25, "2026-01-02"),
            ("other", 0.1, "2026-01-01"),
            ("same", 0.25, "2026-01-02"),
            ("same", 0.1, "2026-01-02"),
        )
    ]
    record_files.append(
        tmp_path / "records.jsonl", [*answers, *(replace(r, frames=16, cell=f"{r.cell} 16") for r in answers[2:])]
    )
    provenance.write(tmp_path, {date: {"date": date, "commit": commit} for date, commit in commits.items()})
    assert given(f"mmg-bench browse output_dir={tmp_path}", monkeypatch) == 0
    what = "answers come from different commits, so perhaps from different code (R = 25 % from bbb, R = 10 % from aaa)"
    assert data_of(tmp_path / "browse.html")["notes"][:-1] == [
        f"mine, other on bench (m, 8 frames): {what}",
        f"other on bench (m, 16 frames): {what}",
    ]


def test_no_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "records.jsonl").touch()  # as of a command that has just begun
    assert given(f"mmg-bench browse output_dir={tmp_path}", monkeypatch) == 2
    assert capsys.readouterr().err.endswith("': no questions have been answered there yet\n")
    (tmp_path / "records.jsonl").unlink()
    assert given(f"mmg-bench browse output_dir={tmp_path}", monkeypatch) == 2
    plain = capsys.readouterr().err.strip()
    (tmp_path / "rows.csv").touch()
    assert given(f"mmg-bench browse output_dir={tmp_path}", monkeypatch) == 2
    with_rows = capsys.readouterr().err.strip()
    assert plain.endswith("': no records there; give the output_dir of a run or of a table")
    assert "': no records there, only rows.csv; give the output_dir" in with_rows
