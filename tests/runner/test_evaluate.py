"""The one pass: resume, faults as records, and what a kill leaves behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

import families
from mmg_bench.benchmarks import lmms
from mmg_bench.benchmarks.embedded.render import write_video
from mmg_bench.benchmarks.embedded.world import make_world
from mmg_bench.benchmarks.lmms import BenchmarkError, Question
from mmg_bench.benchmarks.video import read_clip
from mmg_bench.cells import Cell, make_cell
from mmg_bench.measure.fidelity import Fidelity, fidelity
from mmg_bench.methods.random import Random
from mmg_bench.models.loading import VideoLLM
from mmg_bench.models.spec import ModelSpec
from mmg_bench.runner import evaluate as runner
from mmg_bench.runner.evaluate import Shard, evaluate
from mmg_bench.runner.records import Record, read_records
from mmg_bench.tokens import PrunedTokens, VideoTokens, keep

CELLS = [make_cell("dense", 1.0), make_cell("mmg_vid", 0.25), make_cell("random", 0.1, "contiguous")]


class ThreeVideos:
    """A benchmark of three videos with two questions each; the last video's file is damaged."""

    def __init__(self, folder: Path):
        self.spec = lmms.BenchmarkSpec("three", ("three",), video="video")
        self.folder = folder
        self.questions = [
            Question(f"{v}-{i}", f"v{v}", "skill", "three", 2 * v + i, text, "red", {"max_new_tokens": 2})
            for v in range(3)
            for i, text in enumerate(("What colour is the star?", "What colour is the ring?"))
        ]
        for v in range(2):
            write_video(make_world("train", v, sampled=4), folder / f"v{v}.mp4", size=32)
        (folder / "v2.mp4").write_bytes(b"not a video")

    def video_path(self, question: Question) -> Path:
        return self.folder / f"{question.video}.mp4"

    def score(self, question: Question, text: str) -> float:
        return float(text == question.target)


@pytest.fixture(scope="module")
def llm(tiny_folder: Path) -> VideoLLM:
    return VideoLLM(ModelSpec("tiny", str(tiny_folder), frames=4, dtype="float32", device="cpu"))


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return ThreeVideos(tmp_path_factory.mktemp("videos"))


def fidelity_of(llm: VideoLLM, benchmark: Any, record: Record) -> Fidelity:
    """What the tokens that the record's method keeps are worth."""
    (path,) = {benchmark.video_path(q) for q in benchmark.questions if q.id == record.question}
    clip = read_clip(path, 4)
    (tokens,) = llm.encode(llm.preprocess(clip.pixels, clip.timing), set()).tokens
    (cell,) = [cell for cell in CELLS if cell.label == record.method]
    return fidelity(tokens.flat, cell.method.prune(tokens).features)


def test_every_question_in_every_cell(llm: VideoLLM, benchmark: Any, tmp_path: Path) -> None:
    records = evaluate(llm, benchmark, CELLS, tmp_path, "p")
    assert len(records) == 6 * len(CELLS)
    assert {r.method for r in records} == {"dense", "mmg_vid", "random(positions=contiguous)"}
    good = [r for r in records if r.error is None]
    assert len(good) == 4 * len(CELLS)
    realised = {r.method: r.realised_tokens for r in good}
    assert realised == {"dense": 64, "mmg_vid": 16, "random(positions=contiguous)": 6}
    for r in good:
        expected = None if r.method == "dense" else fidelity_of(llm, benchmark, r)
        assert (r.coverage, r.quantisation_error) == (expected or (None, None))
    for r in records:
        if r.video == "v2":
            assert r.coverage is r.quantisation_error is None
            assert r.error is not None
            assert "v2.mp4" in r.error
            assert "download it again" in r.error
            assert r.score is None
            assert r.prediction is None


def test_frames_follow_the_length_of_a_video(llm: VideoLLM, benchmark: Any, tmp_path: Path) -> None:
    from mmg_bench.benchmarks.video import read_clip

    sampled = VideoLLM(replace(llm.spec, frames=32, fps=3))
    records = evaluate(sampled, benchmark, CELLS[:1], tmp_path, "p")
    good = [r for r in records if r.error is None]
    assert len(good) == 4
    for record in good:
        (question,) = [q for q in benchmark.questions if q.id == record.question]
        frames = len(read_clip(benchmark.video_path(question), 32, 3).pixels)
        assert frames not in (4, 32)
        assert record.realised_tokens == 16 * frames
        assert record.frames == 32


@pytest.mark.parametrize("options", [{"fps": 3}, {"fps": 4}, {"min_pixels": 64}, {"max_pixels": 4096}])
def test_other_frames_are_answered_anew(options: dict[str, Any], benchmark: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    for part in families.BUILDERS["qwen2_5_vl"]():
        part.save_pretrained(tmp_path / "model")
    spec = ModelSpec("tiny", str(tmp_path / "model"), frames=32, dtype="float32", device="cpu")
    keys = []
    for each in (spec, replace(spec, **options), spec):
        records = evaluate(VideoLLM(each), benchmark, CELLS[:1], tmp_path / "out", "p")
        keys.append({record.key for record in records})
    assert keys[0] == keys[2]
    assert not keys[0] & keys[1]
    assert len(read_records(tmp_path / "out")) == 2 * len(records)


def test_dense_answers_are_those_of_stock_generate(llm: VideoLLM, benchmark: Any, tmp_path: Path) -> None:
    from mmg_bench.benchmarks.video import read_frames

    records = {r.question: r for r in evaluate(llm, benchmark, CELLS[:1], tmp_path, "p")}
    question = benchmark.questions[0]
    conversation = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": question.prompt}]}]
    text = llm.processor.apply_chat_template(conversation, add_generation_prompt=True)
    frames = read_frames(benchmark.video_path(question), 4)
    inputs = llm.processor(text=text, videos=[frames], return_tensors="pt")
    ids = llm.model.generate(**inputs, max_new_tokens=2, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert records[question.id].prediction == llm.processor.tokenizer.decode(ids, skip_special_tokens=True).strip()
    assert records[question.id].prompt_tokens == inputs["input_ids"].shape[1]


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "qwen3_5", "glm4v", "internvl", "smolvlm"])
def test_other_families_answer_as_stock_generate(name: str, benchmark: Any, tmp_path: Path) -> None:
    from decord import VideoReader
    from transformers.video_utils import VideoMetadata

    torch.manual_seed(0)
    model, processor = families.BUILDERS[name]()
    for part in (model, processor):
        part.save_pretrained(tmp_path / "model")
    llm = VideoLLM(ModelSpec(name, str(tmp_path / "model"), frames=4, dtype="float32", device="cpu"))
    records = evaluate(llm, benchmark, CELLS, tmp_path / "out", "p")
    good = [r for r in records if r.error is None]
    assert len(good) == 4 * len(CELLS)  # one of the three videos is damaged
    for cell in CELLS:
        realised = {r.realised_tokens for r in good if r.method == cell.label}
        assert realised == {round(cell.method.retention_ratio * r.total_tokens) for r in good}
    question = benchmark.questions[0]
    reader = VideoReader(str(benchmark.video_path(question)))
    indices, fps = np.linspace(0, len(reader) - 1, 4).astype(int).tolist(), reader.get_avg_fps()
    chat = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": question.prompt}]}]
    inputs = processor(
        text=[processor.apply_chat_template(chat, add_generation_prompt=True)],
        videos=[reader.get_batch(indices).asnumpy()],
        video_metadata=[VideoMetadata(len(reader), fps, duration=len(reader) / fps, frames_indices=indices)],
        do_sample_frames=False,
        return_tensors="pt",
    )
    inputs.pop("token_type_ids", None)
    ids = model.generate(**inputs, max_new_tokens=2, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    (dense,) = [r for r in good if r.method == "dense" and r.question == question.id]
    assert dense.prediction == processor.tokenizer.decode(ids, skip_special_tokens=True).strip()
    assert dense.prompt_tokens == inputs["input_ids"].shape[1]


class Killed(BaseException):
    """Stands for a signal: not an Exception, so that nothing may swallow it."""


def test_a_killed_run_goes_on(llm: VideoLLM, benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = evaluate(llm, benchmark, CELLS, tmp_path / "whole", "p")
    answers: Iterator[int] = iter(range(100))
    generate = VideoLLM.generate

    def dies(self: VideoLLM, *args: Any) -> str:
        if next(answers) == 7:
            raise Killed
        return generate(self, *args)

    monkeypatch.setattr(VideoLLM, "generate", dies)
    with pytest.raises(Killed):
        evaluate(llm, benchmark, CELLS, tmp_path / "cut", "p")
    assert len(read_records(tmp_path / "cut")) == 7
    with (tmp_path / "cut" / "records.jsonl").open("a") as f:
        f.write('{"model": "ti')  # the line in flight
    before = next(answers)
    records = evaluate(llm, benchmark, CELLS, tmp_path / "cut", "p")
    assert next(answers) - before - 1 == 4 * len(CELLS) - 7  # nothing is answered twice
    assert sorted(records, key=lambda r: r.key) == sorted(expected, key=lambda r: r.key)


def test_a_finished_run_touches_no_video(
    llm: VideoLLM, benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = ThreeVideos(tmp_path)
    write_video(make_world("train", 2, sampled=4), tmp_path / "v2.mp4", size=32)
    first = evaluate(llm, whole, CELLS, tmp_path / "out", "p")
    assert all(r.error is None for r in first)
    monkeypatch.setattr(runner, "read_clip", lambda *_: pytest.fail("decoded again"))
    assert evaluate(llm, whole, CELLS, tmp_path / "out", "other") == first


def test_other_attention_answers_anew(llm: VideoLLM, benchmark: Any, tmp_path: Path) -> None:
    evaluate(llm, benchmark, CELLS[:1], tmp_path, "p")
    eager = VideoLLM(replace(llm.spec, attn_implementation="eager"))
    records = evaluate(eager, benchmark, CELLS[:1], tmp_path, "q")
    assert {r.provenance for r in records} == {"q"}


def test_what_asks_something_else_is_answered_anew(llm: VideoLLM, tmp_path: Path) -> None:
    benchmark: Any = ThreeVideos(tmp_path)
    first = evaluate(llm, benchmark, CELLS[:1], tmp_path, "p")
    benchmark.questions[0] = replace(benchmark.questions[0], prompt="What colour is the moon?")
    benchmark.questions[1] = replace(benchmark.questions[1], generation={"max_new_tokens": 1})
    second = {r.question: r for r in evaluate(llm, benchmark, CELLS[:1], tmp_path, "q")}
    assert len(second) == len(first) == 6
    good = {name: r.provenance for name, r in second.items() if r.error is None}
    assert good == {"0-0": "q", "0-1": "q", "1-0": "p", "1-1": "p"}


def test_another_template_answers_anew(llm: VideoLLM, benchmark: Any, tiny_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    same = VideoLLM(replace(llm.spec, path=str(folder)))
    assert (same.weights, same.settings) == (llm.weights, llm.settings)
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    other = VideoLLM(replace(llm.spec, path=str(folder)))
    evaluate(llm, benchmark, CELLS[:1], tmp_path, "p")
    assert {r.provenance for r in evaluate(other, benchmark, CELLS[:1], tmp_path, "q")} == {"q"}


def test_answers_are_greedy_unless_the_task_says_otherwise(llm: VideoLLM, benchmark: Any, tmp_path: Path) -> None:
    llm = VideoLLM(llm.spec)
    llm.model.get_output_embeddings().weight.data *= 0.01  # as it is, sampling finds the likeliest words, too
    expected = [r.prediction for r in evaluate(llm, benchmark, CELLS[:1], tmp_path / "greedy", "p")]
    llm.model.generation_config.do_sample = True
    for seed in range(4):
        torch.manual_seed(seed)
        records = evaluate(llm, benchmark, CELLS[:1], tmp_path / str(seed), "p")
        assert [r.prediction for r in records] == expected


def test_failed_answers_are_tried_again(llm: VideoLLM, tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    benchmark = ThreeVideos(videos)
    first = evaluate(llm, benchmark, CELLS[:1], tmp_path, "p")
    assert sum(r.error is not None for r in first) == 2
    write_video(make_world("train", 2, sampled=4), videos / "v2.mp4", size=32)
    second = evaluate(llm, benchmark, CELLS[:1], tmp_path, "p")
    assert all(r.error is None for r in second)
    assert [r for r in second if r.video != "v2"] == [r for r in first if r.video != "v2"]


def test_one_faulty_answer_spoils_no_other(
    llm: VideoLLM, benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate = VideoLLM.generate

    def fails_on_rings(self: VideoLLM, inputs: Any, *rest: Any) -> str:
        if "ring" in self.processor.tokenizer.decode(inputs["input_ids"][0]):
            raise RuntimeError("out of memory")
        return generate(self, inputs, *rest)

    monkeypatch.setattr(VideoLLM, "generate", fails_on_rings)
    monkeypatch.setattr(runner, "PATIENCE", 2)  # which an answer between the faults renews
    records = evaluate(llm, benchmark, CELLS, tmp_path, "p")
    assert all("v2.mp4" in str(r.error) for r in records if r.video == "v2")
    records = [r for r in records if r.video != "v2"]
    line = fails_on_rings.__code__.co_firstlineno + 2
    place = f"RuntimeError: out of memory (test_evaluate.py:{line}, in fails_on_rings)"
    assert {r.question: r.error for r in records} == {
        "0-0": None,
        "0-1": place,
        "1-0": None,
        "1-1": place,
    }


@dataclass(frozen=True)
class Changes(Random):
    """Changes the video that it is given."""

    def select(self, tokens: VideoTokens) -> PrunedTokens:
        pruned = super().select(tokens)
        tokens.features.zero_()
        return pruned


@dataclass(frozen=True)
class Looks(Random):
    """Notes whether there is anything in the videos that it is given."""

    saw: ClassVar[list[bool]] = []

    def select(self, tokens: VideoTokens) -> PrunedTokens:
        self.saw.append(bool(tokens.features.any()))
        return super().select(tokens)


def test_a_method_that_changes_a_video_is_told_and_spoils_no_other(
    llm: VideoLLM, benchmark: Any, tmp_path: Path
) -> None:
    alone = evaluate(llm, benchmark, CELLS, tmp_path / "alone", "p")
    broken, behind = (Cell(cls(retention_ratio=ratio), "original") for cls, ratio in ((Changes, 0.25), (Looks, 0.35)))
    Looks.saw.clear()
    beside = evaluate(llm, benchmark, [broken, *CELLS, behind], tmp_path / "beside", "p")
    assert len(Looks.saw) == 2
    assert all(Looks.saw)
    beside = [r for r in beside if r.retention_ratio != 0.35]
    told = [r for r in beside if r.cell == beside[0].cell and r.video != "v2"]
    assert len(told) == 4
    assert all("Inplace update" in str(r.error) and "in select" in str(r.error) for r in told)
    assert [r for r in beside if r.error is None] == [r for r in alone if r.error is None]


@dataclass(frozen=True)
class Asks(Random):
    """Keeps a run of tokens that depends on the question."""

    needs: ClassVar[frozenset[str]] = frozenset({"query"})
    kept: ClassVar[list[torch.Tensor]] = []

    def select(self, tokens: VideoTokens) -> PrunedTokens:
        assert tokens.query is not None
        first = int(tokens.query.double().abs().sum() * 1e3) % (tokens.total - self.budget(tokens))
        pruned = keep(tokens, torch.arange(first, first + self.budget(tokens)))
        self.kept.append(pruned.features)
        return pruned


def test_what_is_kept_for_a_question_is_compared_for_that_question(
    llm: VideoLLM, benchmark: Any, tmp_path: Path
) -> None:
    """Four questions on two videos."""
    records = evaluate(llm, benchmark, [Cell(Asks(retention_ratio=0.1), "original")], tmp_path, "p")
    good = [r for r in records if r.error is None]
    assert len({r.quantisation_error for r in good}) == 4
    for record, kept in zip(good, Asks.kept, strict=True):
        (path,) = {benchmark.video_path(q) for q in benchmark.questions if q.id == record.question}
        clip = read_clip(path, 4)
        (tokens,) = llm.encode(llm.preprocess(clip.pixels, clip.timing), set()).tokens
        assert (record.coverage, record.quantisation_error) == fidelity(tokens.flat, kept)


class FiveVideos(ThreeVideos):
    """As many times the first of them, behind the damaged one."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        first = self.questions[:2]
        copies = [replace(q, id=f"c{v}-{i}", video=f"c{v}") for v in range(4) for i, q in enumerate(first)]
        self.questions = [*self.questions[4:], *copies]

    def video_path(self, question: Question) -> Path:
        return self.folder / ("v2.mp4" if question.video == "v2" else "v0.mp4")


def test_a_cell_that_does_nothing_but_fail_is_given_up(
    llm: VideoLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark: Any = FiveVideos(tmp_path)
    selected: list[int] = []

    def fails(self: Random, tokens: VideoTokens) -> PrunedTokens:
        selected.append(tokens.total)
        raise RuntimeError(f"fault {len(selected)}")

    monkeypatch.setattr(Random, "select", fails)
    monkeypatch.setattr(runner, "PATIENCE", 2)
    records = {(r.method, r.question): r for r in evaluate(llm, benchmark, CELLS, tmp_path / "out", "p")}
    random = CELLS[2].label
    damaged = ["2-0", "2-1"]  # their video is: no fault of the cell
    errors = [str(records[random, q.id].error) for q in benchmark.questions]
    place = f"test_evaluate.py:{fails.__code__.co_firstlineno + 2}, in fails"
    why = f"all answers about 2 videos in a row failed in the same way (RuntimeError at {place})"
    assert all("v2.mp4" in error for error in errors[:2])
    assert errors[2:] == [*(f"RuntimeError: fault {n} ({place})" for n in range(1, 5)), *[f"not asked: {why}"] * 4]
    assert len(selected) == 4
    assert f"giving up on {random} at R = 10 %: {why}" in capsys.readouterr().out
    others = [r for (method, _), r in records.items() if method != random and r.video != "v2"]
    assert len(others) == 16
    assert all(r.error is None for r in others)
    monkeypatch.undo()
    again = evaluate(llm, benchmark, CELLS, tmp_path / "out", "p")
    assert {r.question for r in again if r.error is not None} == set(damaged)


def test_a_cell_with_different_faults_is_asked_on(
    llm: VideoLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    benchmark: Any = FiveVideos(tmp_path)
    kinds = iter([KeyError, TypeError] * 4)  # one a question

    def fails(text: str) -> None:
        raise next(kinds)(text)

    def scores(question: Question, text: str) -> float:
        try:
            fails(text)
        except Exception as error:
            raise BenchmarkError("process_results raised something") from error
        return 0.0

    monkeypatch.setattr(benchmark, "score", scores)
    monkeypatch.setattr(runner, "PATIENCE", 2)
    records = evaluate(llm, benchmark, CELLS[:1], tmp_path / "out", "p")
    assert [r.error for r in records[2:]] == ["BenchmarkError: process_results raised something"] * 8


def test_a_cell_that_answers_late_is_asked_on(llm: VideoLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not before all questions about a video have failed."""
    benchmark: Any = FiveVideos(tmp_path)
    generate, failing = VideoLLM.generate, iter([True, True, True, False, False, False, False, False])

    def fails(self: VideoLLM, *args: Any) -> str:
        if next(failing):
            raise RuntimeError("busy")
        return generate(self, *args)

    monkeypatch.setattr(VideoLLM, "generate", fails)
    monkeypatch.setattr(runner, "PATIENCE", 2)
    records = evaluate(llm, benchmark, CELLS[:1], tmp_path / "out", "p")
    assert [r.error is None for r in records[2:]] == [False] * 3 + [True] * 5


def test_what_one_method_needs_takes_no_other_down(
    llm: VideoLLM, benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = VideoLLM.encode

    def fails(self: VideoLLM, inputs: Any, needs: Any) -> Any:
        if needs:
            raise RuntimeError("out of memory")
        return encode(self, inputs, needs)

    monkeypatch.setattr(VideoLLM, "encode", fails)
    records = evaluate(llm, benchmark, [*CELLS, make_cell("visionzip", 0.25)], tmp_path, "p")
    failed = {r.method for r in records if r.error is not None and r.video != "v2"}
    assert failed == {"visionzip"}
    assert len([r for r in records if r.error is None]) == 4 * len(CELLS)


def test_the_answer_is_kept_where_the_scoring_fails(
    llm: VideoLLM, benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails_on_rings(question: Question, text: str) -> float:
        if "ring" in question.prompt:
            raise BenchmarkError("no score")
        return 1.0

    whole = {(r.cell, r.question): r.prediction for r in evaluate(llm, benchmark, CELLS, tmp_path / "whole", "p")}
    with monkeypatch.context() as patch:
        patch.setattr(benchmark, "score", fails_on_rings)
        records = evaluate(llm, benchmark, CELLS, tmp_path, "p")
    assert {(r.cell, r.question): r.prediction for r in records} == whole
    failed = [r for r in records if r.error == "BenchmarkError: no score"]
    assert {r.question for r in failed} == {"0-1", "1-1"}
    assert {r.score for r in failed} == {None}
    again = evaluate(llm, benchmark, CELLS, tmp_path, "p")  # such a question counts as one without an answer
    assert {r.question for r in again if r.error is not None} == {"2-0", "2-1"}
    monkeypatch.setattr(VideoLLM, "generate", lambda *_: 1 / 0)  # before there is an answer, none is recorded
    records = evaluate(llm, benchmark, CELLS, tmp_path / "none", "p")
    assert {r.prediction for r in records} == {None}


def test_shards_divide_the_videos(llm: VideoLLM, benchmark: Any, tmp_path: Path) -> None:
    first = evaluate(llm, benchmark, CELLS[:1], tmp_path, "p", Shard(0, 2))
    assert {r.video for r in first} == {"v0", "v2"}
    before = (tmp_path / "records-0.jsonl").read_text()
    assert len(evaluate(llm, benchmark, CELLS[:1], tmp_path, "p", Shard(1, 2))) == 6
    assert (tmp_path / "records-0.jsonl").read_text() == before  # another process may be writing there
    assert sorted(p.name for p in tmp_path.glob("records*")) == ["records-0.jsonl", "records-1.jsonl"]
    with pytest.raises(ValueError, match=r"shard.index=2, shard.count=2"):
        Shard(2, 2)


def test_a_video_that_the_task_misses_is_an_error_record(
    llm: VideoLLM, benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(question: Question) -> Path:
        raise BenchmarkError(f"question {question.id!r}: video path does not exist")

    monkeypatch.setattr(benchmark, "video_path", missing)
    records = evaluate(llm, benchmark, CELLS[:1], tmp_path, "p")
    assert [r.error for r in records if r.video == "v0"] == [
        f"BenchmarkError: question '{name}': video path does not exist" for name in ("0-0", "0-1")
    ]


def test_records_are_on_the_disk_before_the_next_answer(
    llm: VideoLLM, benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[int] = []
    generate = VideoLLM.generate

    def counts(self: VideoLLM, *args: Any) -> str:
        lines.append(len((tmp_path / "records.jsonl").read_text().splitlines()))
        return generate(self, *args)

    monkeypatch.setattr(VideoLLM, "generate", counts)
    evaluate(llm, benchmark, CELLS, tmp_path, "p")
    assert lines == list(range(4 * len(CELLS)))
    assert all(json.loads(line)["provenance"] == "p" for line in (tmp_path / "records.jsonl").open())
