"""Latency of one question, stage by stage, with dense and every cell interleaved.

A run of its own: nothing is scored, and in every round the video is decoded, preprocessed and encoded anew. Prefill is
one forward call of the whole model on encoded video, up to the first token's logits; pruning happens inside it and is
taken out into its own stage.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from mmg_bench.benchmarks.video import read_frames
from mmg_bench.models.hooks import pruning
from mmg_bench.models.loading import Encoded, VideoLLM
from mmg_bench.runner.cells import Cell

STAGES = ("decode_ms", "preprocess_ms", "encode_ms", "prune_ms", "prefill_ms", "decode_token_ms")
SPEEDUPS = {
    "prefill_speedup": ("prune_ms", "prefill_ms"),
    "ttft_speedup": ("encode_ms", "prune_ms", "prefill_ms"),
    "e2e_speedup": STAGES,
}
"""Speed-up against dense -> the stages whose sum it compares."""


@dataclass(frozen=True)
class LatencySettings:
    """How often to measure."""

    repeats: int = 20
    """Rounds; each takes every cell once, dense first."""
    warmup: int = 3
    """Rounds before those."""
    new_tokens: int = 8
    """Decoding steps whose mean is `decode_token_ms`."""

    def __post_init__(self) -> None:
        for name, low in (("repeats", 2), ("warmup", 0), ("new_tokens", 1)):
            if getattr(self, name) < low:
                raise ValueError(f"measure.{name}={getattr(self, name)}: it must be at least {low}")


@dataclass(frozen=True)
class CellTimes:
    """Milliseconds of each stage in each round, `[repeats]` a stage."""

    stages: dict[str, NDArray[np.float64]]
    realised_tokens: int

    def total(self, names: Sequence[str]) -> NDArray[np.float64]:
        """Sum of some stages in each round."""
        return np.sum([self.stages[name] for name in names], axis=0)

    def quantile(self, stage: str, q: float) -> float:
        """Quantile of one stage over the rounds."""
        return float(np.quantile(self.stages[stage], q))


def measure_cells(
    llm: VideoLLM, cells: Sequence[Cell], video: Path, prompt: str, settings: LatencySettings
) -> list[CellTimes]:
    """Time every cell on one question about one video; the first cell should be dense."""
    rounds: list[list[dict[str, float]]] = [[] for _ in cells]
    realised = [0] * len(cells)
    needs = frozenset().union(*(cell.method.needs for cell in cells))
    for number in tqdm(range(-settings.warmup, settings.repeats), desc="latency", unit="round"):
        shared: dict[str, float] = {}
        with _Clock(llm, shared, "decode_ms"):
            frames = read_frames(video, llm.spec.frames)
        with _Clock(llm, shared, "preprocess_ms"):
            pixels = llm.preprocess(frames)
        with _Clock(llm, shared, "encode_ms"):
            encoded = llm.encode(pixels, frozenset())
        if needs:  # timed without what only some methods ask of the tower, then made once more with it
            encoded = llm.encode(pixels, needs)
        inputs = llm.tokenize(prompt, encoded.tokens)
        for i, cell in enumerate(cells):
            times, realised[i] = _answer(llm, cell, encoded, inputs, settings.new_tokens)
            if number >= 0:
                rounds[i].append({**shared, **times})
    return [
        CellTimes({stage: np.array([r[stage] for r in cell]) for stage in STAGES}, count)
        for cell, count in zip(rounds, realised, strict=True)
    ]


def _answer(
    llm: VideoLLM, cell: Cell, encoded: Encoded, inputs: dict[str, torch.Tensor], new_tokens: int
) -> tuple[dict[str, float], int]:
    """Prune, prefill and decode once."""
    times: dict[str, float] = {}
    mask = inputs["attention_mask"]
    with torch.inference_mode(), pruning(llm.model, cell.method, cell.positions, encoded=encoded.tokens) as run:
        with _Clock(llm, times, "forward"):
            out = llm.model(**inputs, **encoded.arguments, use_cache=True, logits_to_keep=1)
            token = out.logits[:, -1:].argmax(-1)
        with _Clock(llm, times, "decoding"):
            for _ in range(new_tokens):
                mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
                step = mask.sum(-1, keepdim=True) - 1
                out = llm.model(
                    input_ids=token,
                    attention_mask=mask,
                    position_ids=step,
                    past_key_values=out.past_key_values,
                    use_cache=True,
                )
                token = out.logits[:, -1:].argmax(-1)
    prune = 1000 * sum(video.prune_seconds for video in run.report)
    return {
        "prune_ms": prune,
        "prefill_ms": times["forward"] - prune,
        "decode_token_ms": times["decoding"] / new_tokens,
    }, sum(video.realised_tokens for video in run.report)


class _Clock:
    """Milliseconds between entry and exit, all work queued on the device included."""

    def __init__(self, llm: VideoLLM, into: dict[str, float], name: str):
        self.device, self.into, self.name = llm.device, into, name

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def __enter__(self) -> None:
        self.start = self._now()

    def __exit__(self, *_: object) -> None:
        self.into[self.name] = 1000 * (self._now() - self.start)


def speedup(dense: CellTimes, cell: CellTimes, names: Sequence[str], seed: int = 0) -> tuple[float, float, float]:
    """Ratio of median times dense / cell, and its 95 % interval by resampling whole rounds (10,000 times)."""
    a, b = dense.total(names), cell.total(names)
    picks = np.random.default_rng(seed).integers(len(a), size=(10_000, len(a)))
    ratios = np.median(a[picks], axis=1) / np.median(b[picks], axis=1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(np.median(a) / np.median(b)), float(low), float(high)
