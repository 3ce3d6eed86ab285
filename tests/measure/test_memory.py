"""Memory: what was allocated, and by what."""

from __future__ import annotations

import gc

import pytest
import torch

from mmg_bench.cells import make_cell
from mmg_bench.measure.memory import PeakMemory, memory_values, weight_bytes
from mmg_bench.measure.workload import Workload, preprocess
from mmg_bench.models.loading import VideoLLM

MIB = 2**20


def test_peak_and_what_is_kept() -> None:
    with PeakMemory(torch.device("cpu")) as memory:
        kept = torch.ones(MIB // 4)
        short = torch.ones(3 * MIB // 4)
        del short
        other = torch.ones(2 * MIB // 4)
    assert memory.kept == pytest.approx(3 * MIB, rel=0.01)
    assert memory.peak == pytest.approx(4 * MIB, rel=0.01)
    del kept, other


def test_of_a_gpu_what_was_left_to_the_garbage_collector_before_does_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without one at hand: a stand-in that counts objects."""
    alive = {"count": 0}

    class Held:
        def __init__(self) -> None:
            self.own = self
            alive["count"] += 1

        def __del__(self) -> None:
            alive["count"] -= 1

    for name in ("synchronize", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda device: None)
    for name in ("memory_allocated", "max_memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda device: alive["count"])
    gc.disable()
    try:
        for _ in range(4):
            Held()
        with PeakMemory(torch.device("cuda")) as memory:
            gc.collect()
            kept = Held()
    finally:
        gc.enable()
    assert memory.kept == memory.peak == 1
    del kept


def test_weights_count_once(llm: VideoLLM) -> None:
    embeddings = llm.model.get_input_embeddings().weight
    assert llm.model.get_output_embeddings().weight is embeddings
    saved = sum(t.numel() for name, t in llm.model.state_dict().items() if name != "lm_head.weight")
    assert weight_bytes(llm.model) == pytest.approx(4 * saved, rel=0.01)  # buffers that are not saved


def memory_of(llm: VideoLLM, name: str, ratio: float, batch: int = 1) -> dict[str, int]:
    workload = Workload(None, "What colour?", 4, batch)
    pixels = preprocess(llm, workload.decode())
    with PeakMemory(llm.device) as encoding:
        encoded = llm.encode(pixels, frozenset())
    inputs = workload.inputs(llm, encoded)
    return memory_values(llm, make_cell(name, ratio), encoded, encoding, inputs, new_tokens=2)


def test_memory_of_a_cell(llm: VideoLLM) -> None:
    config = llm.model.config.get_text_config()
    width = config.num_key_value_heads * config.hidden_size // config.num_attention_heads
    found = {}
    for name, ratio in (("dense", 1.0), ("uniform", 0.25)):
        values = memory_of(llm, name, ratio)
        assert values["peak_memory_bytes"] >= values["weights_bytes"] + values["kv_cache_bytes"]
        assert values["encode_memory_bytes"] > 4 * 4 * 64 * 16 * 4  # at least one hidden state of the tower
        found[name] = values
    one_token = 2 * config.num_hidden_layers * width * 4
    assert found["dense"]["kv_cache_bytes"] - found["uniform"]["kv_cache_bytes"] == 48 * one_token
    assert found["dense"]["activation_memory_bytes"] > found["uniform"]["activation_memory_bytes"] > 0
    batch = memory_of(llm, "dense", 1.0, batch=3)
    assert batch["kv_cache_bytes"] == 3 * found["dense"]["kv_cache_bytes"]


def test_a_model_whose_numbers_overflow_is_not_measured(llm: VideoLLM) -> None:
    head = llm.model.get_output_embeddings().weight
    before = head[0, 0].item()
    with torch.no_grad():
        head[0, 0] = torch.nan
    try:
        with pytest.raises(ValueError, match="NaN or infinite logits in float32"):
            memory_of(llm, "dense", 1.0)
    finally:
        with torch.no_grad():
            head[0, 0] = before
