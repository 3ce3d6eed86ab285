"""The published benchmarks: lmms-eval's own, unchanged task code, on small data of the same schema."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from lmms_data import DATA_SETS, letter_model
from mmg_bench.benchmarks.lmms import Benchmark, BenchmarkError, BenchmarkSpec, Question, _task_folders
from mmg_bench.cells import make_cell
from mmg_bench.commands.evaluation import run
from mmg_bench.config import load, sweep
from mmg_bench.models.loading import VideoLLM
from mmg_bench.models.spec import ModelSpec
from mmg_bench.report.rows import read_rows, result_rows
from mmg_bench.runner import evaluate as runner
from mmg_bench.runner.evaluate import evaluate
from mmg_bench.runner.records import Record, read_records
from mmg_bench.specs import benchmark_spec

DENSE = [make_cell("dense", 1.0)]
SHARED = Path(__file__).parents[3] / "shared" / "schemas"
"""A few rows of published annotation files, where the project is developed."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """All data sets below `data`, their videos below HF_HOME, and a model that answers in letters."""
    root = tmp_path_factory.mktemp("published")
    for name, make in DATA_SETS.items():
        make().write(root / "data" / name, root / "home")
    letter_model(root / "model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HOME", str(root / "home"))
        patch.setattr("nltk.download", lambda *_, **__: False)  # NExT-QA's code asks for data of its open-ended task
        yield root


@pytest.fixture(scope="module")
def benchmark(folder: Path) -> Callable[[str], Benchmark]:
    return cache(lambda name: Benchmark(spec(folder, name)))


@pytest.fixture(scope="module")
def llm(folder: Path) -> VideoLLM:
    return VideoLLM(ModelSpec("letters", str(folder / "model"), frames=4, dtype="float32", device="cpu"))


def spec(folder: Path, name: str, **changes: Any) -> BenchmarkSpec:
    """The shipped configuration, with the made data and its number of questions."""
    made = DATA_SETS[name]()
    whole = benchmark_spec(
        {**load("benchmark", name), "data": str(folder / "data" / name), "questions": made.questions}
    )
    if name == "mvbench":  # four of its twenty tasks
        whole = replace(whole, tasks=tuple(f"mvbench_{part.config}" for part in made.parts))
    return replace(whole, **changes)


@pytest.mark.skipif(not SHARED.is_dir(), reason="no published rows here")
@pytest.mark.parametrize("name", ["videomme", "mvbench", "longvideobench"])  # lmms-eval's MLVU has other columns
def test_the_made_rows_have_the_published_columns(name: str) -> None:
    published = json.loads((SHARED / f"{name}.json").read_text())
    for part in DATA_SETS[name]().parts:
        theirs = published[part.config][0] if name == "mvbench" else published[0]
        for row in part.rows:
            assert {c: type(value) for c, value in row.items()} == {c: type(theirs[c]) for c in row}


@pytest.mark.parametrize("name", DATA_SETS)
def test_the_configuration_names_what_the_task_reads(name: str) -> None:
    from lmms_eval.utils import load_yaml_config

    config = load("benchmark", name)
    (path,) = _task_folders(tuple(config["tasks"]))
    tasks = [load_yaml_config(str(file), mode="simple") for file in Path(path).glob("*.yaml")]
    mine = [task for task in tasks if task.get("task") in config["tasks"]]
    assert len(mine) == len(config["tasks"])
    for task in mine:
        assert task["dataset_path"] == config["dataset"]
        assert task["dataset_kwargs"]["cache_dir"] == config["videos"]


@pytest.mark.parametrize("name", DATA_SETS)
def test_questions_are_lmms_evals_own_requests(name: str, folder: Path, benchmark: Callable[[str], Benchmark]) -> None:
    loaded = benchmark(name)
    questions = {(q.task, q.doc_id): q for q in loaded.questions}
    for task_name, task in loaded._tasks.items():
        task.config.num_fewshot = 0  # as its evaluator sets it
        task.build_all_requests()
        for request in task.instances:
            prompt, generation, doc_to_visual, doc_id, *_ = request.args
            question = questions.pop((task_name, doc_id))
            assert question.prompt == prompt
            assert question.generation == generation
            (visual,) = doc_to_visual(task.eval_docs[doc_id])
            assert loaded.video_path(question) == Path(visual)
            assert folder / "home" in Path(visual).parents
    assert not questions
    assert loaded.missing_videos() == []


SCORES: dict[str, Callable[[dict[str, Any]], float]] = {
    "videomme": lambda sample: sample["videomme_perception_score"]["score"],
    "mvbench": lambda sample: sample["mvbench_accuracy"]["score"],
    "mlvu": lambda sample: _equal(sample["mlvu_percetion_score"], "pred_answer"),
    "longvideobench": lambda sample: _equal(sample["lvb_acc"], "parsed_pred"),
}
"""Where lmms-eval's log of an answer has its score."""


def _equal(parsed: dict[str, Any], field: str) -> float:
    return float(parsed[field] == parsed["answer"])


@pytest.mark.parametrize("name", SCORES)
def test_scores_are_those_of_lmms_evals_own_evaluator(
    name: str, folder: Path, benchmark: Callable[[str], Benchmark], llm: VideoLLM, tmp_path: Path
) -> None:
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    from mmg_bench.lmms_plugin import MMGBench

    ours = benchmark(name)
    tasks = ours.spec.tasks
    theirs = simple_evaluate(
        model=MMGBench(str(folder / "model"), frames=4, dtype="float32", device="cpu"),
        tasks=[{"task": task, "dataset_path": ours.spec.data} for task in tasks],
        task_manager=TaskManager(include_path=_task_folders(tasks), include_defaults=False),
        bootstrap_iters=0,
        process_docs_parallel=1,
    )
    records = evaluate(llm, ours, DENSE, tmp_path, "p")
    assert all(r.error is None for r in records)
    samples = {(task, s["doc_id"]): s for task in tasks for s in theirs["samples"][task]}
    found = {r.question: r for r in records}
    for q in ours.questions:
        sample = samples.pop((q.task, q.doc_id))
        assert sample["filtered_resps"] == [found[q.id].prediction]
        assert SCORES[name](sample) == found[q.id].score
    assert not samples
    assert len({r.score for r in records}) == 2  # some are right and some are wrong
    assert len({r.prediction for r in records}) > 2
    # the table's accuracy is the task's own aggregation; of several tasks, their mean
    metric = ours._tasks[tasks[0]].config.metric_list[0]["metric"]
    headline = [theirs["results"][task][f"{metric},none"] for task in tasks]
    scale = 100 if name == "longvideobench" else 1  # the only one of the four in 0..1
    assert accuracy(records, ours) == pytest.approx(scale * sum(headline) / len(headline), abs=1e-3)


def accuracy(records: list[Record], of: Benchmark) -> float:
    over_skills = [of.spec.name] if of.spec.average == "skills" else []
    rows = result_rows(records, table="t", weights={"letters": "random"}, over_skills=over_skills)
    (value,) = rows[(rows.metric == "accuracy") & (rows.skill == "all")].value
    return float(value)


def test_a_run_shows_the_mean_over_skills(folder: Path, tmp_path: Path) -> None:
    options = ["model=embedded", f"model.path={folder / 'model'}", "model.frames=4", "model.device=cpu"]
    options += ["benchmark=mlvu", f"benchmark.data={folder / 'data' / 'mlvu'}", "benchmark.questions=10"]
    assert run(sweep("run", [*options, "method=dense", f"output_dir={tmp_path}"])) == 0
    rows = read_rows(tmp_path / "rows.csv")
    rows = rows[rows.metric == "accuracy"]
    (whole,) = rows[rows.skill == "all"].value
    skills = rows[rows.skill != "all"].value
    assert whole == pytest.approx(skills.mean())
    scores = [r.score for r in read_records(tmp_path)]
    assert whole != pytest.approx(100 * sum(s or 0 for s in scores) / len(scores))
    assert "Accuracy on mlvu: the mean over the skills" in (tmp_path / "table.md").read_text()


@pytest.mark.parametrize(
    ("name", "task", "right", "wrong"),
    [
        ("videomme", "videomme", "B", "C. The best answer is C."),
        ("mvbench", "mvbench_moving_count", "(B) blue", "(A) red"),
        ("mlvu", "mlvu_dev", "B) blue", ""),
        ("longvideobench", "longvideobench_val_v", "The best answer is B", "A. red"),
        ("egoschema_subset", "egoschema_subset", "B. blue", "E"),
        ("nextqa_mc", "nextqa_mc_test", "(B)", "A."),
        ("perceptiontest", "perceptiontest_val_mc", "B", "no idea"),
        ("tempcompass", "tempcompass_multi_choice", "B. it shrinks", "A"),
        ("tempcompass", "tempcompass_yes_no", "No, it does not.", "Yes"),
        ("tempcompass", "tempcompass_caption_matching", "Caption B", "Caption A: It grows."),
    ],
)
def test_right_and_wrong_by_the_tasks_own_rules(
    name: str, task: str, right: str, wrong: str, benchmark: Callable[[str], Benchmark]
) -> None:
    question = next(q for q in benchmark(name).questions if q.task == task)
    assert (benchmark(name).score(question, right), benchmark(name).score(question, wrong)) == (1, 0)


def test_a_guess_for_what_cannot_be_read_is_always_the_same(
    benchmark: Callable[[str], Benchmark], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []
    choice = random.choice
    monkeypatch.setattr(random, "choice", lambda options: drawn.append(choice(options)) or drawn[-1])
    guessing = [benchmark(name) for name in ("longvideobench", "egoschema_subset", "nextqa_mc")]
    for run_number in range(3):
        random.seed(run_number)
        state = random.getstate()
        for each in guessing:
            for q in each.questions:
                each.score(q, "hm")
        assert random.getstate() == state
    assert len(drawn) == 3 * sum(len(each.questions) for each in guessing)
    assert drawn == 3 * drawn[: len(drawn) // 3]
    assert len(set(drawn)) > 1  # not one letter for all


def test_a_judge_that_does_not_reply_is_no_wrong_answer(
    benchmark: Callable[[str], Benchmark], monkeypatch: pytest.MonkeyPatch
) -> None:
    import requests

    def unreachable(*args: Any, **kwargs: Any) -> None:
        raise requests.ConnectionError

    monkeypatch.setattr(requests, "post", unreachable)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    for q in benchmark("tempcompass").questions:
        with pytest.raises(BenchmarkError, match=rf"question '{q.id}' .* did not reply: set OPENAI_API_KEY"):
            benchmark("tempcompass").score(q, "perhaps")


def test_every_file_of_one_name_is_read(
    benchmark: Callable[[str], Benchmark], llm: VideoLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In MVBench different videos have one name, in the folders of different tasks."""
    seen: list[Path] = []
    read = runner.read_clip
    monkeypatch.setattr(runner, "read_clip", lambda path, *how: seen.append(path) or read(path, *how))
    ours = benchmark("mvbench")
    evaluate(llm, ours, DENSE, tmp_path, "p")
    assert sorted(seen) == sorted({ours.video_path(q) for q in ours.questions})
    assert [path.name for path in seen].count("video_1.mp4") == 2


def test_a_link_to_the_videos_stays_as_it_is(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """lmms-eval makes MVBench's folder of videos a link; one that is there, anew at each start, asking the hub."""
    link = tmp_path / "mvbench_video"
    link.symlink_to(folder / "home" / "mvbench_video")
    made = link.lstat()
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert Benchmark(spec(folder, "mvbench")).missing_videos() == []
    now = link.lstat()
    assert now[:7] == made[:7]  # behind it comes the time of access, which may change
    assert (now.st_mtime_ns, now.st_ctime_ns) == (made.st_mtime_ns, made.st_ctime_ns)


@pytest.mark.parametrize("name", DATA_SETS)
def test_a_missing_video_costs_its_own_questions(
    name: str, folder: Path, llm: VideoLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = shutil.copytree(folder / "home", tmp_path / "home")
    lost = home / DATA_SETS[name]().videos[0]
    shutil.rmtree(lost) if lost.is_dir() else lost.unlink()
    monkeypatch.setenv("HF_HOME", str(home))
    monkeypatch.setattr(VideoLLM, "generate", lambda *_: "A")
    benchmark = Benchmark(spec(folder, name))
    (missing,) = benchmark.missing_videos()
    assert missing.split(".")[0] == lost.stem
    records = evaluate(llm, benchmark, DENSE, tmp_path / "out", "p")
    failed = {r.question: r.error for r in records if r.error is not None and "judge" not in r.error}
    affected = [q for q in benchmark.questions if refers_to(benchmark, q, lost)]
    assert sorted(failed) == sorted(q.id for q in affected)
    for error in failed.values():
        assert lost.name in str(error)
    assert len(records) == len(benchmark.questions)


def refers_to(benchmark: Benchmark, question: Question, lost: Path) -> bool:
    try:
        return benchmark.video_path(question) == lost
    except BenchmarkError:
        return True


@pytest.mark.parametrize("name", ["videomme", "mvbench", "longvideobench"])
def test_a_wrong_split(name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)  # lmms-eval tries five times
    data = shutil.copytree(folder / "data" / name, tmp_path / name)
    card = data / "README.md"
    split = DATA_SETS[name]().parts[0].split
    card.write_text(card.read_text().replace(f"split: {split}", "split: other"))
    with pytest.raises(BenchmarkError, match=rf"data of task '.*' has no split '{split}'"):
        Benchmark(spec(folder, name, data=str(data)))


@pytest.mark.parametrize("name", DATA_SETS)
def test_a_short_count(name: str, benchmark: Callable[[str], Benchmark]) -> None:
    published = load("benchmark", name)["questions"]
    made = DATA_SETS[name]().questions
    fresh = copy(benchmark(name))  # its tasks are loaded
    fresh.spec = replace(fresh.spec, questions=published)
    vars(fresh).pop("questions", None)
    with pytest.raises(BenchmarkError, match=rf"has {made} questions, not {published}: the data is incomplete"):
        _ = fresh.questions


def test_annotations_that_are_not_there(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)
    with pytest.raises(ValueError, match=r"benchmark.data='/nowhere': no such folder"):
        spec(folder, "videomme", data="/nowhere")
    with pytest.raises(BenchmarkError, match=r"data of task 'videomme' cannot be loaded .*`mmg-bench doctor` shows"):
        Benchmark(spec(folder, "videomme", data=None))
    with pytest.raises(BenchmarkError, match=r"data of task 'mlvu_dev' cannot be loaded"):
        Benchmark(spec(folder, "mlvu", data=str(tmp_path)))


def test_annotations_of_another_version(folder: Path, tmp_path: Path) -> None:
    data = shutil.copytree(folder / "data" / "videomme", tmp_path / "another")  # a cache tells folders apart by name
    (file,) = data.glob("*/*.json")
    file.write_text(file.read_text().replace('"options"', '"the_choices"'))
    place = r"doc_to_text raised KeyError: 'options' \(/.*/videomme/utils\.py:\d+, in \w+\)"
    with pytest.raises(BenchmarkError, match=rf"data of task 'videomme' cannot be loaded \({place}\); download it"):
        Benchmark(spec(folder, "videomme", data=str(data)))


def test_ids_that_are_not_unique(folder: Path) -> None:
    with pytest.raises(
        BenchmarkError, match=r"several questions with the same id, such as 'plotQA': set benchmark.question=null"
    ):
        _ = Benchmark(spec(folder, "mlvu", question="task_type")).questions


def test_tasks_that_ask_for_something_else(folder: Path) -> None:
    other = spec(folder, "egoschema_subset", tasks=("egoschema_subset_mcppl",))
    with pytest.raises(BenchmarkError, match=r"'egoschema_subset_mcppl' has output_type='multiple_choice': only tasks"):
        Benchmark(other)
