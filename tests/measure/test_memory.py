"""Memory: what was allocated, and by what."""

from __future__ import annotations

import gc
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mmg_bench.cells import make_cell
from mmg_bench.measure.memory import PeakMemory, cache_bytes, memory_values, weight_bytes
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


def test_bytes_of_a_cache_are_those_of_all_its_layers() -> None:
    """Of attention, of linear attention by each name that transformers has given its states, and of neither yet."""
    half, full = torch.zeros(2, 3, dtype=torch.bfloat16), torch.zeros(5)
    layers = [
        SimpleNamespace(keys=half, values=half[:1]),
        SimpleNamespace(conv_states={0: full, 1: None}, recurrent_states={0: half}),
        SimpleNamespace(conv_states=full, recurrent_states=half),
        SimpleNamespace(keys=None, values=None),
    ]
    assert cache_bytes(SimpleNamespace(layers=layers)) == (12 + 6) + (20 + 12) + (20 + 12)


def memory_of(
    llm: VideoLLM, name: str, ratio: float, batch: int = 1, new_tokens: int = 2, watched: Any = None
) -> dict[str, int]:
    workload = Workload(None, "What colour?", 4, batch)
    pixels = preprocess(llm, workload.decode())
    with PeakMemory(llm.device) as encoding:
        encoded = llm.encode(pixels, frozenset())
    inputs = workload.inputs(llm, encoded)
    return memory_values(llm, make_cell(name, ratio), encoded, watched or encoding, inputs, new_tokens)


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


def test_decoding_takes_activations_and_the_kv_cache_is_that_of_the_prefill(llm: VideoLLM) -> None:
    short, long = (memory_of(llm, "uniform", 0.25, new_tokens=steps) for steps in (1, 200))
    assert long["kv_cache_bytes"] == short["kv_cache_bytes"]
    assert long["activation_memory_bytes"] > short["activation_memory_bytes"]


def test_what_encoding_left_is_held_while_answering(llm: VideoLLM) -> None:
    none, much = (
        memory_of(llm, "dense", 1.0, watched=SimpleNamespace(peak=peak, kept=kept))
        for peak, kept in ((0, 0), (1000 * MIB, 7 * MIB))
    )
    assert none["peak_memory_bytes"] == sum(
        none[f"{part}_bytes"] for part in ("weights", "activation_memory", "kv_cache")
    )
    assert much["activation_memory_bytes"] - none["activation_memory_bytes"] == pytest.approx(7 * MIB, rel=0.01)
    assert none["activation_memory_bytes"] > 64 * 64 * 4  # at least the visual tokens inside one MLP
    assert (none["encode_memory_bytes"], much["encode_memory_bytes"]) == (0, 1000 * MIB)
    assert much["peak_memory_bytes"] == much["weights_bytes"] + 1000 * MIB


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
