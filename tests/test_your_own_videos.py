"""docs/your-own-videos.md works as it stands: its files are written and its commands given."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from command_line import given
from mmg_bench.runner.records import read_records

PAGE = (Path(__file__).parent.parent / "docs" / "your-own-videos.md").read_text()
FILES = dict(re.findall(r"`(mine/[\w/]+\.\w+)`[^`]*\n\n```\w+\n(.*?)```", PAGE, re.DOTALL))
SCRIPT = re.findall(r"Two to try it with:\n\n```python\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = re.findall(r"```sh\n(.*)\n```", PAGE)


def write_files() -> None:
    for name, text in FILES.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text)


def test_the_doctor_says_what_of_them_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    write_files()

    def told(change: str = "") -> str:
        options = COMMANDS[0].partition("retention_ratio")[2].partition(" ")[2]
        status = given(f"mmg-bench doctor {options} {change}", monkeypatch)
        said = capsys.readouterr().out
        assert status == ("MISSING" in said)
        return said

    assert "MISSING data of mine: 4 questions: videos missing: first.mp4, second.mp4\n      -> put them where" in told()
    exec(SCRIPT[0], {})
    assert "  ok      data of mine: 4 questions\n" in told()
    assert "MISSING data of mine: benchmark 'mine' has 4 questions, not 7" in told("benchmark.questions=7")
    assert "MISSING data of mine: benchmark.video='film': task 'mine' has no such column; it has question_id, " in told(
        "benchmark.video=film"
    )
    assert "MISSING data of mine: " in told("benchmark.tasks=yours")
    whole = Path("mine/questions.jsonl").read_text()
    Path("mine/questions.jsonl").write_text(re.sub(r'"skill": "[^"]*", ', "", whole, count=1))
    assert "benchmark.skill='skill': document 0 of task 'mine' has no value there: fill it in" in told()
    Path("mine/questions.jsonl").unlink()
    assert "questions.jsonl" in (said := told())
    assert "-> correct benchmark.tasks, benchmark.include_path, or the task's files" in said


def test_it_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert list(FILES) == ["mine/questions.jsonl", "mine/task.yaml", "mine/utils.py", "mine/benchmark/mine.yaml"]
    write_files()
    (script,) = SCRIPT
    exec(script, {})
    by_options, by_file = COMMANDS
    assert given(by_options, monkeypatch) == 0
    out = Path("outputs/embedded/mine")
    records = read_records(out)
    asked = [json.loads(line)["question_id"] for line in FILES["mine/questions.jsonl"].splitlines()]
    assert [r.question for r in records if r.method == "dense"] == asked
    assert [r.score for r in records if r.method == "dense"] == [1, 1, 1, 1]
    assert len(records) == len(asked) * (1 + 2 * 2)
    before = (out / "records.jsonl").read_bytes(), (out / "table.md").read_text().partition("Measured")[0]
    assert given(by_file, monkeypatch) == 0
    assert ((out / "records.jsonl").read_bytes(), (out / "table.md").read_text().partition("Measured")[0]) == before
