"""lmms-eval tasks as questions: the embedded one, and what goes wrong with others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mmg_bench.benchmarks import lmms
from mmg_bench.benchmarks.embedded import dataset
from mmg_bench.benchmarks.lmms import Benchmark, BenchmarkError, BenchmarkSpec, _as_score
from mmg_bench.config import load
from mmg_bench.specs import benchmark_spec


@pytest.fixture(scope="module")
def embedded() -> Benchmark:
    return Benchmark(benchmark_spec(load("benchmark", "embedded")))


def test_questions_come_video_by_video(embedded: Benchmark) -> None:
    videos = [q.video for q in embedded.questions]
    assert len(videos) >= 300
    assert len(set(videos)) == dataset.VIDEOS
    assert videos == [v for v in dict.fromkeys(videos) for _ in range(videos.count(v))]
    first = embedded.questions[0]
    assert first.prompt.endswith("? Answer with one word.")
    assert first.generation["max_new_tokens"] == 4


def test_the_tasks_own_scoring(embedded: Benchmark) -> None:
    q = embedded.questions[0]
    assert embedded.score(q, q.target) == 1
    assert embedded.score(q, f" {q.target.title()}.") == 1
    assert embedded.score(q, f"not {q.target}") == 0
    assert embedded.score(q, "") == 0


def test_a_video_is_rendered_when_first_asked_for(
    embedded: Benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMG_BENCH_CACHE", str(tmp_path))
    dataset.prepare.cache_clear()
    path = embedded.video_path(embedded.questions[0])
    dataset.prepare.cache_clear()
    assert path.is_file()
    assert tmp_path in path.parents


def test_the_wrong_number_of_questions_is_an_error() -> None:
    spec = benchmark_spec({**load("benchmark", "embedded"), "questions": 99})
    with pytest.raises(BenchmarkError, match=r"has 382 questions, not 99"):
        _ = Benchmark(spec).questions


def test_a_column_that_is_not_there() -> None:
    spec = benchmark_spec({**load("benchmark", "embedded"), "skill": "kind"})
    says = "benchmark.skill='kind': task 'mmg_embedded' has no such column; it has question_id, video, skill"
    with pytest.raises(BenchmarkError, match=says):
        _ = Benchmark(spec).questions


def test_a_task_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lmms, "_task_folders", lambda _: [load_path()])  # to index all of lmms-eval takes long
    says = (
        r"lmms-eval has no task 'videomee'; see `lmms-eval --tasks list`; .*set benchmark\.include_path to its folder"
    )
    with pytest.raises(BenchmarkError, match=says):
        Benchmark(BenchmarkSpec("x", ("videomee",), video="v"))


def test_a_folder_without_the_task_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    says = r"include_path='.*task': no yaml file there has the line `task: mine`; the tasks there are: mmg_embedded;"
    with pytest.raises(BenchmarkError, match=says):
        Benchmark(BenchmarkSpec("x", ("mine",), video="v", include_path=load_path()))
    with pytest.raises(BenchmarkError, match=r"the tasks there are: none; correct benchmark\.tasks or the file"):
        Benchmark(BenchmarkSpec("x", ("mine",), video="v", include_path=str(tmp_path)))
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "other.yaml").write_text("task: other")
    with pytest.raises(BenchmarkError, match=r"include_path='~': no yaml .* the tasks there are: other;"):
        Benchmark(BenchmarkSpec("x", ("mine",), video="v", include_path="~"))


def test_a_folder_of_tasks_that_is_not_there() -> None:
    says = r"benchmark\.include_path='/nope': no such folder; give the one with the task's yaml file"
    with pytest.raises(ValueError, match=says):
        BenchmarkSpec("x", ("mine",), video="v", include_path="/nope")


def load_path() -> str:
    path = benchmark_spec(load("benchmark", "embedded")).include_path
    assert path is not None
    return path


TASK = """
task: broken
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.doc_to_visual
doc_to_text: question
doc_to_target: answer
process_results: !function utils.process_results
generation_kwargs: {{max_new_tokens: 1}}
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
UTILS = """
import sys
def doc_to_visual(doc):
    sys.exit("video path:/data/v.mp4 does not exist, please check")
def process_results(doc, results):
    return {"acc": {"pred_answer": results[0], "answer": doc["answer"]}}
"""


def test_a_task_that_exits_for_a_missing_video(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text('{"video": "v", "question": "Which?", "answer": "A"}\n')
    (tmp_path / "broken.yaml").write_text(TASK.format(data=tmp_path / "data.jsonl"))
    (tmp_path / "utils.py").write_text(UTILS)
    benchmark = Benchmark(BenchmarkSpec("broken", ("broken",), video="video", include_path=str(tmp_path)))
    (question,) = benchmark.questions
    with pytest.raises(BenchmarkError, match=r"question '0': video path:/data/v.mp4 does not exist"):
        benchmark.video_path(question)
    assert (benchmark.score(question, "A"), benchmark.score(question, "B")) == (1, 0)
    assert question.skill == "broken"


def test_data_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text(TASK.format(data=tmp_path / "gone.jsonl"))
    (tmp_path / "utils.py").write_text(UTILS)
    with pytest.raises(BenchmarkError, match=r"data of task 'broken' cannot be loaded"):
        Benchmark(BenchmarkSpec("broken", ("broken",), video="video", include_path=str(tmp_path)))


def test_scores_in_every_form() -> None:
    assert _as_score(True, "x") == 1
    assert _as_score({"score": 0.5, "pred": 1}, "x") == 0.5
    assert _as_score({"score": np.int64(1)}, "x") == _as_score({"score": "1"}, "x") == 1
    assert _as_score({"parsed_pred": "A", "answer": "A"}, "x") == 1
    assert _as_score({"pred": 2, "ground_truth": 1}, "x") == 0
    with pytest.raises(BenchmarkError, match="cannot read a score from x"):
        _as_score({"text": "A"}, "x")
    with pytest.raises(BenchmarkError, match=r"cannot read a score from x: .'score': None"):
        _as_score({"score": None}, "x")
    for rating in (4.0, -1, float("nan")):
        with pytest.raises(BenchmarkError, match=r"x is .*: a score must be in 0\.\.1"):
            _as_score({"rating": rating}, "x")


def test_limit_is_checked() -> None:
    with pytest.raises(ValueError, match="limit=0: it must be a whole number, at least 1, or null for every question"):
        Benchmark(benchmark_spec(load("benchmark", "embedded")), limit=0)
