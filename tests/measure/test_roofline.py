"""The least work, and the ceilings that turn it into a time."""

from __future__ import annotations

import pytest
import torch

from mmg_bench.cells import make_cell
from mmg_bench.measure import roofline
from mmg_bench.measure.efficiency import measure_efficiency
from mmg_bench.measure.flops import TextGeometry, flops_counted, flops_gqa
from mmg_bench.measure.latency import LatencySettings
from mmg_bench.measure.roofline import Ceilings, LanguageModel, Work, measure_ceilings
from mmg_bench.measure.workload import Workload
from mmg_bench.models.loading import VideoLLM

SMALL = LanguageModel(TextGeometry(layers=2, hidden=8, intermediate=16, kv_width=4), 50, 1000, 2)
PER_TOKEN = 2 * 8 * (8 + 4) + 3 * 8 * 16


def test_the_longer_of_the_two_times_counts() -> None:
    ceilings = Ceilings(multiply_adds_per_second=1000, bytes_per_second=100)
    assert Work(2000, 50).floor_ms(ceilings) == 2000
    assert Work(2000, 500).floor_ms(ceilings) == 5000


def test_work_by_hand() -> None:
    prefill = SMALL.prefill([3, 1], batch=2)
    # a token attends to itself and to those before: 1 + 2 + 3 and 1 pairs, two products of width 8 each
    assert prefill.multiply_adds == 2 * (4 * PER_TOKEN + (6 + 1) * 2 * 8 + 8 * 50)
    assert prefill.bytes == 1000 + 2 * (4 * 2 * 4) * 2
    step = SMALL.decode_step([3, 1], batch=2)
    assert step.multiply_adds == 2 * (2 * PER_TOKEN + (4 + 2) * 2 * 8 + 8 * 50)
    assert step.bytes == 1000 + 2 * (4 * 2 * 4) * 2


def test_work_of_a_model(llm: VideoLLM) -> None:
    model, g = LanguageModel.of(llm.adapter), TextGeometry.from_config(llm.model.config.get_text_config())
    layers = sum(p.numel() for p in llm.model.model.language_model.layers.parameters())
    assert model.weight_bytes == 4 * (layers + g.hidden + model.vocabulary * g.hidden)
    tokens = 40
    ids = torch.full((1, tokens), 7)
    counted = flops_counted(llm.model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    full = model.prefill([tokens] * g.layers, 1).multiply_adds + g.layers * tokens * (tokens - 1) * g.hidden
    assert counted == pytest.approx(full, rel=2e-3)
    assert full == flops_gqa(g, tokens) + g.hidden * model.vocabulary


def test_a_decoded_token_reads_what_the_caches_hold(llm: VideoLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """The caches that a method prunes below its stage, too; of several tokens those that the middle one sees."""
    seen: list[list[float]] = []
    monkeypatch.setattr(LanguageModel, "decode_step", lambda model, context, batch: seen.append(context) or Work(1, 1))
    settings = LatencySettings(repeats=2, warmup=0, new_tokens=3)
    cells = [make_cell("prunevid", 0.5), make_cell("fastv", 0.5)]
    measure_efficiency(llm, cells, Workload(None, "What colour?", 4), settings, Ceilings(1, 1))
    (first, *others), (most, *fewer) = seen
    assert set(others) == {first}
    assert first == int(first)  # the prompt and one token
    assert min(fewer) < most


def test_ceilings_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(roofline._SIDE, "cpu", 64)
    monkeypatch.setitem(roofline._COPY_BYTES, "cpu", 2**16)
    monkeypatch.setattr(roofline, "_fastest", lambda device, task: task() is None or 0.5)
    assert measure_ceilings(torch.device("cpu"), torch.float32) == Ceilings(2 * 64**3, 4 * 2**16)
    monkeypatch.undo()
    calls: list[int] = []
    assert roofline._fastest(torch.device("cpu"), lambda: calls.append(1)) > 0
    assert len(calls) == roofline._REPEATS + 2
