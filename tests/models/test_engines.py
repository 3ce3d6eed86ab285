"""Prefill by an engine is the stock prefill: CUDA graphs bit by bit, compiled within rounding."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch.torch_version import TorchVersion
from transformers import DynamicCache, masking_utils

import families
from mmg_bench.cells import make_cell
from mmg_bench.measure import latency
from mmg_bench.measure.latency import LatencySettings, check_engine, measure_cells
from mmg_bench.measure.workload import Workload, decode_steps, prefill, preprocess, random_prompt
from mmg_bench.methods.base import Method
from mmg_bench.methods.dense import Dense
from mmg_bench.methods.random import Random
from mmg_bench.models import engines
from mmg_bench.models.adapter import adapter_for
from mmg_bench.models.caches import CACHE
from mmg_bench.models.engines import Backend, Engine, attention_backend, prefill_engine
from mmg_bench.models.hooks import pruning
from mmg_bench.models.loading import VideoLLM
from mmg_bench.models.spec import ModelSpec
from mock_graphs import mock_graphs

SPEC = ModelSpec("embedded", "embedded", frames=4, dtype="bfloat16", device="cuda")
METHODS = [Dense(), Random(0.5, seed=0), Random(0.5, seed=1), Random(0.25)]
compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")


class Answers:
    """The last logits and keys of a prefill by each method, and two steps of decoding behind it."""

    def __init__(self, spec: ModelSpec):
        self.llm = VideoLLM(spec)
        workload = Workload(None, random_prompt(self.llm.processor.tokenizer, 8), spec.frames)
        self.encoded = self.llm.encode(preprocess(self.llm, workload.decode()), frozenset())
        self.inputs = workload.inputs(self.llm, self.encoded)

    def __call__(self, methods: list[Method]) -> list[tuple[torch.Tensor, ...]]:
        made = []
        for method in methods:
            with torch.inference_mode(), pruning(self.llm.model, method, encoded=self.encoded.tokens):
                out = prefill(self.llm, self.encoded, self.inputs)
                parts = out.logits.clone(), out.past_key_values.layers[-1].keys.clone()
                decode_steps(self.llm, out, self.inputs["attention_mask"], 2)
                made.append(parts)
        return made


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_replayed_prefills_are_the_stock_ones(device: str, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replays = 0
    replay = engines._Recording.replay

    def counted(recording: engines._Recording, given: dict[str, torch.Tensor]) -> Any:
        nonlocal replays
        replays += 1
        return replay(recording, given)

    monkeypatch.setattr(engines._Recording, "replay", counted)
    on_cpu = replace(SPEC, path=str(tiny_folder), device="cpu", dtype="float32")
    answers = Answers(on_cpu if device == "cpu" else SPEC)
    stock = answers(METHODS)
    language_model = answers.llm.adapter.language_model
    recorder = mock_graphs() if device == "cpu" else nullcontext()
    with recorder, prefill_engine(language_model, "graphs") as switch:
        for _ in range(3):  # as ever, recorded, replayed
            for expected, found in zip(stock, answers(METHODS), strict=True):
                assert all(map(torch.equal, found, expected))
        assert replays == 3 * len(METHODS) - 3  # dense, too; but the first of each length
        switch.on = False
        assert torch.equal(answers(METHODS)[0][0], stock[0][0])
    assert "forward" not in vars(language_model)


@pytest.mark.parametrize("family", ["llava_onevision", "qwen3_5"])
def test_a_recording_leaves_what_it_was_given_and_what_it_gave(family: str) -> None:
    """Of a model with linear attention, too, whose states are no keys."""
    model = adapter_for(getattr(families, family)()[0]).language_model
    given = torch.randn(4, 1, 9, model.config.hidden_size)
    before = given.clone()
    with torch.inference_mode(), mock_graphs():
        expected = [model(inputs_embeds=embeds).last_hidden_state for embeds in given]
        with prefill_engine(model, "graphs"):
            made, found = [], []
            for embeds in given:
                made.append(model(inputs_embeds=embeds))
                found.append(made[-1].last_hidden_state.clone())
        assert all(map(torch.equal, found, expected))
        model(inputs_embeds=given[0, :, :1], **{CACHE: getattr(made[2], CACHE)})  # a step of decoding
        assert [getattr(output, CACHE).get_seq_length() for output in made] == [9, 9, 10, 9]
    assert torch.equal(given, before)


@pytest.mark.parametrize("device", [pytest.param("cpu", marks=compiler), pytest.param("cuda", marks=pytest.mark.gpu)])
def test_compiled_prefills_are_the_stock_ones(device: str, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = Answers(replace(SPEC, path=str(tiny_folder), device=device, dtype="float32"))
    stock = answers(METHODS)
    calls: list[int] = []
    compiled = engines._compiled

    def counted(*given: Any) -> Any:
        run = compiled(*given)

        def one(inputs: dict[str, torch.Tensor], others: dict[str, Any]) -> Any:
            calls.append(inputs["inputs_embeds"].shape[1])
            return run(inputs, others)

        return one

    monkeypatch.setattr(engines, "_compiled", counted)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    language_model = answers.llm.adapter.language_model
    with prefill_engine(language_model, "compile"):
        for _ in range(3):
            for expected, found in zip(stock, answers(METHODS), strict=True):
                torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert len(calls) == 3 * len(METHODS)  # dense, too, and no step of decoding
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == len(set(calls)) == 3
    assert "forward" not in vars(language_model)


def test_nothing_is_masked_where_older_torch_would_have_it_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """There, transformers takes every compilation for an export, and makes the mask that a model does not get."""
    monkeypatch.setattr(masking_utils, "is_torchdynamo_exporting", lambda: True)
    masked: list[bool] = []
    kernel = torch.nn.functional.scaled_dot_product_attention

    def noted(*args: Any, attn_mask: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor:
        masked.append(attn_mask is not None)
        return kernel(*args, attn_mask=attn_mask, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", noted)
    for family in (families.llava_onevision, families.qwen2_5_vl):
        model = adapter_for(family()[0]).language_model
        inputs = {"inputs_embeds": torch.randn(1, 9, model.config.hidden_size)}
        outputs = []
        for masks, expected in ((None, True), (engines._no_masks(model.config), False)):
            masked.clear()
            outputs.append(
                model(**inputs, **engines._whole(DynamicCache(config=model.config), masks)).last_hidden_state
            )
            assert set(masked) == {expected}
        torch.testing.assert_close(*outputs)


def test_attention_that_older_torch_would_mask_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    config = adapter_for(families.smolvlm()[0]).language_model.config
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.14.0"))
    assert engines._no_masks(config) is None
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.13.1"))
    with pytest.raises(
        ValueError, match=r"engine=compile needs torch 2\.14 or later for llama: .* 2\.13\.1\) always mask"
    ):
        engines._no_masks(config)


def test_masks_of_sliding_layers_are_the_models_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without, they would see all that is before them."""
    config = copy.deepcopy(adapter_for(families.qwen2_5_vl()[0]).language_model.config)
    assert engines._no_masks(config) == {"full_attention": None}
    config.layer_types = ["full_attention", "sliding_attention"] * 2
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.14.0"))
    assert engines._no_masks(config) is None


def test_a_mask_is_looked_at_unless_it_is_known_to_hide_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapter_for(families.llava_onevision()[0]).language_model
    monkeypatch.setattr(engines, "_compiled", lambda original, config: lambda inputs, others: "by the engine")
    call = {"inputs_embeds": torch.randn(1, 4, model.config.hidden_size), "use_cache": True}
    padded = torch.tensor([[0, 1, 1, 1]])
    with prefill_engine(model, "compile") as switch:
        assert model(**call, attention_mask=torch.ones_like(padded)) == "by the engine"
        assert model(**call, attention_mask=padded) != "by the engine"
        switch.unpadded = True
        assert model(**call, attention_mask=padded) == "by the engine"  # the value is not read


def test_what_an_engine_sets_itself_is_not_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapter_for(families.llava_onevision()[0]).language_model
    monkeypatch.setattr(engines, "_compiled", lambda original, config: lambda inputs, others: (inputs, others))
    embeds, ids = torch.randn(1, 4, model.config.hidden_size), torch.tensor([[0, 1, 5, 6]])
    empty = {name: DynamicCache(config=model.config) for name in ("cache", "past_key_values")}
    own = {"attention_mask": torch.ones(1, 4), "cache_position": torch.arange(4), "use_cache": True, **empty}
    with prefill_engine(model, "compile"):
        inputs, others = model(inputs_embeds=embeds, position_ids=ids, output_attentions=False, **own)
        assert inputs == {"inputs_embeds": embeds, "position_ids": ids}  # the same tensors
        assert others == {"output_attentions": False}
        inputs, others = model(inputs_embeds=embeds)  # as the stock forward would count
        assert inputs["position_ids"].tolist() == [[0, 1, 2, 3]]
        assert others == {}
        assert model(inputs_embeds=embeds.to("meta"))[0]["position_ids"].is_meta
        for tensors in (embeds, [embeds], (None, embeds)):
            with pytest.raises(ValueError, match="which also receives more: leave it at stock"):
                model(inputs_embeds=embeds, more=tensors)
    assert "forward" not in vars(model)


def test_torchs_limits_are_lifted_while_it_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond them it would run the stock forward, and say nothing."""
    model, config = adapter_for(families.llava_onevision()[0]).language_model, torch._dynamo.config

    def limits() -> tuple[int, int, bool]:
        return config.recompile_limit, config.accumulated_recompile_limit, config.fail_on_recompile_limit_hit

    before, forgotten = limits(), []
    monkeypatch.setattr(torch._dynamo, "reset", lambda: forgotten.append("compiled code"))
    with prefill_engine(model, "compile"):
        assert limits() == (1000, 1000, True)
        assert not torch._inductor.config.triton.cudagraph_or_error  # there is no GPU to record on
        assert not forgotten
    assert limits() == before
    assert forgotten == ["compiled code"]  # with the memory that it keeps on a GPU


def test_what_is_no_first_prefill_runs_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapter_for(families.llava_onevision()[0]).language_model
    monkeypatch.setattr(engines, "_compiled", lambda original, config: lambda inputs, others: "by the engine")
    embeds, ids = torch.randn(1, 4, model.config.hidden_size), torch.tensor([[1, 2]])
    asks: list[Callable[[], Any]] = [
        lambda: model(ids),
        lambda: model(None, torch.tensor([[0, 1, 1, 1]]), inputs_embeds=embeds),
        lambda: model(input_ids=ids),
        lambda: model(inputs_embeds=embeds, attention_mask=torch.zeros(1, 1, 4, 4)),
        lambda: model(inputs_embeds=embeds, **{CACHE: copy.deepcopy(begun)}),
    ]
    with torch.no_grad():
        first = model(inputs_embeds=embeds, use_cache=True)
        begun = first[CACHE]
        stock = [ask().last_hidden_state for ask in asks]
        with prefill_engine(model, "compile") as switch:
            switch.unpadded = True
            for ask, expected in zip(asks, stock, strict=True):
                assert torch.equal(ask().last_hidden_state, expected)
            assert model(inputs_embeds=embeds) == "by the engine"
            switch.on = False
            assert torch.equal(model(inputs_embeds=embeds).last_hidden_state, first.last_hidden_state)


@compiler
def test_cells_are_timed_compiled(tiny_folder: Path) -> None:
    """What prunes inside the language model is run as ever."""
    llm = VideoLLM(replace(SPEC, path=str(tiny_folder), device="cpu", dtype="float32"))
    cells = [make_cell("dense", 1.0), make_cell("random", 0.25), make_cell("fastv", 0.5)]
    times = measure_cells(llm, cells, Workload(None, "a", SPEC.frames), LatencySettings(2, 3, 1, "compile"))
    assert all(t.failure is None and (t.stages["prefill_ms"] > 0).all() for t in times)
    assert times[2].layer_tokens[-1] < times[2].layer_tokens[0] == times[0].layer_tokens[0]


@pytest.mark.parametrize("engine", ["graphs", "compile"])
def test_a_model_that_takes_more_than_embeddings_is_refused(engine: Engine) -> None:
    model, processor = families.qwen3_vl()
    encoded = processor(text=[processor.video_token], videos=[torch.zeros(4, 3, 64, 64)], return_tensors="pt")
    refusal = pytest.raises(
        ValueError, match=rf"{engine} cannot run Qwen3VL\w+, which also receives deepstack_visual_emb"
    )
    with prefill_engine(adapter_for(model).language_model, engine), torch.inference_mode(), refusal:
        model(**encoded)


@pytest.mark.parametrize("backend", ["auto", "flash", "math"])
def test_cells_are_timed_with_one_kind_of_attention_kernel(
    backend: Backend, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = VideoLLM(replace(SPEC, path=str(tiny_folder), device="cpu", dtype="float32"))
    allowed: set[tuple[bool, bool]] = set()
    kernel = torch.nn.functional.scaled_dot_product_attention

    def noted(*args: Any, **kwargs: Any) -> torch.Tensor:
        allowed.add((torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.math_sdp_enabled()))
        return kernel(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", noted)
    settings = LatencySettings(2, 0, 1, sdpa=backend)
    (times,) = measure_cells(llm, [make_cell("dense", 1.0)], Workload(None, "a", SPEC.frames), settings)
    assert (times.stages["prefill_ms"] > 0).all()
    assert allowed == {(backend != "math", backend != "flash")}


def test_cells_are_timed_by_recordings_but_for_what_prunes_inside(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = VideoLLM(replace(SPEC, path=str(tiny_folder), device="cpu", dtype="float32"))
    cells = [make_cell("dense", 1.0), *(make_cell(name, 0.25) for name in ("random", "mmg_vid", "fastv"))]
    replayed: list[int] = []
    replay = engines._Recording.replay

    def counted(recording: engines._Recording, given: dict[str, torch.Tensor]) -> Any:
        replayed.append(given["inputs_embeds"].shape[1])
        return replay(recording, given)

    monkeypatch.setattr(engines._Recording, "replay", counted)
    monkeypatch.setattr(latency, "check_engine", lambda *_: None)  # which wants a GPU
    with mock_graphs():
        found = measure_cells(llm, cells, Workload(None, "a", SPEC.frames), LatencySettings(2, 2, 1, engine="graphs"))
    assert [times.failure for times in found] == [None] * 4
    dense, pruned, *_ = (times.prompt_tokens for times in found)
    # of four rounds, all but the first prefill of a length, which two methods share
    assert {n: replayed.count(n) for n in set(replayed)} == {dense: 3, pruned: 2 * 4 - 1}


@pytest.mark.parametrize("backend", get_args(Backend))
def test_each_kind_of_attention_kernel_is_alone_while_it_is_chosen(backend: Backend) -> None:
    enabled = {
        "flash": torch.backends.cuda.flash_sdp_enabled,
        "cudnn": torch.backends.cuda.cudnn_sdp_enabled,
        "efficient": torch.backends.cuda.mem_efficient_sdp_enabled,
        "math": torch.backends.cuda.math_sdp_enabled,
    }
    before = {name for name, ask in enabled.items() if ask()}
    with attention_backend(backend):
        assert {name for name, ask in enabled.items() if ask()} == (before if backend == "auto" else {backend})
    assert {name for name, ask in enabled.items() if ask()} == before


@pytest.mark.parametrize("engine", ["graphs", "compile"])
def test_a_forward_that_is_not_the_classs_own_is_refused(engine: Engine) -> None:
    """accelerate gives layers that it spread one of their own, which would be lost."""
    model, _ = families.qwen2_5_vl()
    language_model = adapter_for(model).language_model
    language_model.forward = own = language_model.forward
    with (
        pytest.raises(ValueError, match=f"{engine} needs the model's own forward"),
        prefill_engine(language_model, engine),
    ):
        pass
    assert language_model.forward is own


def test_engines_are_checked() -> None:
    llm = VideoLLM(replace(SPEC, device="cpu", dtype="float32"))
    with pytest.raises(ValueError, match=r"measure\.engine=graphs needs a CUDA device, not cpu"):
        measure_cells(llm, [], Workload(None, "a", SPEC.frames), LatencySettings(engine="graphs"))
    with pytest.raises(ValueError, match=r"measure\.sdpa=cudnn is a kernel of model.attn_implementation=sdpa"):
        check_engine(LatencySettings(sdpa="cudnn"), replace(SPEC, attn_implementation="eager"))
    with pytest.raises(ValueError, match=r"measure\.sdpa='fast': choose one of auto, flash, cudnn"):
        LatencySettings(sdpa="fast")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="choose one of stock, graphs, compile"):
        LatencySettings(engine="fast")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"measure\.warmup=1: measure\.engine=graphs needs at least 2 rounds"):
        LatencySettings(warmup=1, engine="graphs")
    with pytest.raises(ValueError, match=r"measure\.warmup=2: measure\.engine=compile needs at least 3 rounds"):
        LatencySettings(warmup=2, engine="compile")
