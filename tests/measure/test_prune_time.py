"""Timing the methods themselves: the synthetic video, the rounds, rows and table."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from mmg_bench import config as cfg
from mmg_bench.commands import bench_methods
from mmg_bench.commands.bench_methods import run
from mmg_bench.measure import prune_time
from mmg_bench.measure.failures import Failure
from mmg_bench.measure.prune_time import (
    GRAM,
    PruneTimes,
    PruneTimeSettings,
    measure_methods,
    time_rounds,
)
from mmg_bench.measure.synthetic import synthetic_video
from mmg_bench.methods.base import Method
from mmg_bench.methods.random import Random
from mmg_bench.methods.registry import get_method
from mmg_bench.report.prune_time import CITED_MS, prune_time_rows, prune_time_table
from mmg_bench.report.rows import read_rows
from mmg_bench.report.table import to_markdown
from mmg_bench.tokens import PrunedTokens, VideoTokens, keep, keep_all

CPU = torch.device("cpu")


def test_the_made_video_has_the_structure_of_one() -> None:
    video = synthetic_video(48, (6, 7), 64)
    assert video.features.shape == (48, 42, 64)
    for field in fields(video):
        value = getattr(video, field.name)
        assert value is not None, field.name
        if isinstance(value, torch.Tensor):
            assert value.isfinite().all()
            assert value.std() > 0
            assert torch.equal(value, getattr(synthetic_video(48, (6, 7), 64), field.name))
    torch.testing.assert_close(video.attention.sum(1), torch.ones(48))
    assert not torch.equal(video.features, synthetic_video(48, (6, 7), 64, seed=1).features)
    cosine = torch.cosine_similarity(video.features[1:], video.features[:-1], dim=-1)  # [47, 42]
    cuts = cosine.median(1).values < 0.9
    assert 2 < cuts.sum() < 24  # scenes
    assert 0.2 < (cosine[~cuts] > 0.98).float().mean() < 0.8  # some positions are still, others move
    unlike = torch.cosine_similarity(video.features[0, :1], video.features[0, 1:], dim=-1)
    assert unlike.min() < 0.9


def test_rounds_interleave_and_the_slow_sit_out() -> None:
    calls: list[str] = []

    def slow() -> None:
        calls.append("slow")
        time.sleep(0.05)

    def fail(name: str, failure: Failure) -> None:
        pytest.fail(f"{name}: {failure.why}")

    work = {"fast": lambda: calls.append("fast"), "slow": slow}
    ms = time_rounds(work, CPU, repeats=6, warmup=2, seconds=0.04, fail=fail)
    assert calls == [*["fast", "slow"], "fast", *["fast", "slow"] * 3, *["fast"] * 3]
    assert np.isfinite(ms["fast"]).all()
    assert np.isfinite(ms["slow"]).tolist() == [True] * 3 + [False] * 3
    assert ms["slow"][0] > 40 > ms["fast"].min()


@dataclass(frozen=True)
class Inside(Method):
    """Leaves every token, as methods do that prune inside the language model."""

    name: ClassVar[str] = "inside"

    def select(self, tokens: VideoTokens) -> PrunedTokens:
        return keep_all(tokens)


@dataclass(frozen=True)
class Greedy(Method):
    """Wants more memory than there is for longer videos."""

    name: ClassVar[str] = "greedy"

    def select(self, tokens: VideoTokens) -> PrunedTokens:
        if tokens.frames > 2:
            raise torch.OutOfMemoryError("no memory left")
        return keep(tokens, torch.arange(self.budget(tokens)))


@dataclass(frozen=True)
class Broken(Method):
    """Has a fault, which shows once it was called so often."""

    name: ClassVar[str] = "broken"
    sound_calls: ClassVar[list[int]] = [0]

    def select(self, tokens: VideoTokens) -> PrunedTokens:
        if not self.sound_calls[0]:
            raise RuntimeError("a fault of its own")
        self.sound_calls[0] -= 1
        return keep(tokens, torch.arange(self.budget(tokens)))


def test_what_cannot_be_timed_is_told_apart() -> None:
    methods = {"random": Random(0.5), "inside": Inside(0.5), "greedy": Greedy(0.5)}
    settings = PruneTimeSettings(frames=(2, 3), tokens=6, width=4, repeats=3, warmup=0, device="cpu")
    found = {(r.name, r.frames): r for r in itertools.chain(*measure_methods(methods, settings))}
    assert set(found) == {(name, t) for name in methods for t in (2, 3)}
    assert {len(r.gram) for r in found.values()} == {3}
    assert found["random", 3].realised_tokens == 9
    assert len(found["random", 2].ms) == len(found["greedy", 2].ms) == 3
    assert found["inside", 2].realised_tokens == found["inside", 2].total_tokens == 12
    assert found["greedy", 3].realised_tokens is None
    assert len(found["inside", 2].ms) == len(found["greedy", 3].ms) == 0
    assert found["greedy", 3].failure is not None
    assert found["greedy", 3].failure.why == "out of memory in pruning 3 frames: no memory left"


@pytest.mark.parametrize(("tokens", "ratio"), [(1, 0.5), (6, 0.99), (6, 1.0)])
def test_work_that_leaves_every_token_is_work(tokens: int, ratio: float) -> None:
    """So small a video, or so high a ratio, loses no token: a method before the LLM is timed, one inside it is not."""
    methods = {"random": Random(ratio), "inside": Inside(ratio), "fastv": get_method("fastv", retention_ratio=ratio)}
    settings = PruneTimeSettings(frames=(1,), tokens=tokens, width=4, repeats=3, warmup=0, device="cpu")
    (found,) = measure_methods(methods, settings)
    assert [r.realised_tokens for r in found] == [tokens] * 3
    assert [len(r.ms) for r in found] == [3, 0, 0]


@pytest.mark.parametrize("sound_calls", [0, 1, 3])
def test_a_method_that_fails_is_told_of_and_the_others_are_timed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], sound_calls: int
) -> None:
    """In the first call, in the warm-up, or in a round that counts."""
    monkeypatch.setattr(Broken, "sound_calls", [sound_calls])
    settings = PruneTimeSettings(frames=(2,), tokens=6, width=4, repeats=3, warmup=1, device="cpu")
    (found,) = measure_methods({"broken": Broken(0.5), "random": Random(0.5)}, settings)
    broken, random = found
    assert broken.failure is not None
    assert not broken.failure.memory
    assert broken.failure.why.startswith("RuntimeError: a fault of its own (test_prune_time.py:")
    assert (len(broken.ms), broken.realised_tokens) == (0, 6 if sound_calls else None)
    assert random.failure is None
    assert np.isfinite(random.ms).all()
    told = capsys.readouterr().out
    assert told.count("cannot be measured") == 1
    assert told.startswith(
        "broken of 2 frames cannot be measured: RuntimeError: a fault of its own (test_prune_time.py"
    )
    assert told.endswith("; fix this, or leave the method out of `methods`\n")
    rows = prune_time_rows(found, model="m", retention_ratio=0.5, provenance="key")
    (row,) = [r for r in rows.itertuples() if r.method == "broken"]
    assert (row.metric, np.isnan(row.value), row.n, row.n_errors) == ("prune_ms", True, 0, 1)


def test_without_its_yardstick_nothing_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(prune_time, "_gram", fails)
    settings = PruneTimeSettings(frames=(2,), tokens=6, width=4, repeats=3, warmup=1, device="cpu")
    with pytest.raises(
        RuntimeError, match=r"^the Gram product of 2 frames cannot be timed: out of memory.*no room; cho"
    ):
        next(measure_methods({"random": Random(0.5)}, settings))


def test_the_command_ends_with_what_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Broken, "sound_calls", [0])
    small = {"frames": (2, 3), "tokens": 4, "width": 8, "repeats": 3, "warmup": 0}

    def quick(methods: dict[str, Method], settings: PruneTimeSettings) -> Iterator[list[PruneTimes]]:
        methods = {"broken": Broken(0.5), "greedy": Greedy(0.5), "uniform": methods["uniform"]}
        return measure_methods(methods, replace(settings, **small))

    monkeypatch.setattr(bench_methods, "measure_methods", quick)
    assert run(cfg.composed("bench_methods", [])) == 2  # out of memory is a result
    assert not (tmp_path / "results").exists()  # not whole
    out = tmp_path / "outputs" / "bench_methods"
    rows = read_rows(out / "rows.csv")
    assert rows[(rows.method == "uniform") & (rows.metric == "prune_ms")].value.gt(0).sum() == 2
    assert set(rows[rows.method == "broken"].n_errors) == {1}
    table = (out / "table.md").read_text()
    assert table.count("| failed |") == 2
    assert table.count("| out of memory |") == 1
    assert "- broken, 3 frames: RuntimeError: a fault of its own (test_prune_time.py:" in table
    end = capsys.readouterr().out.splitlines()[-2:]
    assert end[0].startswith("failed: broken, 2 frames, broken, 3 frames: RuntimeError: a fault of its own (test_pru")
    assert end[1] == "2 of 6 were not timed."


def test_rows_and_table() -> None:
    gram = np.array([1.0, 2.0, 4.0])
    results = [
        PruneTimes("mmg_vid", 32, 100, 25, gram * 1.5, gram),
        PruneTimes("fastvid", 32, 100, 25, np.array([10.0, 20.0, np.nan]), gram),
        PruneTimes("fastv", 32, 100, 100, np.empty(0), gram),
        PruneTimes("divprune", 32, 100, 25, gram, gram),
        PruneTimes("mmg_vid", 128, 400, 100, gram * 6, gram * 4),
        PruneTimes("fastvid", 128, 400, 100, gram, gram * 4),
        PruneTimes("fastv", 128, 400, 400, np.empty(0), gram * 4),
        PruneTimes("divprune", 128, 400, None, np.empty(0), gram * 4, Failure("out of memory", True)),
    ]
    given = {"retention_ratio": 0.25, "provenance": "key"}
    rows = prune_time_rows(results, model="synthetic 196 x 3584", **given)
    found = {(r.method, r.frames, r.metric, r.source): r for r in rows.itertuples()}
    ratio = found["mmg_vid", 32, "gram_ratio", "measured"]  # by round: the medians' ratio would be the same, p5 not
    assert (ratio.value, ratio.ci_low, ratio.ci_high, ratio.n, ratio.realised_tokens) == (1.5, 1.5, 1.5, 3, 25)
    assert found["fastvid", 32, "prune_ms", "measured"].value == 15
    assert found["fastvid", 32, "prune_ms", "measured"].n == 2
    assert found["fastvid", 32, "prune_ms", "cited"].value == CITED_MS["fastvid"]
    assert found["mmg_vid", 128, "frames_growth", "measured"].value == 4
    assert ("divprune", 128, "frames_growth", "measured") not in found
    assert found["divprune", 128, "prune_ms", "measured"].n_errors == 1
    nothing = found["fastv", 128, "prune_ms", "measured"]  # which is not to be measured yet
    assert (np.isnan(nothing.value), nothing.n, nothing.n_errors, nothing.realised_tokens) == (True, 0, 0, 400)
    entry = {"device": "d", "dtype": "float32", "date": "x", "commit": "c", "command": "do", "threads": 2}
    table = to_markdown([prune_time_table(rows, {"key": {**entry, "torch_device": "cpu"}})])
    line = {name: row for row in table.splitlines() if (name := row.split("|")[1:2] and row.split("|")[1].strip())}
    assert line[GRAM].split("|")[2:7] == [" 2.00 [1.10, 3.80] ", " 1 ", " 8.00 [4.40, 15.20] ", " 1 ", " 4.00 "]
    assert " 1.50 [1.50, 1.50] " in line["mmg_vid"]
    assert line["fastv"].count("none before the LLM") == 2
    assert line["divprune"].count("out of memory") == 1
    assert line["fastvid"].endswith("| 6.1 |")
    assert "`perf_counter`, 2 threads" in table
    assert "linear growth is 4" in table
    assert "CUDA events" in to_markdown([prune_time_table(rows, {"key": {**entry, "torch_device": "cuda"}})])
    for other in (
        prune_time_rows(results, model="synthetic 12 x 8", **given),
        prune_time_rows(results[4:], model="synthetic 196 x 3584", **given),
    ):
        assert set(other.source) == {"measured"}
        assert "Cited" not in to_markdown([prune_time_table(other, {"key": {**entry, "torch_device": "cpu"}})])


def test_the_command_writes_rows_table_and_provenance(tmp_path: Path) -> None:
    options = ["frames=[2,4,2]", "tokens=12", "width=8", "repeats=3", "warmup=0", "device=cpu", f"out={tmp_path}"]
    wanted = "methods=[uniform,pooled,{name: mmg_vid, tau: 0.5},uniform]"
    assert run(cfg.composed("bench_methods", [*options, wanted])) == 0
    with pytest.raises(ValueError, match=r"methods: pool: no method is called 'pool'; did you mean pooled\? choose"):
        run(cfg.composed("bench_methods", [*options, "methods=[pool]"]))
    rows = read_rows(tmp_path / "rows.csv")
    assert set(rows.method) == {GRAM, "uniform", "pooled", "mmg_vid(tau=0.5)"}
    assert not rows.duplicated(["method", "frames", "metric"]).any()
    assert set(rows.realised_tokens.dropna()) == {24, 48, 6, 12}
    assert (rows.value[rows.metric == "prune_ms"] > 0).all()
    (key,) = set(rows.provenance)
    assert f'"{key}"' in (tmp_path / "provenance.json").read_text()
    assert "| pooled |" in (tmp_path / "table.md").read_text()


def test_only_the_whole_takes_the_place_of_the_kept_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    small = {"frames": (2,), "tokens": 4, "width": 8, "repeats": 3, "warmup": 0}

    def quick(methods: dict[str, Method], settings: PruneTimeSettings) -> Iterator[list[PruneTimes]]:
        return measure_methods({"uniform": methods["uniform"]}, replace(settings, **small))

    monkeypatch.setattr(bench_methods, "measure_methods", quick)
    run(cfg.composed("bench_methods", ["repeats=4"]))
    assert not (tmp_path / "results").exists()
    assert (tmp_path / "outputs" / "bench_methods" / "table.md").exists()
    run(cfg.composed("bench_methods", []))
    assert (tmp_path / "results" / "bench_methods" / "table.md").exists()


def test_what_was_timed_stays_when_the_rest_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(frames: int, *of: Any) -> VideoTokens:
        if frames == 4:
            raise KeyboardInterrupt
        return synthetic_video(frames, *of)

    monkeypatch.setattr(prune_time, "synthetic_video", stopped)
    options = ["frames=[2,4]", "tokens=12", "width=8", "repeats=3", "warmup=0", "device=cpu", f"out={tmp_path}"]
    with pytest.raises(KeyboardInterrupt):
        run(cfg.composed("bench_methods", [*options, "methods=[uniform]"]))
    rows = read_rows(tmp_path / "rows.csv")
    assert set(rows.frames) == {2}
    assert set(rows.method) == {GRAM, "uniform"}
    assert set(rows.provenance) == set(json.loads((tmp_path / "provenance.json").read_text()))
    assert "| uniform |" in (tmp_path / "table.md").read_text()


def test_the_page_of_mmg_vid_says_what_was_measured() -> None:
    root = Path(__file__).parents[2]
    page = " ".join((root / "docs" / "methods" / "mmg_vid.md").read_text().split())

    def at(folder: str, metric: str) -> list[str]:
        rows = read_rows(root / "results" / folder / "rows.csv")
        rows = rows[(rows.method == "mmg_vid") & (rows.metric == metric)].set_index("frames")
        return [f"{rows.value[t]:.2f}" for t in (32, 128)]

    few, many = at("bench_methods", "gram_ratio")
    assert f"takes {few} times as long as that Gram product in one piece at 32 frames, {many} times at 128" in page
    few, many = at("bench_methods_xeon", "gram_ratio")
    assert f"and {few} and {many} times on an Intel Xeon" in page
    few, many = at("h200/bench_methods", "prune_ms")
    assert f"takes {few} ms at 32 frames and {many} ms at 128" in page


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"frames": ()}, r"frames=\[\]"),
        ({"frames": (0, 4)}, "frames=0: it must be a whole number, at least 1"),
        ({"frames": ("abc",)}, "frames='abc': it must be a whole number, at least 1"),
        ({"repeats": 2}, "repeats=2: it must be a whole number, at least 3"),
        ({"seconds": "long"}, "seconds='long': it must be a number, at least 0"),
        ({"tokens": 0}, "tokens=0"),
        ({"dtype": "int9"}, "dtype='int9'"),
    ],
)
def test_wrong_settings_are_named(options: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        PruneTimeSettings(**options)  # type: ignore[arg-type]


def test_the_grid_is_the_squarest() -> None:
    assert [PruneTimeSettings(tokens=n).grid for n in (196, 12, 7, 1)] == [(14, 14), (3, 4), (1, 7), (1, 1)]
