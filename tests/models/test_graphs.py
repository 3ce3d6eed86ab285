"""Prefill by CUDA graphs is the stock prefill, launch by launch. Needs a GPU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import families
from mmg_bench.measure.latency import LatencySettings, measure_cells
from mmg_bench.measure.workload import Workload, decode_steps, prefill, preprocess, random_prompt
from mmg_bench.methods.dense import Dense
from mmg_bench.methods.random import Random
from mmg_bench.models.adapter import adapter_for
from mmg_bench.models.graphs import _Recording, prefill_graphs
from mmg_bench.models.hooks import pruning
from mmg_bench.models.loading import ModelSpec, VideoLLM

SPEC = ModelSpec("embedded", "embedded", frames=4, dtype="bfloat16", device="cuda")


@pytest.mark.gpu
def test_replayed_prefills_are_the_stock_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    llm = VideoLLM(SPEC)
    workload = Workload(None, random_prompt(llm.processor.tokenizer, 8), SPEC.frames)
    encoded = llm.encode(preprocess(llm, workload.decode()), frozenset())
    inputs = workload.inputs(llm, encoded)
    methods = [Dense(), Random(0.5, seed=0), Random(0.5, seed=1), Random(0.25)]

    def answers() -> list[tuple[torch.Tensor, torch.Tensor]]:
        made = []
        for method in methods:
            with torch.inference_mode(), pruning(llm.model, method, encoded=encoded.tokens):
                out = prefill(llm, encoded, inputs)
                logits, keys = out.logits.clone(), out.past_key_values.layers[-1].keys.clone()
                decode_steps(llm, out, inputs["attention_mask"], 2)
                made.append((logits, keys))
        return made

    replays = 0
    replay = _Recording.replay

    def counted(recording: _Recording, given: dict[str, torch.Tensor]) -> Any:
        nonlocal replays
        replays += 1
        return replay(recording, given)

    monkeypatch.setattr(_Recording, "replay", counted)
    stock = answers()
    language_model = llm.adapter.language_model
    with prefill_graphs(language_model) as switch:
        for _ in range(3):  # as ever, recorded, replayed
            for (logits, keys), (seen, cached) in zip(stock, answers(), strict=True):
                assert torch.equal(logits, seen)
                assert torch.equal(keys, cached)
        assert replays >= 2 * len(methods)  # dense, too
        switch.on = False
        assert torch.equal(answers()[0][0], stock[0][0])
    assert "forward" not in vars(language_model)


def test_a_model_that_takes_more_than_embeddings_is_refused() -> None:
    model, processor = families.qwen3_vl()
    encoded = processor(text=[processor.video_token], videos=[torch.zeros(4, 3, 64, 64)], return_tensors="pt")
    refusal = pytest.raises(ValueError, match=r"graphs cannot replay Qwen3VL\w+, which also takes deepstack_visual_emb")
    with prefill_graphs(adapter_for(model).language_model), torch.inference_mode(), refusal:
        model(**encoded)


def test_graphs_need_a_gpu() -> None:
    llm = VideoLLM(replace(SPEC, device="cpu", dtype="float32"))
    workload = Workload(None, "a", SPEC.frames)
    with pytest.raises(ValueError, match=r"measure\.engine=graphs needs a CUDA device, not cpu"):
        measure_cells(llm, [], workload, LatencySettings(engine="graphs"))
    with pytest.raises(ValueError, match="choose one of stock, graphs"):
        LatencySettings(engine="fast")  # type: ignore[arg-type]
