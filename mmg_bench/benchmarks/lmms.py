"""Any lmms-eval video task as a stream of questions: its documents, prompts and scoring, untouched."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

ANSWER_FIELDS = (("pred_answer", "answer"), ("parsed_pred", "answer"), ("pred", "ground_truth"), ("pred", "answer"))
"""Where tasks whose `process_results` gives no score put the parsed answer and the right one."""


class BenchmarkError(ValueError):
    """A benchmark that cannot be run as configured; the message names what is wrong and the remedy."""


@dataclass(frozen=True)
class BenchmarkSpec:
    """A benchmark: lmms-eval tasks, and which columns of their documents mean what."""

    name: str
    tasks: tuple[str, ...]
    """lmms-eval tasks (not groups), evaluated one after another."""
    video: str
    """Column that tells videos apart: questions about one video are not independent."""
    question: str | None = None
    """Column of the question's id; the row number where the data set has none."""
    skill: str | None = None
    """Column of the question's kind; the task's name where the data set has none."""
    questions: int | None = None
    """How many questions the published benchmark has; another count is an error."""
    include_path: str | None = None
    """Folder of task files that lmms-eval does not ship."""


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


class Benchmark:
    """A benchmark's questions and its scoring. Raises BenchmarkError when a task is unknown or its data incomplete."""

    def __init__(self, spec: BenchmarkSpec, limit: int | None = None):
        if limit is not None and limit < 1:
            raise BenchmarkError(f"limit={limit}: it must be at least 1, or null for every question")
        self.spec, self.limit = spec, limit
        self._tasks = _load_tasks(spec)

    @cached_property
    def questions(self) -> list[Question]:
        """All questions, those about one video next to each other, in the order in which the videos first appear."""
        found = list(self._read())
        if self.spec.questions is not None and len(found) != self.spec.questions:
            raise BenchmarkError(
                f"benchmark {self.spec.name!r} has {len(found)} questions here, not {self.spec.questions}: the data is "
                "incomplete or of another version; download it again, or set benchmark.questions=null to go on"
            )
        order = {video: number for number, video in reversed(list(enumerate(q.video for q in found)))}
        found.sort(key=lambda q: order[q.video])
        return found[: self.limit]

    def _read(self) -> Iterator[Question]:
        for name, task in self._tasks.items():
            for doc_id, doc in enumerate(task.eval_docs_no_media):
                for column in (self.spec.video, self.spec.question, self.spec.skill):
                    if column is not None and column not in doc:
                        raise BenchmarkError(
                            f"task {name!r} has no column {column!r}; it has {', '.join(doc)}: correct the config"
                        )
                number = str(doc_id) if self.spec.question is None else str(doc[self.spec.question])
                yield Question(
                    id=number if len(self._tasks) == 1 else f"{name}/{number}",
                    video=str(doc[self.spec.video]),
                    skill=name if self.spec.skill is None else str(doc[self.spec.skill]),
                    task=name,
                    doc_id=doc_id,
                    prompt=str(task.doc_to_text(doc)),
                    target=str(task.doc_to_target(doc)),
                    generation=dict(task.config.generation_kwargs),
                )

    def video_path(self, question: Question) -> Path:
        """The question's video file. Raises BenchmarkError where the task code exits because it is missing."""
        task = self._tasks[question.task]
        try:
            visuals = task.doc_to_visual(task.eval_docs[question.doc_id])
        except SystemExit as stop:  # several tasks call sys.exit for one missing video
            raise BenchmarkError(f"question {question.id!r}: {stop.code}") from None
        if len(visuals) != 1 or not isinstance(visuals[0], str | Path):
            raise BenchmarkError(
                f"question {question.id!r}: task {question.task!r} gives no single video file: {visuals!r}"
            )
        return Path(visuals[0])

    def score(self, question: Question, text: str) -> float:
        """The task's own score of a generated text, in 0..1, after the task's own filters would have passed it on."""
        task = self._tasks[question.task]
        results = task.process_results(task.eval_docs_no_media[question.doc_id], [text])
        metrics = [m["metric"] for m in task.config.metric_list]
        for metric in metrics:
            if metric in results:
                return _as_score(results[metric], f"metric {metric!r} of task {question.task!r}")
        raise BenchmarkError(f"task {question.task!r} returned {sorted(results)} and none of its metrics {metrics}")


def _as_score(value: Any, what: str) -> float:
    if isinstance(value, bool | int | float):
        return float(value)
    if isinstance(value, dict):
        if "score" in value:
            return float(value["score"])
        for predicted, right in ANSWER_FIELDS:
            if predicted in value and right in value:
                return float(value[predicted] == value[right])
    raise BenchmarkError(f"cannot tell right from wrong in {what}: {value!r}")


def _load_tasks(spec: BenchmarkSpec) -> dict[str, Any]:
    from lmms_eval.tasks import TaskManager

    # indexing every task that lmms-eval ships takes long: not needed for tasks of our own
    manager = TaskManager(include_path=spec.include_path, include_defaults=spec.include_path is None)
    tasks = {}
    for name in spec.tasks:
        if name not in manager.all_subtasks:
            near = [t for t in manager.all_tasks if name.split("_")[0] in t][:12]
            raise BenchmarkError(
                f"lmms-eval has no task {name!r}; "
                + (f"near are: {', '.join(near)}" if near else "see `lmms-eval --tasks list`")
            )
        try:
            tasks.update(manager.load_task_or_group(name))
        except (Exception, SystemExit) as error:
            raise BenchmarkError(
                f"the data of task {name!r} cannot be loaded ({type(error).__name__}: {error}); download it, or point "
                "HF_HOME at a folder that holds it (docs/reproducing.md)"
            ) from error
    return tasks
