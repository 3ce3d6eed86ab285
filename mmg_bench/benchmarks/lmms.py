"""Any lmms-eval video task as a stream of questions, with its documents, prompts and scoring unchanged."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mmg_bench.benchmarks.reserved import ALL, AVERAGE, NO_BENCHMARK
from mmg_bench.benchmarks.task_faults import BenchmarkError, is_local, told, unreadable, why_not_loaded
from mmg_bench.options import check_path, check_text, check_whole

SCORE_FIELDS = ("score", "correct", "rating")
"""Fields that may hold the score if a task's `process_results` gives more than a number."""
ANSWER_FIELDS = (("pred_answer", "answer"), ("parsed_pred", "answer"), ("pred", "ground_truth"), ("pred", "answer"))
"""Pairs of fields that may hold the parsed and the correct answer if there is no score."""
AVERAGES = ("questions", "skills")
REASONING = '[["<think>", "</think>"], ["<analysis>", "</analysis>"]]'
"""Tags between which text counts as reasoning and is not scored: the default of lmms-eval's command."""
MISSING = (SystemExit, FileNotFoundError)
"""What tasks raise if a video is missing: several call sys.exit."""


class _MissingVideo(BenchmarkError):
    """A task reported that a video is missing."""


@dataclass(frozen=True)
class BenchmarkSpec:
    """A benchmark: lmms-eval tasks, and the meaning of their documents' columns."""

    name: str
    tasks: tuple[str, ...]
    """lmms-eval tasks (not groups), evaluated one after another."""
    video: str
    """Column that identifies the video: questions about the same video are not independent."""
    question: str | None = None
    """Column of the question's id; None uses the row number."""
    skill: str | None = None
    """Column of the question's kind; None uses the task's name."""
    questions: int | None = None
    """Number of questions in the published benchmark; any other count is an error."""
    average: str = "questions"
    """What the benchmark's accuracy averages over: `questions`, or `skills` (each skill has the same weight)."""
    include_path: str | None = None
    """Folder of task files that lmms-eval does not ship."""
    data: str | None = None
    """Folder with a copy of the annotations, used instead of the hub's data set."""

    def __post_init__(self) -> None:
        check_text("benchmark.name", self.name)
        if self.name in (AVERAGE, NO_BENCHMARK):
            raise ValueError(f"benchmark.name={self.name!r}: result rows reserve this name; choose another")
        for option, column in self.columns.items():
            check_text(option, column)
        if self.questions is not None:
            check_whole("benchmark.questions", self.questions, 1, ", or null for any number")
        if self.average not in AVERAGES:
            raise ValueError(f"benchmark.average={self.average!r}: choose {' or '.join(AVERAGES)}")
        if self.include_path is not None and not check_path("benchmark.include_path", self.include_path).is_dir():
            raise ValueError(
                f"benchmark.include_path={self.include_path!r}: no such folder; give the one with the task's yaml "
                "file, or null to use lmms-eval's own tasks"
            )
        if self.data is not None and not Path(self.data).expanduser().is_dir():
            raise ValueError(
                f"benchmark.data={self.data!r}: no such folder; correct it, or give null to use the hub's data set"
            )

    @property
    def columns(self) -> dict[str, str]:
        """Option -> the column it names, for every column that a document must have."""
        others = {"benchmark.question": self.question, "benchmark.skill": self.skill}
        return {"benchmark.video": self.video, **{o: column for o, column in others.items() if column is not None}}

    @property
    def code(self) -> Path:
        """Folder with the tasks' code."""
        if self.include_path is not None:
            return Path(self.include_path).expanduser()
        import lmms_eval.tasks

        return Path(lmms_eval.tasks.__file__).parent


@dataclass(frozen=True)
class Question:
    """One question of a benchmark."""

    id: str
    video: str
    skill: str
    task: str
    doc_id: int
    prompt: str
    target: str
    generation: dict[str, Any]
    """The task's own generation arguments."""

    @cached_property
    def digest(self) -> str:
        """Changes if anything that is asked, scored or reported of the question changes."""
        return _digest([self.video, self.skill, self.task, self.prompt, self.target, self.generation])


def _digest(content: list[Any]) -> str:
    return hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest()[:12]


class Benchmark:
    """A benchmark's questions and scoring. Raises BenchmarkError if a task is unknown or its data is incomplete."""

    def __init__(self, spec: BenchmarkSpec, limit: int | None = None):
        if limit is not None:
            check_whole("limit", limit, 1, ", or null for every question")
        self.spec, self.limit = spec, limit
        self.whole: int | None = None  # number of questions before `limit`, once they are read
        self._tasks = _load_tasks(spec)

    @cached_property
    def questions(self) -> list[Question]:
        """All questions, grouped by video, in the order in which the videos first appear."""
        found = list(self._read())
        if self.spec.questions is not None and len(found) != self.spec.questions:
            raise BenchmarkError(
                f"benchmark {self.spec.name!r} has {len(found)} questions, not {self.spec.questions}: the data "
                "is incomplete or of another version; download it again, or set benchmark.questions=null for any number"
            )
        if repeated := [name for name, count in Counter(q.id for q in found).items() if count > 1]:
            raise BenchmarkError(
                f"benchmark {self.spec.name!r} has several questions with the same id, such as {repeated[0]!r}: set "
                "benchmark.question=null to number them"
            )
        if called := next((q for q in found if q.skill == ALL), None):
            raise BenchmarkError(
                f"benchmark {self.spec.name!r}: question {called.id!r} has the skill {ALL!r}, the name that result "
                "rows use for all skills together: rename the skill"
            )
        order = {video: number for number, video in reversed(list(enumerate(q.video for q in found)))}
        found.sort(key=lambda q: order[q.video])
        self.whole = len(found)
        return found[: self.limit]

    @cached_property
    def digest(self) -> str:
        """Changes if any of the questions does."""
        return _digest([(question.id, question.digest) for question in self.questions])

    def _read(self) -> Iterator[Question]:
        columns = self.spec.columns
        for name, task in self._tasks.items():
            for doc_id, doc in enumerate(task.eval_docs_no_media):
                for option, column in columns.items():
                    if column not in doc:
                        raise BenchmarkError(
                            f"{option}={column!r}: task {name!r} has no such column; it has {', '.join(doc)}"
                        )
                    if doc[column] is None:  # such as a field missing in a line of a file
                        raise BenchmarkError(
                            f"{option}={column!r}: document {doc_id} of task {name!r} has no value there: fill it in"
                        )
                number = str(doc_id) if self.spec.question is None else str(doc[self.spec.question])
                prompt, target = self._asked(task, doc, f"question {number!r} of task {name!r}")
                yield Question(
                    id=number if len(self._tasks) == 1 else f"{name}/{number}",
                    video=str(doc[self.spec.video]),
                    skill=name if self.spec.skill is None else str(doc[self.spec.skill]),
                    task=name,
                    doc_id=doc_id,
                    prompt=prompt,
                    target=target,
                    generation=dict(task.config.generation_kwargs),
                )

    def _asked(self, task: Any, doc: dict[str, Any], what: str) -> tuple[str, str]:
        """The prompt and the target of a document."""
        try:
            prompt, target = task.fewshot_context(doc, 0), task.doc_to_target(doc)
        except Exception as error:
            raise BenchmarkError(f"{what}: {told(error, self.spec.code)}") from error
        if not isinstance(prompt, str):
            raise BenchmarkError(f"{what}: doc_to_text returned {prompt!r}, which is not a string")
        for key in ("doc_to_text", "doc_to_target"):
            if _says_none(getattr(task.config, key), doc):
                raise BenchmarkError(
                    f"{what}: {key} uses a column that has no value there: fill it in (in a csv file, NA and None "
                    "also count as no value)"
                )
        if target is None:
            raise BenchmarkError(f"{what}: doc_to_target returned None, so no answer can be right")
        return prompt, str(target)

    def video_path(self, question: Question) -> Path:
        """The question's video file, which need not exist. Raises BenchmarkError if the task says it is missing."""
        task = self._tasks[question.task]
        try:
            visuals = task.doc_to_visual(task.eval_docs[question.doc_id])
        except MISSING as missing:
            raise _MissingVideo(f"question {question.id!r}: {missing}") from None
        except Exception as error:
            raise BenchmarkError(f"question {question.id!r}: {told(error, self.spec.code)}") from error
        return single_video(visuals, f"question {question.id!r}: task {question.task!r}")

    def missing_videos(self) -> list[str]:
        """Names of the questions' video files that are missing."""
        from loguru import logger

        logger.disable("")  # some tasks also log each of them
        try:
            firsts = {(q.task, q.video): q for q in reversed(self.questions)}
            return sorted({name for q in firsts.values() if (name := self._missing_video(q)) is not None})
        finally:
            logger.enable("")

    def _missing_video(self, question: Question) -> str | None:
        try:
            path = self.video_path(question)
        except _MissingVideo:
            return question.video
        return None if path.exists() else path.name

    def score(self, question: Question, text: str) -> float:
        """The task's score of a generated text, in 0..1, from its own filters and `process_results`."""
        task = self._tasks[question.task]
        what = f"question {question.id!r} of task {question.task!r}"
        doc = task.eval_docs_no_media[question.doc_id]
        with _same_guesses(f"{question.task}/{question.doc_id}"):
            try:
                results = _once(type(task).process_results)(task, doc, _read_answer(task, doc, text))
            except Exception as error:
                raise BenchmarkError(f"{what}: {told(error, self.spec.code)}") from error
        metrics = [m["metric"] for m in task.config.metric_list]
        if not isinstance(results, Mapping):
            raise BenchmarkError(f"{what}: process_results returned {results!r}, not a dict with one of {metrics}")
        for metric in metrics:
            if metric in results:
                return _as_score(results[metric], f"metric {metric!r} of {what}")
        raise BenchmarkError(f"{what}: process_results returned {sorted(results)}, but none of the metrics {metrics}")


def _read_answer(task: Any, doc: dict[str, Any], text: str) -> list[Any]:
    """The part of a generated text that a task scores, as in lmms-eval: filtered, and without text marked as reasoning.

    Filters get every answer with its document, which some of them read.
    """
    from lmms_eval.api.reasoning import parse_reasoning_tags_config, strip_reasoning_tags
    from lmms_eval.filters.transformation import StripThinkingFilter

    tags = parse_reasoning_tags_config(REASONING, task.config.reasoning_tags)
    before = [StripThinkingFilter()] if tags is None and task.config.auto_strip_thinking else []
    answers: Any = [[text]]
    for step in (*before, *task._filters[0].filters):
        answers = step.apply(answers, [doc])

    def stripped(answer: Any) -> Any:
        return strip_reasoning_tags(answer, tags) if isinstance(answer, str) and tags is not None else answer

    return [[stripped(a) for a in answer] if isinstance(answer, list) else stripped(answer) for answer in answers]


def _says_none(template: Any, doc: Mapping[str, Any]) -> bool:
    """Whether a column name or template from a task's configuration uses a column that has no value."""
    from lmms_eval.utils import env

    if not isinstance(template, str):
        return False
    if template in doc:
        return doc[template] is None
    said: list[Any] = []

    def note(value: Any) -> Any:
        said.append(value)
        return value

    env.overlay(finalize=note).from_string(template).render(**doc)
    return any(value is None for value in said)


def single_video(visuals: Any, who: str) -> Path:
    """The single video file in what a task shows the model. Raises BenchmarkError for anything else."""
    if not isinstance(visuals, list | tuple) or len(visuals) != 1 or not isinstance(visuals[0], str | Path):
        raise BenchmarkError(f"{who} must give a single video file, not {visuals!r}")
    return Path(visuals[0])


def _as_score(value: Any, what: str) -> float:
    score = _number(value, what)
    if not 0 <= score <= 1:
        raise BenchmarkError(f"{what} is {score:g}: a score must be in 0..1")
    return score


def _number(value: Any, what: str) -> float:
    if isinstance(value, bool | int | float):
        return float(value)
    if isinstance(value, dict):
        if value.get("match_success") is False and not value.get("chatgpt_response"):
            raise BenchmarkError(
                f"{what}: the task's rules cannot read the answer, and the judge it falls back on did not reply: set "
                "OPENAI_API_KEY (docs/lmms-eval.md)"
            )
        for field in SCORE_FIELDS:
            if field in value:
                try:
                    return float(value[field])
                except (TypeError, ValueError):  # None, or a text that is no number
                    break
        for predicted, right in ANSWER_FIELDS:
            if predicted in value and right in value:  # compared as text: a number may be given as a string
                return float(str(value[predicted]) == str(value[right]))
    raise BenchmarkError(f"cannot read a score from {what}: {value!r}")


@contextmanager
def _same_guesses(seed: str) -> Iterator[None]:
    """Make tasks that guess when they cannot parse an answer guess the same for a question in every run and cell."""
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)


def _load_tasks(spec: BenchmarkSpec) -> dict[str, Any]:
    from huggingface_hub.constants import HF_HOME

    # the tasks' own code reads it, and without it falls back to a folder that differs between tasks
    os.environ["HF_HOME"] = str(Path(os.environ.get("HF_HOME", HF_HOME)).expanduser())
    from lmms_eval.tasks import TaskManager
    from lmms_eval.utils import load_yaml_config

    # indexing every task that lmms-eval ships is slow, and not needed if the tasks' files are found
    folders = [str(Path(spec.include_path).expanduser())] if spec.include_path else _task_folders(spec.tasks)
    try:
        manager = TaskManager(include_path=folders, include_defaults=not folders)
    except Exception as error:
        if spec.include_path is None:
            raise
        raise BenchmarkError(
            f"benchmark.include_path={spec.include_path!r}: lmms-eval reads every yaml file there, and one is faulty: "
            f"{unreadable(spec.code, error)}: correct it, or move it elsewhere"
        ) from error
    override = {} if spec.data is None else {"dataset_path": str(Path(spec.data).expanduser())}
    tasks = {}
    for name in spec.tasks:
        if name not in manager.all_subtasks:
            raise BenchmarkError(_no_such_task(name, spec, manager))
        file = manager.task_index[name]["yaml_path"]
        settings = {**load_yaml_config(file, mode="simple"), **override}
        try:
            changes = {**override, **_leaving_links(settings)}
            with _loading_once() if is_local(settings) else nullcontext():
                (task,) = manager.load_config({"task": name, **changes}).values()
        except (Exception, SystemExit) as error:
            own = None if spec.include_path is None else Path(file)
            code = Path(file).parent if own is None else spec.code
            raise BenchmarkError(why_not_loaded(name, error, settings, code, own)) from error
        _check_one_answer(name, task)
        _check_metrics(name, task)
        if spec.include_path is not None:
            _check_columns(name, task)
        tasks[name] = task
    return tasks


def _once(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method without lmms-eval's four retries, two seconds apart: a bug does not go away."""
    return method.__wrapped__ if hasattr(method, "retry") else method  # type: ignore[attr-defined]


@contextmanager
def _loading_once() -> Iterator[None]:
    """Make lmms-eval try only once to load data: local files are either there or not."""
    from lmms_eval.api.task import ConfigurableTask

    download = ConfigurableTask.download
    ConfigurableTask.download = _once(download)
    try:
        yield
    finally:
        ConfigurableTask.download = download


def _leaving_links(settings: dict[str, Any]) -> dict[str, Any]:
    """A change that stops a task from making a link to its folder of videos if that is there; else no change.

    lmms-eval makes the link anew whenever it loads the task. Meanwhile the videos are gone for other processes. It also
    asks the hub where the link should point, even if the user made it.
    """
    options = settings.get("dataset_kwargs")
    if not isinstance(options, dict) or not options.get("create_link"):
        return {}
    if not Path(os.environ["HF_HOME"], options["cache_dir"]).exists():
        return {}
    return {"dataset_kwargs": {**options, "create_link": False}}


def _task_folders(names: tuple[str, ...]) -> list[str]:
    """Folders of lmms-eval's own files of the tasks; none if any of the tasks is not found."""
    import lmms_eval.tasks

    line = re.compile(rf"^task:\s*[\"']?({'|'.join(map(re.escape, names))})[\"']?\s*$", re.MULTILINE)
    found: dict[str, str] = {}
    for file in sorted(Path(lmms_eval.tasks.__file__).parent.rglob("*.yaml")):
        for name in line.findall(file.read_text(encoding="utf-8")):
            found[name] = str(file.parent)
    return sorted(set(found.values())) if set(found) == set(names) else []


def _no_such_task(name: str, spec: BenchmarkSpec, manager: Any) -> str:
    if spec.include_path is not None:
        return (
            f"benchmark.include_path={spec.include_path!r}: no yaml file there has the line `task: {name}`; the tasks "
            f"there are: {', '.join(manager.all_subtasks) or 'none'}; correct benchmark.tasks or the file"
        )
    near = [t for t in manager.all_tasks if name.split("_")[0] in t][:12]
    known = f"similar ones are: {', '.join(near)}" if near else "see `lmms-eval --tasks list`"
    return f"lmms-eval has no task {name!r}; {known}; for a task of your own, set benchmark.include_path to its folder"


def _check_one_answer(name: str, task: Any) -> None:
    """Raise BenchmarkError unless a task asks for one generated answer, without examples."""
    wanted = {"output_type": ("generate_until",), "num_fewshot": (None, 0), "repeats": (1,)}
    for key, accepted in wanted.items():
        if (value := getattr(task.config, key)) not in accepted:
            raise BenchmarkError(
                f"task {name!r} has {key}={value!r}: only tasks that generate one answer, without examples, can be run"
            )


def _check_metrics(name: str, task: Any) -> None:
    """Raise BenchmarkError if nothing says which of a task's results is the score."""
    if not task.config.metric_list:
        raise BenchmarkError(
            f"task {name!r} has no metric_list: name its metric in its yaml file, such as `metric_list: [{{metric: "
            "exact_match}]`"
        )


def _check_columns(name: str, task: Any) -> None:
    """Raise BenchmarkError if lmms-eval would use the name of a missing column as the text itself."""
    for key in ("doc_to_text", "doc_to_target"):
        value = getattr(task.config, key)
        if isinstance(value, str) and value.isidentifier() and value not in task.features:
            raise BenchmarkError(
                f"task {name!r} has {key}: {value}, but its data has no such column; it has {', '.join(task.features)}"
                f': correct its yaml file; if the word itself is meant, write "{{{{{value!r}}}}}"'
            )
