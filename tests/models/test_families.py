"""Every model family: dense is stock, pruning equals masking, and nothing is left behind."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import families
import pytest
import torch
from masking import masked_logits, stock_prompt, traced
from torch import Tensor

from mmg_bench.methods.base import Positions
from mmg_bench.methods.dense import Dense
from mmg_bench.methods.registry import get_method
from mmg_bench.models.adapter import FAMILIES, UnsupportedModelError, adapter_for, fresh
from mmg_bench.models.hooks import pruning
from mmg_bench.models.loading import ModelError, ModelSpec, VideoLLM

STEPS = 4
GREEDY = {"max_new_tokens": STEPS, "do_sample": False}
QUESTION = "What colour is the star?"
METHODS = ("random", "mmg_vid", "tome", "fastv", "pdrop", "prunevid", "dycoke")


@pytest.fixture(scope="module", params=list(families.BUILDERS))
def family(request: pytest.FixtureRequest) -> tuple[str, Any, Any]:
    torch.manual_seed(0)
    model, processor = families.BUILDERS[request.param]()
    model.generate(
        **families.prompts(request.param, processor, [QUESTION]), **GREEDY
    )  # transformers' own first-use hooks
    return request.param, model, processor


@pytest.fixture
def inputs(family: tuple[str, Any, Any]) -> dict[str, Tensor]:
    name, _, processor = family
    return families.prompts(name, processor, [QUESTION])


@pytest.fixture(autouse=True)
def nothing_is_left(family: tuple[str, Any, Any]) -> Iterator[None]:
    attributes = {name: set(vars(module)) for name, module in family[1].named_modules()}
    yield
    hooks = [h for m in family[1].modules() for h in (*m._forward_pre_hooks.values(), *m._forward_hooks.values())]
    assert not any(h.__module__.startswith("mmg_bench") for h in hooks)
    assert {name: set(vars(module)) for name, module in family[1].named_modules()} == attributes


def visual(model: Any, inputs: dict[str, Tensor]) -> list[int]:
    return (inputs["input_ids"][0] == adapter_for(model).video_token_id).nonzero().flatten().tolist()


def logits(model: Any, inputs: dict[str, Any], **options: Any) -> Tensor:
    """Of each generated token, `[steps, B, vocabulary]`."""
    made = model.generate(**inputs, **{**GREEDY, **options}, output_logits=True, return_dict_in_generate=True)
    return torch.stack(made.logits)


def test_dense_is_exactly_stock(family: tuple[str, Any, Any], inputs: dict[str, Tensor]) -> None:
    name, model, _ = family
    stock, whole = logits(model, inputs), model(**inputs).logits
    with Dense()(model) as run:
        assert torch.equal(logits(model, inputs), stock)
        assert torch.equal(model(**inputs).logits, whole)
    frames = families.FRAMES // (2 if name.startswith("qwen") else 1)
    assert run.report[0].realised_tokens == frames * math.prod(families.GRIDS[name])


@pytest.mark.parametrize("positions", get_args(Positions))
@pytest.mark.parametrize("method", METHODS)
def test_pruning_equals_masking(
    family: tuple[str, Any, Any], inputs: dict[str, Tensor], method: str, positions: Positions
) -> None:
    _, model, _ = family
    pruner = get_method(method, retention_ratio=0.3)
    columns = visual(model, inputs)
    with traced(pruner, families.LAYERS) as trace, pruner(model, positions=positions) as run:
        ours = logits(model, inputs)[:, 0]
    with torch.no_grad():
        prompt = stock_prompt(model, inputs, columns)
        expected = masked_logits(model, prompt, pruner, positions, trace, STEPS)
    torch.testing.assert_close(ours, expected, atol=2e-4, rtol=2e-3)
    assert torch.equal(ours.argmax(-1), expected.argmax(-1))
    left = min([run.report[0].realised_tokens, *(n for _, n in run.report[0].stages)])
    assert left < len(columns) or any(keys is not None for keys in trace.keys)
    stock = logits(model, inputs)[:, 0]
    assert not torch.allclose(ours, stock, atol=1e-3), "the method changed nothing"


def test_a_batch_is_answered_as_if_alone(family: tuple[str, Any, Any]) -> None:
    name, model, processor = family
    texts = [QUESTION, "How many times does it flash?"]
    inputs = families.prompts(name, processor, texts)
    assert (inputs["attention_mask"] == 0).any()
    for positions in get_args(Positions):
        with get_method("random", retention_ratio=0.3)(model, positions=positions) as run:
            together = logits(model, inputs)
        alone = families.prompts(name, processor, texts[:1])  # the first prompt's video is the same
        with get_method("random", retention_ratio=0.3)(model, positions=positions):
            torch.testing.assert_close(together[:, :1], logits(model, alone), atol=2e-4, rtol=2e-3)
        assert len(run.report) == 2


def test_two_videos_and_an_image(family: tuple[str, Any, Any]) -> None:
    name, model, processor = family
    if name == "llava_next_video":
        pytest.skip("its processor lays images out as videos' frames do not")
    inputs = families.prompts(name, processor, [QUESTION], videos_each=2, image=True)
    seen: list[Tensor] = []
    with get_method("random", retention_ratio=0.5)(model) as run:
        handle = model.model.language_model.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
        )
        model.generate(**inputs, **GREEDY)
        handle.remove()
    assert len(run.report) == 2
    total = run.report[0].total_tokens
    assert [v.realised_tokens for v in run.report] == [total // 2] * 2
    assert run.prompt_tokens == inputs["input_ids"].shape[1] - total
    assert seen[0].shape[1] == run.prompt_tokens


def test_encoding_once_and_beams_give_the_same(family: tuple[str, Any, Any], inputs: dict[str, Any]) -> None:
    _, model, _ = family
    method = get_method("mmg_vid", retention_ratio=0.3)
    beams = {**GREEDY, "num_beams": 2}
    with method(model):
        expected = [logits(model, inputs), model.generate(**inputs, **beams)]
    text = {k: inputs[k] for k in ("input_ids", "attention_mask", "mm_token_type_ids") if k in inputs}
    tokens, encoded = adapter_for(model).encode(inputs, set())
    with pruning(model, method, encoded=tokens):
        torch.testing.assert_close(logits(model, {**text, **fresh(encoded)}), expected[0])
        assert torch.equal(model.generate(**text, **fresh(encoded), **beams), expected[1])
        torch.testing.assert_close(logits(model, {**text, **fresh(encoded)}), expected[0])


def test_decoding_by_hand_continues_at_the_right_position(
    family: tuple[str, Any, Any], inputs: dict[str, Tensor]
) -> None:
    _, model, _ = family
    bare = {k: v for k, v in inputs.items() if k != "attention_mask"}
    for positions in get_args(Positions):
        with torch.no_grad(), get_method("random", retention_ratio=0.3)(model, positions=positions):
            expected = logits(model, inputs)[:, 0]
            out, made = model(**bare, use_cache=True), []
            for _ in range(STEPS):
                made.append(out.logits[0, -1])
                token = made[-1].argmax().view(1, 1)
                out = model(input_ids=token, past_key_values=out.past_key_values, use_cache=True)
        torch.testing.assert_close(torch.stack(made), expected, atol=2e-4, rtol=2e-3)


def test_the_runner_says_that_it_cannot_serve_a_family(family: tuple[str, Any, Any], tmp_path: Path) -> None:
    name, model, processor = family
    for part in (model, processor):
        part.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=f"{name}.* want the times of frames"):
        VideoLLM(ModelSpec("tiny", str(tmp_path), dtype="float32", device="cpu"))


def test_a_type_without_an_entry_is_served_by_what_it_has(
    family: tuple[str, Any, Any], inputs: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, model, _ = family
    method = get_method("random", retention_ratio=0.3)
    with method(model):
        expected = logits(model, inputs)
    monkeypatch.delitem(FAMILIES, name)
    if name == "qwen3_vl":
        with method(model), pytest.raises(UnsupportedModelError, match="add tower features inside the language model"):
            model(**inputs)
    else:
        with method(model):
            assert torch.equal(logits(model, inputs), expected)
    monkeypatch.delattr(model.model, "language_model")
    with pytest.raises(UnsupportedModelError, match=r"no model\.language_model\.layers; supported: llava_onevision"):
        adapter_for(model)


def test_what_a_family_lacks_is_named(family: tuple[str, Any, Any]) -> None:
    _, model, _ = family
    with pytest.raises(UnsupportedModelError, match="do not supply attention"), get_method("visionzip")(model):
        pass
