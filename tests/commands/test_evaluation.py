"""What the jobs of one command leave behind, on the real embedded model."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import families
from mmg_bench.benchmarks.reserved import AVERAGE
from mmg_bench.commands import evaluation
from mmg_bench.commands.answered import read_answered
from mmg_bench.commands.compare import compare
from mmg_bench.config import composed, sweep
from mmg_bench.measure import latency
from mmg_bench.models.checking import ModelError
from mmg_bench.models.spec import EMBEDDED
from mmg_bench.report.answers import newest
from mmg_bench.report.rows import provenance_keys, read_rows
from mmg_bench.runner import provenance
from mmg_bench.runner.claims import ClaimedError


def run(*overrides: str) -> int:
    return evaluation.run(sweep("run", ["method=random", "model.device=cpu", *overrides]))


def test_rows_of_all_jobs_in_a_folder_stand_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("model.frames=4,8", "limit=2", "latency=true", "measure.repeats=2", f"output_dir={tmp_path}") == 0
    rows = read_rows(tmp_path / "rows.csv")
    for frames in (4, 8):
        part = rows[rows.frames == frames]
        assert set(part.method) == {"dense", "random"}
        assert {"accuracy", "prefill_speedup", "flops_gqa"} <= set(part.metric)
    entries = json.loads((tmp_path / "provenance.json").read_text())
    assert set(entries) == set(provenance_keys(rows))
    assert sum("timed" in entry for entry in entries.values()) == 2  # a question for each number of frames
    table = (tmp_path / "table.md").read_text()
    assert "run: embedded, embedded, 4 frames" in table
    assert "run: embedded, embedded, 8 frames" in table
    assert capsys.readouterr().out.count("Written: ") == 1
    # another command leaves its own rows
    assert run("model.frames=4", "limit=2", f"output_dir={tmp_path}") == 0
    assert set(read_rows(tmp_path / "rows.csv").frames) == {4}


def test_a_table_without_its_times(tmp_path: Path) -> None:
    methods = "table.profiles.embedded.methods=[{name:dense},{name:random}]"
    part = ["profile=embedded", "limit=2", "workers=1", "+model.embedded.device=cpu", methods, f"output_dir={tmp_path}"]
    assert evaluation.table(composed("table", [*part, "latency=false"])) == 0
    (entry,) = json.loads((tmp_path / "embedded" / "provenance.json").read_text()).values()
    assert entry["data"]
    assert "timed" not in entry
    metrics = set(read_rows(tmp_path / "embedded" / "rows.csv").metric)
    assert "accuracy" in metrics
    assert not {m for m in metrics if m.endswith("_ms") or "speedup" in m}


def test_every_method_of_the_table_for_qwen_runs_on_one(tmp_path: Path) -> None:
    """A tiny one of random weights, and a question of the embedded benchmark."""
    torch.manual_seed(0)
    for part in families.qwen2_5_vl():
        part.save_pretrained(tmp_path / "model")
    model = {"device": "cpu", "path": tmp_path / "model", "revision": "null", "frames": 8, "dtype": "float32"}
    model |= {"min_pixels": "null", "max_pixels": "null"}  # so tiny that bounds of the real one do not fit
    options = [f"++model.qwen2_5_vl_7b.{name}={value}" for name, value in model.items()]
    part = ["table=qwen2_5_vl", "profile=paper", "table.profiles.paper.benchmarks=[embedded]", "limit=1"]
    part += ["workers=1", "latency=false", "table.retention_ratios=[0.25]", f"output_dir={tmp_path}", *options]
    config = composed("table", part)
    assert evaluation.table(config) == 0
    rows = read_rows(tmp_path / "paper" / "rows.csv")
    assert (rows.n_errors == 0).all()
    counts = rows[(rows.metric == "realised_tokens") | (rows.metric == "accuracy")]
    listed = config["table"]["profiles"]["paper"]["methods"]
    assert counts.method.nunique() == len(listed)


def test_a_worker_calls_options_as_its_table_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shutil.copytree(EMBEDDED, tmp_path / "model")

    def first_of(count: int, work: Any, *arguments: Any) -> None:
        shutil.rmtree(folder)
        work(0, count, *pickle.loads(pickle.dumps(arguments)))

    monkeypatch.setattr(evaluation, "in_processes", first_of)
    changes = [f"model.embedded.{change}" for change in (f"path={folder}", "name=other", "device=cpu")]
    part = ["profile=embedded", "limit=1", "latency=false", "workers=2", *changes, f"output_dir={tmp_path}/out"]
    with pytest.raises(ModelError, match=r"no such checkpoint folder; set model\.embedded\.path to one"):
        evaluation.table(composed("table", part))


def test_several_benchmarks_in_a_folder_have_their_average(tmp_path: Path) -> None:
    assert run("benchmark.name=one,two", "limit=2", f"output_dir={tmp_path}") == 0
    rows = read_rows(tmp_path / "rows.csv")
    assert set(rows.benchmark) == {"one", "two", AVERAGE}
    assert "| Avg. |" in (tmp_path / "table.md").read_text()


def test_the_last_command_says_which_answers_count_and_how(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Answers in single precision, in half, and the first again with another method: those are asked for last."""
    days = iter(range(1, 9))
    described = provenance.describe
    monkeypatch.setattr(
        provenance, "describe", lambda *settings: {**described(*settings), "date": f"2026-01-0{next(days)}"}
    )
    folder = [f"output_dir={tmp_path}", "limit=9", "model.frames=4", "workers=1"]
    for options in ([], ["model.dtype=bfloat16"], ["method=random,uniform", "benchmark.average=skills"]):
        assert run(*folder, *options) == 0
    (table,) = (tmp_path / "table.md").read_text().split("\n| dense")[1:]
    entries = json.loads((tmp_path / "provenance.json").read_text())
    assert [len(entries[key]["asked"]) for key in sorted(entries, key=lambda key: entries[key]["date"])] == [2, 2, 3]
    found = read_answered(tmp_path)
    records, notes = newest(found.records, found.sources)
    assert {found.sources[r.provenance]["dtype"] for r in records} == {"float32"}
    assert len(notes) == 2
    capsys.readouterr()
    assert compare(["random", "uniform"], composed("compare", [f"output_dir={tmp_path}"])) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "the mean over the skills" in shown
    rows = read_rows(tmp_path / "rows.csv")
    means = rows[(rows.metric == "accuracy") & (rows.skill == "all")].set_index("method").value
    for method in ("random", "uniform"):
        assert f" {means[method]:.1f} " in shown
        assert f" {means[method]:.1f} " in table


def stop(monkeypatch: pytest.MonkeyPatch, step: str, frames: int, fault: type[BaseException]) -> None:
    """Have a step of the jobs end in a fault at so many frames."""
    original = getattr(evaluation, step)

    def stopped(llm: Any, *others: Any) -> Any:
        if llm.spec.frames == frames:
            raise fault
        return original(llm, *others)

    monkeypatch.setattr(evaluation, step, stopped)


@pytest.mark.parametrize("fault", [KeyboardInterrupt, OSError])
def test_what_earlier_jobs_computed_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: type[BaseException]
) -> None:
    stop(monkeypatch, "evaluate", 8, fault)
    with pytest.raises(fault):
        run("model.frames=2,4,8", "limit=2", f"output_dir={tmp_path}")
    assert set(read_rows(tmp_path / "rows.csv").frames) == {2, 4}
    assert (tmp_path / "table.md").read_text().count("## run: ") == 2


def test_a_method_that_cannot_be_timed_has_its_answers_and_shows_in_the_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(latency, "prefill", lambda *_: 1 / 0)
    assert run("limit=2", "latency=true", "measure.repeats=2", "measure.warmup=0", f"output_dir={tmp_path}") == 2
    rows = read_rows(tmp_path / "rows.csv")
    assert rows[rows.metric == "accuracy"].value.notna().all()
    assert "prefill_ms" not in set(rows.metric)
    told = capsys.readouterr().out
    assert "random at R = 25 % cannot be measured: ZeroDivisionError: division by zero (test_evaluation.py:" in told
    assert "random at R = 25 % was not timed: ZeroDivisionError" in told


def test_answers_have_a_table_before_anything_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: Any) -> Any:
        raise KeyboardInterrupt

    command = ("limit=2", "latency=true", "measure.repeats=2", "measure.warmup=0", f"output_dir={tmp_path}")
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "measure_cells", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(*command)
    answered = read_rows(tmp_path / "rows.csv")
    assert "accuracy" in set(answered.metric)
    assert "prefill_ms" not in set(answered.metric)
    assert run(*command) == 0
    timed = (tmp_path / "rows.csv").read_text()
    assert "prefill_ms" in timed
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "measure_cells", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(*command)
    assert (tmp_path / "rows.csv").read_text() == timed  # no times are lost


def test_a_stop_while_a_later_job_is_timed_loses_no_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop(monkeypatch, "measure_cells", 4, KeyboardInterrupt)
    quick = ("latency=true", "measure.repeats=2", "measure.warmup=0")
    with pytest.raises(KeyboardInterrupt):
        run("model.frames=2,4", "limit=2", *quick, f"output_dir={tmp_path}")
    rows = read_rows(tmp_path / "rows.csv")
    assert set(rows[rows.metric == "accuracy"].frames) == {2, 4}
    assert set(rows[rows.metric == "prefill_ms"].frames) == {2}


def test_answers_from_nowhere_are_told_before_others_are_asked(tmp_path: Path) -> None:
    assert run("limit=1", f"output_dir={tmp_path}") == 0
    before = (tmp_path / "records.jsonl").read_text()
    (tmp_path / "provenance.json").unlink()
    with pytest.raises(
        ValueError, match=rf"{tmp_path}/provenance\.json has no entry \w+, which records there refer to: restore"
    ):
        run("limit=2", f"output_dir={tmp_path}")
    assert (tmp_path / "records.jsonl").read_text() == before


def test_each_fault_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(folder: str) -> list[str]:
        assert run("retention_ratio=0.1,0.25", "limit=3", f"output_dir={tmp_path / folder}") == 9
        return [line for line in capsys.readouterr().out.splitlines() if line.startswith("failed: ")]

    def fails(*_: Any) -> str:
        raise ValueError("mine")

    def fails_by_question(self: Any, inputs: Any, *_: Any) -> str:
        raise ValueError(f"mine: {inputs['input_ids'].tolist()}")

    monkeypatch.setattr(evaluation.VideoLLM, "generate", fails)
    (line,) = told("alike")
    assert line.startswith(
        "failed: test-0000-0 and 2 more of embedded, dense at R = 100 % and 2 more: ValueError: mine (test_"
    )
    monkeypatch.setattr(evaluation.VideoLLM, "generate", fails_by_question)
    lines = told("apart")
    assert len({line.split(" of embedded, dense at R = 100 % and 2 more: ")[0] for line in lines}) == len(lines) == 3


def test_jobs_that_rows_cannot_tell_apart_take_folders_of_their_own(tmp_path: Path) -> None:
    assert run("limit=1,2", f"output_dir={tmp_path}/${{limit}}") == 0
    assert [max(read_rows(tmp_path / limit / "rows.csv").n) for limit in ("1", "2")] == [1, 2]


def test_shares_of_the_videos_have_no_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("shard.index=0,1", "shard.count=2", "limit=12", f"output_dir={tmp_path}/") == 0
    assert "shard.index=1 of shard.count=2 is done" in capsys.readouterr().out
    assert not (tmp_path / "rows.csv").exists()


@pytest.mark.parametrize(
    ("first", "second", "refused"),
    [
        ("method=random", "method=random model.device=auto limit=3", "random at R = 25 %"),
        ("method=random", "retention_ratio=0.1,0.25 method=uniform,random", "random at R = 25 %"),
        ("method=dense", "method=dense", "dense at R = 100 %"),
        ("method=random,uniform", "method=uniform,random", "uniform at R = 25 % and 1 more"),
        ("method=random model.frames=2,4", "method=random model.frames=4", "random at R = 25 %"),
        ("method=random shard.count=2", "method=random shard.count=2", "random at R = 25 %"),
        ("method=random shard.count=2", "method=random shard.count=2 shard.index=1", ""),
        ("method=random", "method=random output_dir={}/other", ""),
        ("method=random", "method=random model.frames=4", ""),
        ("method=random", "method=random retention_ratio=0.1", ""),
        ("method=random", "method=random benchmark.name=other", ""),
        ("method=dense", "method=random", ""),
    ],
)
def test_what_another_command_is_answering_is_not_answered_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str, second: str, refused: str
) -> None:
    loads: list[str] = []

    def load(self: Any, _: Any) -> None:
        loads.append("")
        if len(loads) > 1:
            raise ArithmeticError  # far enough
        if refused:
            with pytest.raises(
                ClaimedError, match=rf"^{tmp_path}: process \d+ on .* has been working there on {refused} sin"
            ):
                run(*options, *second.format(tmp_path).split())
        else:
            with pytest.raises(ArithmeticError):
                run(*options, *second.format(tmp_path).split())
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluation.VideoLLM, "__init__", load)
    options = ["limit=2", f"output_dir={tmp_path}"]
    with pytest.raises(KeyboardInterrupt):
        run(*options, *first.split())
    assert len(loads) == 1 + (not refused)
    assert list(tmp_path.glob(".claim-*")) == []


def test_workers_of_a_sweep_are_not_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def one_by_one(count: int, work: Any, *arguments: Any) -> None:
        for index in range(count):
            work(index, count, *arguments)

    monkeypatch.setattr(evaluation, "in_processes", one_by_one)
    assert run("model.frames=2,4", "limit=4", "workers=2", f"output_dir={tmp_path}") == 0
    lines = [line for path in tmp_path.glob("records*.jsonl") for line in path.read_text().splitlines()]
    assert len(lines) == 4 * 2 * 2


def test_a_table_of_the_first_questions_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    of_none = "benchmark.questions=null"  # as of videos of one's own
    for limit, options in ((3, [of_none]), (2, [of_none]), (2, [])):  # of the second, all answers are the first one's
        folder = tmp_path / ("some" if options else "of_all")
        assert run(f"limit={limit}", *options, f"output_dir={folder}") == 0
        title = f"run: embedded, embedded, 16 frames, only the first {limit} questions"
        for text in ((folder / "table.md").read_text(), capsys.readouterr().out):
            assert title in text
            assert f"; embedded (first {limit} of 382 questions on 1 video)" in text
    for folder, limit in (("some", 3), ("of_all", 2)):
        assert compare(["random", "dense"], composed("compare", [f"output_dir={tmp_path / folder}"])) == 0
        said = f"Of the 382 questions of embedded, both were asked only the first {limit} (limit={limit})"
        assert said in capsys.readouterr().out
