"""docs/your-own-videos.md works as it stands: its files are written and its commands given."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

from mmg_bench import cli
from mmg_bench.runner.records import read_records

PAGE = (Path(__file__).parent.parent / "docs" / "your-own-videos.md").read_text()
FILES = dict(re.findall(r"`(mine/[\w/]+\.\w+)`[^`]*\n\n```\w+\n(.*?)```", PAGE, re.DOTALL))
SCRIPT = re.findall(r"Two to try it with:\n\n```python\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = re.findall(r"```sh\n(.*)\n```", PAGE)


def given(command: str, monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setattr("sys.argv", shlex.split(command))
    GlobalHydra.instance().clear()
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code


def test_it_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert list(FILES) == ["mine/questions.jsonl", "mine/task.yaml", "mine/utils.py", "mine/benchmark/mine.yaml"]
    for name, text in FILES.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text)
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
