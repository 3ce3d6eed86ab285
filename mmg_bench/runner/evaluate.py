"""The one pass over a benchmark: each video decoded and encoded once, then every question answered in every cell."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from mmg_bench.benchmarks.lmms import Benchmark, BenchmarkError, Question
from mmg_bench.benchmarks.video import VideoError, read_clip
from mmg_bench.cells import Cell, needs_of
from mmg_bench.contract import tensors
from mmg_bench.faults import place_of, told
from mmg_bench.measure.fidelity import Fidelity, fidelity
from mmg_bench.models.hooks import pruning
from mmg_bench.models.loading import Encoded, VideoLLM
from mmg_bench.options import check_whole
from mmg_bench.runner.lines import LineFile
from mmg_bench.runner.records import Record, read_records
from mmg_bench.tokens import VideoTokens

PATIENCE = 5
"""A cell is given up once all its answers about this many videos in a row failed in the same way."""
_PLAIN = (VideoError, BenchmarkError)
"""Faults whose messages name the remedy."""


@dataclass(frozen=True)
class Shard:
    """Which part of the videos this worker takes."""

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        check_whole("shard.count", self.count, 1)
        check_whole("shard.index", self.index, 0)
        if self.index >= self.count:
            raise ValueError(f"shard.index={self.index}, shard.count={self.count}: need 0 <= index < count")


def evaluate(
    llm: VideoLLM,
    benchmark: Benchmark,
    cells: Sequence[Cell],
    folder: Path,
    provenance: str,
    shard: Shard | None = None,
) -> list[Record]:
    """Answer every question in every cell, appending to `folder`; answers already recorded there are not repeated.

    Questions that failed in an earlier call are tried again. If a question fails, its record has `error` set. A cell
    that does nothing but fail is given up (`PATIENCE`): its other questions get such records without being asked.
    Returns the records of the given cells.
    """
    shard = shard or Shard()
    run = _Pass(llm, benchmark, provenance)
    name = f"records-{shard.index}.jsonl" if shard.count > 1 else "records.jsonl"
    keys = {key_of(cell, llm, benchmark): cell for cell in cells}
    done = {r.key for r in read_records(folder) if r.error is None}
    videos = [(video, list(group)) for video, group in itertools.groupby(benchmark.questions, key=lambda q: q.video)]
    todo: list[tuple[str, Work]] = []
    for video, questions in videos[shard.index :: shard.count]:
        left = {key: [q for q in questions if (key, q.id, q.digest) not in done] for key in keys}
        if pending := {key: (keys[key], some) for key, some in left.items() if some}:
            todo.append((video, pending))
    total = sum(len(some) for _, work in todo for _, some in work.values())
    with LineFile(folder / name) as file, tqdm(total=total, unit="answer", smoothing=0.02, disable=not total) as bar:
        for video, work in todo:
            bar.set_description(f"video {video}", refresh=False)
            for record in run.video(work):
                file.append([asdict(record)])
                bar.update()
    return collect(llm, benchmark, cells, folder)


def collect(llm: VideoLLM, benchmark: Benchmark, cells: Sequence[Cell], folder: Path) -> list[Record]:
    """The records in `folder` that belong to the given cells and the benchmark's questions."""
    keys = [key_of(cell, llm, benchmark) for cell in cells]
    wanted = {(key, q.id, q.digest) for key, q in itertools.product(keys, benchmark.questions)}
    return [r for r in read_records(folder) if r.key in wanted]


def key_of(cell: Cell, llm: VideoLLM, benchmark: Benchmark) -> str:
    """The key of a cell's records: covers everything that determines its answers except the question."""
    return cell.key(
        model=llm.spec.name,
        weights=llm.weights_for(cell.method.needs),
        settings=llm.settings,
        frames=llm.spec.frames,
        dtype=llm.spec.dtype,
        attention=llm.model.config._attn_implementation,
        benchmark=benchmark.spec.name,
        **llm.spec.set_options,
    )


Work = dict[str, tuple[Cell, list[Question]]]
"""Key of a cell -> the cell and its unanswered questions."""


@dataclass
class _Faults:
    """Faults of a cell since its last answer that are of one kind and not the video's."""

    kind: tuple[str, str]
    """The class of the fault, and where it was raised."""
    videos: set[str]


@dataclass
class _Pass:
    llm: VideoLLM
    benchmark: Benchmark
    provenance: str
    faults: dict[str, _Faults] = field(default_factory=dict)
    """Key of a cell -> its faults."""
    given_up: dict[str, str] = field(default_factory=dict)
    """Key of a cell that does nothing but fail -> why."""

    def video(self, work: Work) -> Iterable[Record]:
        """All questions about one video id, file by file: a benchmark's tasks may use one id for several files."""
        files: dict[Path, Work] = {}
        for key, (cell, questions) in work.items():
            self.give_up(key, cell)
            for question in questions:
                if key in self.given_up:
                    yield self.record(key, cell, question, error=self.given_up[key])
                    continue
                try:
                    path = self.benchmark.video_path(question)
                except Exception as error:
                    yield self.record(key, cell, question, error=told(error, _PLAIN))
                else:
                    files.setdefault(path, {}).setdefault(key, (cell, []))[1].append(question)
        for path, part in files.items():
            yield from self.file(path, part)

    def file(self, path: Path, work: Work) -> Iterable[Record]:
        """All questions about one video file, in every cell that still lacks them."""
        needs = needs_of(cell for cell, _ in work.values())
        try:
            clip = read_clip(path, self.llm.spec.frames, self.llm.spec.fps)
            encoded = self.llm.encode(self.llm.preprocess(clip.pixels, clip.timing), needs)
        except Exception as error:  # a fault of one video must not end the run
            modest = {key: part for key, part in work.items() if not part[0].method.needs}
            if needs and modest and not isinstance(error, VideoError):  # spare the cells without needs
                yield from self.file(path, modest)
                work = {key: part for key, part in work.items() if key not in modest}
            for key, (cell, questions) in work.items():
                for question in questions:
                    yield self.record(key, cell, question, error=self.fault(key, question, error))
            return
        for key, (cell, questions) in work.items():
            yield from self.cell(key, cell, questions, encoded)

    def cell(self, key: str, cell: Cell, questions: list[Question], encoded: Encoded) -> Iterable[Record]:
        """The questions about one encoded video in one cell."""
        own = [_copied(tokens) for tokens in encoded.tokens]  # other cells must not see what a method changes
        kept: Tensor | None = None
        left: Fidelity | None = None
        with pruning(self.llm.model, cell.method, cell.positions, encoded=own) as run:
            for question in questions:
                text = None
                try:
                    inputs = self.llm.tokenize(question.prompt, encoded.texts)
                    text = self.llm.generate(inputs, encoded, question.generation)
                    score = self.benchmark.score(question, text)
                    # most methods prune a video once for all questions
                    if run.report and kept is not run.report[0].features:
                        left = _compared(encoded.tokens[0], run.report[0].features)
                        kept = run.report[0].features
                except Exception as error:  # if scoring failed, the record keeps the answer
                    fault = self.fault(key, question, error)
                    yield self.record(key, cell, question, error=fault, prediction=text)
                    continue
                self.faults.pop(key, None)
                yield self.record(
                    key,
                    cell,
                    question,
                    prediction=text,
                    score=score,
                    realised_tokens=sum(video.realised_tokens for video in run.report),
                    total_tokens=sum(video.total_tokens for video in run.report),
                    prompt_tokens=run.prompt_tokens,
                    stages=run.stages,
                    coverage=left and left.coverage,
                    quantisation_error=left and left.quantisation_error,
                )

    def fault(self, key: str, question: Question, error: Exception) -> str:
        """The message for a fault, which is also noted unless it is the video's."""
        if not isinstance(error, VideoError):
            cause = error.__cause__ or error  # the original, if wrapped
            kind = type(cause).__name__, place_of(cause)
            if (faults := self.faults.get(key)) is None or faults.kind != kind:
                faults = self.faults[key] = _Faults(kind, set())
            faults.videos.add(question.video)
        return told(error, _PLAIN)

    def give_up(self, key: str, cell: Cell) -> None:
        """Stop asking a cell, and say so, if all answers about `PATIENCE` videos in a row failed in the same way."""
        faults = self.faults.get(key)
        if faults is None or len(faults.videos) < PATIENCE or key in self.given_up:
            return
        kind, place = faults.kind
        why = f"all answers about {PATIENCE} videos in a row failed in the same way ({kind}{place and f' at {place}'})"
        self.given_up[key] = f"not asked: {why}"
        tqdm.write(f"giving up on {cell}: {why}")

    def record(self, key: str, cell: Cell, question: Question, error: str | None = None, **outcome: Any) -> Record:
        """A record of an answer, or of the fault in its place."""
        unknown = dict.fromkeys(("prediction", "score", "realised_tokens", "total_tokens", "prompt_tokens", "stages"))
        return Record(
            model=self.llm.spec.name,
            benchmark=self.benchmark.spec.name,
            frames=self.llm.spec.frames,
            method=cell.label,
            retention_ratio=cell.method.retention_ratio,
            cell=key,
            question=question.id,
            asked=question.digest,
            video=question.video,
            skill=question.skill,
            target=question.target,
            error=error,
            provenance=self.provenance,
            **{**unknown, **outcome},
        )


def _compared(tokens: VideoTokens, kept: Tensor) -> Fidelity | None:
    """How well the kept tokens `[K, D]` stand for the video; None if all are kept."""
    return None if len(kept) == tokens.total else fidelity(tokens.flat, kept)


@torch.inference_mode()
def _copied(tokens: VideoTokens) -> VideoTokens:
    """A copy, also of inference tensors, which refuse changes in place: see `VideoLLM.generate`."""
    copies: dict[str, Any] = {name: tensor.clone() for name, tensor in tensors(tokens).items()}
    return replace(tokens, **copies)
