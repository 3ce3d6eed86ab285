"""Pruning under all that `generate` and PyTorch offer: beams, sampling, half precision, threads, kernels, compiling."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor, BitsAndBytesConfig, Cache, DynamicCache

import families
from mmg_bench.methods.dense import Dense
from mmg_bench.methods.registry import get_method
from mmg_bench.models.adapter import Adapter, adapter_for, fresh
from mmg_bench.models.caches import CACHE
from mmg_bench.models.hooks import pruning
from mmg_bench.models.kept import Kept
from mmg_bench.models.run import Run
from mmg_bench.models.small import SmallSpec, small_llava_onevision
from mmg_bench.models.spec import EMBEDDED
from mock_cuda import mock_cuda
from prompts import prompt_inputs, random_video

GREEDY = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
TEXTS = ["What colour is the star? Answer with one word.", "How many times does the star flash?"]


def built(seed: int) -> tuple[Any, Any]:
    from mmg_bench.benchmarks.embedded.questions import vocabulary
    from tiny import TINY

    torch.manual_seed(seed)
    model, processor = small_llava_onevision(vocabulary(), SmallSpec(**TINY))
    with torch.no_grad():
        model.lm_head.weight.mul_(40)
    return model, processor


@pytest.fixture(scope="module")
def own() -> tuple[Any, Any]:
    """A model that these tests may cast and compile."""
    return built(2)


def told(run: Run) -> list[tuple[int, int, tuple[tuple[int, int], ...]]]:
    """What a report says of each video's tokens."""
    return [(video.total_tokens, video.realised_tokens, video.stages) for video in run.report]


@pytest.fixture
def inputs(own: tuple[Any, Any]) -> dict[str, Tensor]:
    return prompt_inputs(own[1], TEXTS, [[random_video(6, 1)], [random_video(6, 2)]])


@pytest.mark.parametrize("name", ["mmg_vid", "visionzip", "fastv"])
def test_beams_map_to_the_videos_of_their_prompt(own: tuple[Any, Any], inputs: dict[str, Tensor], name: str) -> None:
    """Rows are repeated for beams; each prompt is answered as if alone, from pixels or from encoded videos."""
    model, processor = own
    method, beams = get_method(name, retention_ratio=0.3), {**GREEDY, "num_beams": 3}
    alone, reports = [], []
    for text, seed in zip(TEXTS, (1, 2), strict=True):
        with method(model) as run:
            one = prompt_inputs(processor, [text], [[random_video(6, seed)]])
            alone.append(model.generate(**one, **beams)[0, -6:])
        reports += told(run)
    assert len(reports) == 2
    with method(model) as run:
        together = model.generate(**inputs, **beams)
    assert told(run) == reports
    assert torch.equal(together[:, -6:], torch.stack(alone))
    tokens, encoded = adapter_for(model).encode(inputs, method.needs)
    text_only = {k: inputs[k] for k in ("input_ids", "attention_mask")}
    with pruning(model, method, encoded=tokens) as run:
        assert torch.equal(model.generate(**text_only, **fresh(encoded), **beams), together)
    assert told(run) == reports


@pytest.mark.parametrize("name", ["mmg_vid", "fastv"])
def test_answers_to_one_prompt_are_those_to_its_copies(
    own: tuple[Any, Any], inputs: dict[str, Tensor], name: str
) -> None:
    """A report holds a video once, of however many answers; prompts that are repeated by hand are several."""
    model, _ = own
    method, sampled = get_method(name, retention_ratio=0.3), {**GREEDY, "do_sample": True, "temperature": 40.0}
    by_hand = {k: v.repeat_interleave(3, dim=0) for k, v in inputs.items()}
    with method(model) as run:
        model.generate(**inputs, **GREEDY)
        once, stages, width = told(run), run.stages, run.prompt_tokens
        torch.manual_seed(5)
        answers = model.generate(**inputs, **sampled, num_return_sequences=3)
        assert (told(run), run.stages, run.prompt_tokens) == (once, stages, width)
        torch.manual_seed(5)
        assert torch.equal(model.generate(**by_hand, **sampled), answers)
        assert told(run) == [video for video in once for _ in range(3)]
    assert len({tuple(ids) for ids in answers.tolist()}) > 2
    tokens, encoded = adapter_for(model).encode(inputs, method.needs)
    text_only = {k: inputs[k] for k in ("input_ids", "attention_mask")}
    with pruning(model, method, encoded=tokens) as run:
        torch.manual_seed(5)
        again = model.generate(**text_only, **fresh(encoded), **sampled, num_return_sequences=3)
    assert torch.equal(again, answers)
    assert (told(run), run.stages, run.prompt_tokens) == (once, stages, width)


@pytest.mark.parametrize("name", ["mmg_vid", "random", "fastv", "holitom", "dycoke"])
def test_prompts_are_decoded_side_by_side(own: tuple[Any, Any], inputs: dict[str, Tensor], name: str) -> None:
    """What is known of a pruned prompt goes with its cache: other prompts come between its steps, and copies go on."""
    model, _ = own
    first, second = ({k: v[i : i + 1] for k, v in inputs.items()} for i in (0, 1))
    text = {"input_ids": second["input_ids"][:, -5:]}

    def begin(prompt: dict[str, Tensor]) -> tuple[Any, Tensor]:
        out = model(**prompt, use_cache=True)
        return out.past_key_values, out.logits[:, -1]

    def step(cache: Any, token: int) -> Tensor:
        return model(input_ids=torch.tensor([[token]]), past_key_values=cache, use_cache=True).logits[:, -1]

    method = get_method(name, retention_ratio=0.3, **({"layer": 1} if name == "dycoke" else {}))
    with torch.no_grad(), method(model):
        cache, _ = begin(first)
        expected = [step(cache, token) for token in (7, 8, 9)]
        cache, _ = begin(second)
        others = [step(cache, token) for token in (4, 5)]
        stock = begin(text)[1]

        cache, _ = begin(first)
        found = [step(cache, 7)]
        aside = copy.deepcopy(cache)
        beside, _ = begin(second)
        assert torch.equal(begin(text)[1], stock)
        found += [step(cache, 8)]
        assert torch.equal(step(beside, 4), others[0])
        found += [step(cache, 9)]
        assert torch.equal(step(beside, 5), others[1])
        assert all(map(torch.equal, found, expected))
        assert torch.equal(step(aside, 8), expected[1])


def test_guidance_without_the_video_leaves_the_prompt_alone(own: tuple[Any, Any], inputs: dict[str, Tensor]) -> None:
    model, _ = own
    one, scale, steps = {k: v[:1] for k, v in inputs.items()}, 1.5, 4
    method, length = get_method("vidcom2", retention_ratio=0.3), inputs["input_ids"].shape[1]
    with method(model):
        guided = model.generate(
            **one, max_new_tokens=steps, min_new_tokens=steps, do_sample=False, guidance_scale=scale
        )
    tokens: list[int] = []
    with torch.no_grad():
        for _ in range(steps):
            with method(model):
                out = model(**one, use_cache=True)
                for token in tokens:
                    next_one = torch.tensor([[token]])
                    out = model(input_ids=next_one, past_key_values=out.past_key_values, use_cache=True)
            with_video = out.logits[0, -1].log_softmax(-1)
            last = int(one["input_ids"][0, -1])
            without = model(input_ids=torch.tensor([[last, *tokens]])).logits[0, -1].log_softmax(-1)
            tokens.append(int((scale * (with_video - without) + without).argmax()))
    assert guided[0, length:].tolist() == tokens


def test_a_second_turn_on_a_pruned_cache(own: tuple[Any, Any], inputs: dict[str, Tensor]) -> None:
    """`generate` takes a cache to hold the first of all ids; of a pruned one, some come again."""
    model, processor = own
    one = prompt_inputs(processor, TEXTS[:1], [[random_video(6, 1)]])
    for ratio in (0.3, 0.97):
        with get_method("random", retention_ratio=ratio)(model):
            first = model.generate(**one, **GREEDY, return_dict_in_generate=True)
            both = torch.cat([first.sequences, one["input_ids"][:, -4:]], dim=1)
            with pytest.raises(ValueError, match="was passed with a filled cache: pass the whole conversation"):
                model(**one, past_key_values=first.past_key_values)
            other = both.clone()
            other[:, -6] += 1  # the last that went in
            with pytest.raises(
                ValueError, match=r"neither continue nor repeat what .* holds: pass the whole conversation"
            ):
                model.generate(input_ids=other, past_key_values=copy.deepcopy(first.past_key_values), **GREEDY)
            again = model.generate(input_ids=both, past_key_values=first.past_key_values, **GREEDY)
            whole = {**one, "input_ids": both, "attention_mask": torch.ones_like(both)}
            assert torch.equal(model.generate(**whole, **GREEDY), again)
    with Dense()(model):  # which takes nothing out
        first = model.generate(**one, **GREEDY, return_dict_in_generate=True)
        both = torch.cat([first.sequences, one["input_ids"][:, -4:]], dim=1)
        again = model.generate(input_ids=both, past_key_values=first.past_key_values, **GREEDY)
        ones = torch.ones_like(both)
        assert torch.equal(model.generate(**{**one, "input_ids": both, "attention_mask": ones}, **GREEDY), again)


@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_5_vl", "exaone4_5"])
def test_a_second_turn_of_copies(family: str) -> None:
    """As of beams, or of several questions about one video."""
    torch.manual_seed(0)
    model, processor = getattr(families, family)()
    one = families.prompts(family, processor, TEXTS[:1])
    words = {**GREEDY, "suppress_tokens": adapter_for(model).placeholder_ids}  # stock code seeks features of others
    with get_method("random", retention_ratio=0.3)(model):
        first = model.generate(**one, **words, return_dict_in_generate=True)
        cache = first.past_key_values
        cache.batch_repeat_interleave(2)
        both = first.sequences.repeat(2, 1), torch.tensor([[5, 6, 5], [6, 8, 9]])
        ours = model.generate(input_ids=torch.cat(both, dim=1), past_key_values=cache, **words)
        for row, end in enumerate(both[1]):
            ids = torch.cat([first.sequences, end[None]], dim=1)
            whole = {**one, "input_ids": ids, "attention_mask": torch.ones_like(ids), **families.typed(one, ids)}
            assert torch.equal(model.generate(**whole, **words)[0], ours[row])


@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_5_vl", "exaone4_5"])
def test_what_the_cache_holds_may_come_again_by_hand(family: str) -> None:
    torch.manual_seed(0)
    model, processor = getattr(families, family)()
    one = families.prompts(family, processor, TEXTS[:1])
    new = torch.tensor([[5, 6]])
    ids = torch.cat([one["input_ids"], new], dim=1)
    with torch.no_grad(), get_method("random", retention_ratio=0.3)(model):
        cache = model(**one, use_cache=True).past_key_values
        past = cache.get_seq_length()
        expected = model(input_ids=new, past_key_values=copy.deepcopy(cache)).logits
        # stock code that counts on by deltas numbers a whole mask anew, and fails by itself
        ways = [{}, {"attention_mask": torch.ones_like(ids)}, {"position_ids": torch.arange(past, ids.shape[1])[None]}]
        for given in ways if family == "llava_onevision" else ways[:1]:
            again = model(input_ids=ids[:, past:], past_key_values=copy.deepcopy(cache), **given).logits
            torch.testing.assert_close(again, expected, atol=2e-4, rtol=2e-3)
        embeds = model.get_input_embeddings()(new)
        torch.testing.assert_close(model(inputs_embeds=embeds, past_key_values=cache).logits, expected)
        with pytest.raises(ValueError, match=r"neither continue nor repeat what"):  # no longer known
            model(input_ids=ids[:, past:], past_key_values=cache)


def test_what_was_said_goes_on_with_its_beam(own: tuple[Any, Any]) -> None:
    model, processor = own
    inputs = prompt_inputs(processor, TEXTS[:1] * 2, [[random_video(6, 1)]] * 2)
    said, new = torch.tensor([[7], [8]]), torch.tensor([[5, 6], [9, 3]])
    with torch.no_grad(), get_method("random", retention_ratio=0.3)(model):
        cache = model(**inputs, use_cache=True).past_key_values
        model(input_ids=said, past_key_values=cache)
        cache.reorder_cache(torch.tensor([1, 0]))
        expected = model(input_ids=new, past_key_values=copy.deepcopy(cache)).logits
        ids = torch.cat([inputs["input_ids"], said.flip(0), new], dim=1)[:, cache.get_seq_length() :]
        again = model(input_ids=ids, past_key_values=cache).logits
    torch.testing.assert_close(again, expected, atol=1e-4, rtol=1e-3)


def test_columns_of_what_comes_again_have_no_logits(own: tuple[Any, Any]) -> None:
    model, processor = own
    one = prompt_inputs(processor, TEXTS[:1], [[random_video(6, 1)]])
    ids = torch.cat([one["input_ids"], torch.tensor([[5, 6]])], dim=1)
    with torch.no_grad(), get_method("random", retention_ratio=0.3)(model):
        cache = model(**one, use_cache=True).past_key_values
        again, last = ids[:, cache.get_seq_length() :], torch.tensor([-1])
        with pytest.raises(ValueError, match=r"logits_to_keep names columns of a prompt, .*: pass the number"):
            model(input_ids=again, past_key_values=copy.deepcopy(cache), logits_to_keep=last)
        assert model(input_ids=again[:, -2:], past_key_values=cache, logits_to_keep=last).logits.shape[1] == 1


def test_drafted_tokens_in_a_second_turn_are_named(own: tuple[Any, Any]) -> None:
    model, processor = own
    one = prompt_inputs(processor, TEXTS[:1], [[random_video(6, 1)]])
    draft = copy.deepcopy(model)
    with get_method("random", retention_ratio=0.3)(model):
        first = model.generate(**one, **GREEDY, return_dict_in_generate=True)
        ids = torch.cat([first.sequences, one["input_ids"][:, -4:]], dim=1)
        with pytest.raises(ValueError, match=r"nor repeat what .*: .*, without drafted tokens \(assistant_model"):
            model.generate(input_ids=ids, past_key_values=first.past_key_values, assistant_model=draft, **GREEDY)


def test_new_text_may_begin_as_the_cache_ends(own: tuple[Any, Any]) -> None:
    model, processor = own
    one = prompt_inputs(processor, TEXTS[:1], [[random_video(6, 1)]])
    with torch.no_grad(), get_method("random", retention_ratio=0.99)(model):
        cache = model(**one, use_cache=True).past_key_values
        removed = one["input_ids"].shape[1] - cache.get_seq_length()
        new = one["input_ids"][:, -removed:].repeat(1, 2)
        assert 0 < removed < 5
        past = cache.get_seq_length()
        again = {"input_ids": new, "position_ids": torch.arange(past, past + 2 * removed)[None]}
        assert model(**again, past_key_values=copy.deepcopy(cache)).logits.shape[1] == removed
        assert model(input_ids=new, past_key_values=cache).logits.shape[1] == 2 * removed


def test_text_that_comes_again_alone_or_out_of_place_is_refused(own: tuple[Any, Any]) -> None:
    model, processor = own
    one = prompt_inputs(processor, TEXTS[:1], [[random_video(6, 1)]])
    with torch.no_grad(), get_method("random", retention_ratio=0.3)(model):
        cache = model(**one, use_cache=True).past_key_values
        past = cache.get_seq_length()
        ids = torch.cat([one["input_ids"], torch.tensor([[5, 6]])], dim=1)[:, past:]
        embeds = model.get_input_embeddings()(ids)  # of which it is not known
        for again, first in (
            *(({"input_ids": ids[:, :width]}, past) for width in (3, ids.shape[1] - 2)),
            ({"input_ids": ids}, past + 1),
            ({"inputs_embeds": embeds}, past),
        ):
            places = first + torch.arange(next(iter(again.values())).shape[1])[None]
            with pytest.raises(ValueError, match=r"neither continue nor repeat what"):
                model(**again, position_ids=places, past_key_values=cache)


def test_a_single_token_is_not_asked_for_its_position(own: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step would wait for the GPU."""
    model, processor = own
    one = prompt_inputs(processor, TEXTS[:1], [[random_video(6, 1)]])
    step = {"input_ids": torch.tensor([[5]]), "position_ids": torch.tensor([[one["input_ids"].shape[1]]])}
    with torch.no_grad(), get_method("random", retention_ratio=0.3)(model):
        cache = model(**one, use_cache=True).past_key_values
        monkeypatch.delattr(Adapter, "column")
        model(**step, past_key_values=cache)


def test_what_was_said_is_known_though_its_tensor_is_used_again(own: tuple[Any, Any]) -> None:
    model, processor = own
    one = prompt_inputs(processor, TEXTS[:1], [[random_video(6, 1)]])
    given = {**one, "input_ids": one["input_ids"].clone()}
    with torch.no_grad(), get_method("random", retention_ratio=0.3)(model):
        cache = model(**given, use_cache=True).past_key_values
        given["input_ids"].zero_()
        ids = torch.cat([one["input_ids"], torch.tensor([[5, 6]])], dim=1)
        second = model.generate(input_ids=ids, past_key_values=cache, **GREEDY)
        whole = {**one, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
        assert torch.equal(model.generate(**whole, **GREEDY), second)


def test_a_pruned_cache_belongs_to_its_context(own: tuple[Any, Any], inputs: dict[str, Tensor]) -> None:
    model, _ = own
    with get_method("random", retention_ratio=0.3)(model), torch.no_grad():
        cache = model(**inputs, use_cache=True).past_key_values
    later = pytest.raises(ValueError, match="pruned in another context")
    with get_method("fastv", retention_ratio=0.3)(model), later:
        model(input_ids=torch.tensor([[5], [5]]), past_key_values=cache)


def test_an_image_by_hand_stands_behind_its_prompt_whatever_the_model_saw_since() -> None:
    torch.manual_seed(0)
    model, processor = families.qwen2_5_vl()
    inputs = families.prompts("qwen2_5_vl", processor, TEXTS[:1])
    image = families.prompts("qwen2_5_vl", processor, TEXTS[1:], videos_each=0, image=True)
    del image["attention_mask"]
    with torch.no_grad(), get_method("random", retention_ratio=0.3)(model):
        cache = model(**inputs, use_cache=True).past_key_values
        expected = model(**image, past_key_values=copy.deepcopy(cache)).logits
        model.generate(input_ids=torch.tensor([[5, 6, 7]]), **GREEDY)
        assert torch.equal(model(**image, past_key_values=cache).logits, expected)


def test_positions_of_a_callers_own_stay_whatever_the_model_saw_since() -> None:
    torch.manual_seed(0)
    model, processor = families.qwen2_5_vl()
    inputs = families.prompts("qwen2_5_vl", processor, TEXTS[:1])
    step = {"input_ids": torch.tensor([[5, 6]]), "position_ids": torch.tensor([[[40, 41]], [[42, 43]], [[44, 45]]])}
    with torch.no_grad(), get_method("random", retention_ratio=0.3)(model):
        cache = model(**inputs, use_cache=True).past_key_values
        expected = model(**step, past_key_values=copy.deepcopy(cache)).logits
        model.generate(input_ids=torch.tensor([[5, 6, 7]]), **GREEDY)
        assert torch.equal(model(**step, past_key_values=cache).logits, expected)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "internvl"])
def test_text_that_follows_may_hold_any_token(family: str) -> None:
    """Prompt lookup proposes what stood behind the same words of the prompt, placeholders too."""
    model, processor = getattr(families, family)()
    inputs = families.prompts(family, processor, TEXTS[:1])
    length, video = inputs["input_ids"].shape[1], adapter_for(model).video_token_id
    ids = (
        torch.arange(length, length + 3)[None]
        if family == "internvl"
        else torch.arange(length, length + 3).expand(4, 1, 3)
    )
    step = {"input_ids": torch.tensor([[5, video, 6]]), "position_ids": ids}
    with torch.no_grad(), get_method("random", retention_ratio=0.3)(model):
        cache = model(**inputs, use_cache=True).past_key_values
        model(**step, past_key_values=copy.deepcopy(cache))
        drafted, out_of_place = {"logits_to_keep": 3}, {**step, "position_ids": ids - 1}
        model(input_ids=step["input_ids"], **drafted, past_key_values=copy.deepcopy(cache))
        for other in (out_of_place, {**out_of_place, **drafted}, {"input_ids": step["input_ids"][:, :2]}):
            with pytest.raises(
                ValueError, match="neither continue nor repeat what the cache of the pruned prompt holds"
            ):
                model(**other, past_key_values=cache)


@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_5_vl"])
@pytest.mark.parametrize("positions", ["original", "contiguous"])
def test_drafted_text_that_is_rejected_leaves_no_trace(
    family: str, positions: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Assisted decoding appends drafted tokens to the prompt itself, and crops the cache after those that are right."""
    crops = []

    def cropped(kept: Kept, width: int) -> Kept:
        crops.append(kept.index.shape[1] - width)
        return crop(kept, width)

    crop = Kept.cropped
    monkeypatch.setattr(Kept, "cropped", cropped)
    torch.manual_seed(0)
    model, processor = getattr(families, family)()
    inputs = families.prompts(family, processor, TEXTS[:1])
    draft = copy.deepcopy(model)
    with torch.no_grad():
        for weight in draft.model.language_model.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    with get_method("mmg_vid", retention_ratio=0.3)(model, positions=positions):
        greedy = model.generate(**inputs, **GREEDY)
        assert not crops
        assert torch.equal(model.generate(**inputs, **GREEDY, assistant_model=draft), greedy)
    assert crops
    looks, hides = "reads the end of the prompt", "hides keys by what each step attends to"
    for name, asked, why in (
        ("fastv", {"assistant_model": draft}, looks),
        ("pdrop", {"prompt_lookup_num_tokens": 2}, looks),
        ("dycoke", {"assistant_model": draft}, hides),
    ):
        refused = pytest.raises(ValueError, match=f"{name} {why}, .* assisted decoding")
        with get_method(name, retention_ratio=0.3)(model):
            model(**inputs, logits_to_keep=1)
            repeated = {**inputs, "input_ids": inputs["input_ids"].clone()}
            repeated["input_ids"][:, -4:-2] = inputs["input_ids"][:, -2:]  # so that there is something to look up
            with refused:
                model.generate(**repeated, **GREEDY, **asked)


@pytest.mark.parametrize(("name", "options"), [("dycoke", {"layer": 1}), ("random", {}), ("fastv", {})])
def test_a_cache_is_repeated_rightly_or_refused(own: tuple[Any, Any], name: str, options: dict[str, Any]) -> None:
    model, processor = own
    for prompts in (1, 2):
        inputs = prompt_inputs(processor, TEXTS[:1] * prompts, [[random_video(6, 1)]] * prompts)
        step = torch.full((prompts, 1), 5)
        with torch.no_grad(), get_method(name, **options)(model):
            cache = model(**inputs, use_cache=True).past_key_values
            once = model(input_ids=step, past_key_values=copy.deepcopy(cache)).logits
            cache.batch_repeat_interleave(2)
            if prompts > 1 or name == "dycoke":
                with pytest.raises(
                    ValueError, match=f"cache of {prompts} pruned prompts was passed with {2 * prompts} rows"
                ):
                    model(input_ids=step.repeat(2, 1), past_key_values=cache)
            else:
                twice = model(input_ids=step.repeat(2, 1), past_key_values=cache).logits
                torch.testing.assert_close(twice, once.repeat(2, 1, 1), atol=1e-4, rtol=1e-3)


def test_several_steps_at_once_are_refused_where_each_hides_keys_of_its_own(
    own: tuple[Any, Any], inputs: dict[str, Tensor]
) -> None:
    """Also where nothing was drafted with the prompt itself, as prompt lookup that finds nothing there."""
    model, _ = own
    drafted = torch.full((len(inputs["input_ids"]), 3), 5)
    says = "dycoke hides keys by what each step attends to"
    with torch.no_grad(), get_method("dycoke", layer=1)(model):
        with pytest.raises(ValueError, match=says):
            model(**inputs, logits_to_keep=2)
        cache = model(**inputs, use_cache=True, logits_to_keep=1).past_key_values
        with pytest.raises(ValueError, match=says):
            model(input_ids=drafted, past_key_values=cache, logits_to_keep=3)


@pytest.mark.parametrize("name", ["random", "fastv"])
def test_text_that_was_cropped_may_come_again_in_parts(
    own: tuple[Any, Any], inputs: dict[str, Tensor], name: str
) -> None:
    model, _ = own
    with torch.no_grad(), get_method(name, retention_ratio=0.3)(model):
        whole = model(**inputs, use_cache=True)
        cache = whole.past_key_values
        cache.crop(-2)
        for column in range(inputs["input_ids"].shape[1])[-2:]:
            ids, mask = inputs["input_ids"][:, [column]], inputs["attention_mask"][:, : column + 1]
            logits = model(input_ids=ids, attention_mask=mask, past_key_values=cache).logits
    torch.testing.assert_close(logits[:, -1], whole.logits[:, -1], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", ["random", "fastv"])
def test_a_cache_cropped_into_a_video_is_refused(own: tuple[Any, Any], inputs: dict[str, Tensor], name: str) -> None:
    model, _ = own
    with torch.no_grad(), get_method(name, retention_ratio=0.3)(model):
        cache = model(**inputs, use_cache=True).past_key_values
        cache.crop(-30)
        with pytest.raises(ValueError, match="cropped into its videos"):
            model(input_ids=torch.tensor([[5], [5]]), past_key_values=cache)


def test_a_call_that_failed_is_forgotten(
    own: tuple[Any, Any], inputs: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = own
    words = torch.randn(1, 9, model.config.text_config.hidden_size)
    stock = model.model.language_model(inputs_embeds=words).last_hidden_state

    def fails(*args: Any, **kwargs: Any) -> Any:
        raise KeyError("mine")

    with get_method("random", retention_ratio=0.3)(model):
        with monkeypatch.context() as patch:
            patch.setattr(model.model, "get_placeholder_mask", fails)
            with pytest.raises(KeyError, match="mine"):
                model(**inputs)
        with monkeypatch.context() as patch:  # behind the pruning
            patch.setattr(model.model.language_model.norm, "forward", fails)
            with pytest.raises(KeyError, match="mine"):
                model(**inputs)
        after = model.model.language_model(inputs_embeds=words, use_cache=True)
        assert torch.equal(after.last_hidden_state, stock)
        model.model.language_model(inputs_embeds=words[:, :1], **{CACHE: getattr(after, CACHE)})
        assert getattr(after, CACHE).get_seq_length() == 10
        assert isinstance(model.model.language_model(inputs_embeds=words, return_dict=False), tuple)


def test_what_follows_may_go_to_the_language_model_itself(own: tuple[Any, Any], inputs: dict[str, Tensor]) -> None:
    """Nothing of an earlier call of the model, which numbered its own tokens, is taken for it."""
    model, _ = own
    new, length = torch.tensor([[5, 6], [7, 8]]), inputs["input_ids"].shape[1]
    given = {"inputs_embeds": model.get_input_embeddings()(new), "position_ids": torch.arange(length, length + 2)[None]}
    with torch.no_grad(), get_method("random", retention_ratio=0.3)(model):
        cache = model(input_ids=inputs["input_ids"], pixel_values_videos=inputs["pixel_values_videos"]).past_key_values
        aside = copy.deepcopy(cache)
        expected = model(input_ids=new, past_key_values=cache).logits
        hidden = model.model.language_model(**given, **{CACHE: aside}).last_hidden_state
        torch.testing.assert_close(model.lm_head(hidden), expected)
        ids = torch.cat([inputs["input_ids"], new, new], dim=1)
        with pytest.raises(ValueError, match=r"neither continue nor repeat what"):  # what was said is not known now
            model(input_ids=ids[:, aside.get_seq_length() :], past_key_values=aside)


@pytest.mark.parametrize("then", [None, Dense()])
def test_a_cache_that_is_emptied_is_as_new(own: tuple[Any, Any], inputs: dict[str, Tensor], then: Any) -> None:
    model, _ = own
    prompt = {"input_ids": inputs["input_ids"][:, -5:]} if then is None else inputs

    def answer(cache: DynamicCache) -> Tensor:
        model(**prompt, past_key_values=cache, use_cache=True)
        return model(input_ids=torch.tensor([[5], [6]]), past_key_values=cache, use_cache=True).logits

    with torch.no_grad():
        stock = answer(DynamicCache(config=model.config))
        used = DynamicCache(config=model.config)
        with get_method("dycoke", retention_ratio=0.3, layer=1)(model):
            model(**inputs, past_key_values=used, use_cache=True)
            model(input_ids=torch.tensor([[5], [6]]), past_key_values=used, use_cache=True)
            used.layers = DynamicCache(config=model.config).layers
            if then is None:
                assert torch.equal(answer(used), stock)
                assert "reorder_cache" not in vars(used)
        if then is not None:
            with then(model):
                assert torch.equal(answer(used), stock)


def test_outputs_may_be_tuples(own: tuple[Any, Any], inputs: dict[str, Tensor]) -> None:
    model, _ = own
    with torch.no_grad(), get_method("random", retention_ratio=0.3)(model):
        out = model(**inputs, use_cache=True)
        step = {"input_ids": torch.tensor([[5], [6]]), "use_cache": True}
        expected = model(**step, past_key_values=out.past_key_values).logits
        cache = next(part for part in model(**inputs, use_cache=True, return_dict=False) if isinstance(part, Cache))
        assert torch.equal(model(**step, past_key_values=cache, return_dict=False)[0], expected)


def test_dense_takes_any_cache(own: tuple[Any, Any], inputs: dict[str, Tensor]) -> None:
    model, _ = own
    stock = model.generate(**inputs, **GREEDY, cache_implementation="static")
    with Dense()(model):
        assert torch.equal(model.generate(**inputs, **GREEDY, cache_implementation="static"), stock)


def test_right_padding_is_refused_where_the_end_of_the_text_is_looked_at(own: tuple[Any, Any]) -> None:
    model, processor = own
    left = prompt_inputs(processor, [TEXTS[0], "Why?"], [[random_video(6, 1)], [random_video(6, 2)]])
    assert not left["attention_mask"].all()
    gap = int((left["attention_mask"][1] == 0).sum())
    right = {**left}
    for name in ("input_ids", "attention_mask"):
        right[name] = left[name].clone()
        right[name][1] = left[name][1].roll(-gap)
    with torch.no_grad():
        for name in ("fastv", "cdpruner"):
            method = get_method(name, retention_ratio=0.3, **({"relevance": "llm"} if name == "cdpruner" else {}))
            with method(model), pytest.raises(ValueError, match=f"{name} reads the end of the text, but .* left"):
                model(**right)
        with get_method("mmg_vid", retention_ratio=0.3)(model):
            one, other = model(**left).logits, model(**right).logits
        torch.testing.assert_close(other[1, -1 - gap], one[1, -1])


def test_sampling_draws_what_the_stock_model_draws(own: tuple[Any, Any], inputs: dict[str, Tensor]) -> None:
    model, _ = own
    options = {"max_new_tokens": 6, "do_sample": True, "num_return_sequences": 2}
    torch.manual_seed(5)
    stock = model.generate(**inputs, **options)
    with Dense()(model):
        torch.manual_seed(5)
        assert torch.equal(model.generate(**inputs, **options), stock)
    with get_method("random", retention_ratio=0.3)(model) as run:
        assert model.generate(**inputs, **options).shape[0] == 4
    assert len(run.report) == 2


def test_images_beside_a_video_are_untouched(own: tuple[Any, Any]) -> None:
    model, processor = own
    content = [{"type": "image"}, {"type": "video"}, {"type": "text", "text": TEXTS[0]}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    image = random_video(1, 7)[0]
    inputs = processor(text=prompt, images=[image], videos=[random_video(6)], return_tensors="pt")
    calls: list[Tensor] = []
    language = model.model.language_model
    for method in (Dense(), get_method("random", retention_ratio=0.25)):
        with method(model) as run, torch.no_grad():
            handle = language.register_forward_pre_hook(
                lambda module, args, kwargs: calls.append(kwargs["inputs_embeds"][0]), with_kwargs=True
            )
            model(**inputs)
            handle.remove()
    images = int((inputs["input_ids"] == model.config.image_token_index).sum())
    first = int((inputs["input_ids"][0] == model.config.image_token_index).nonzero()[0])
    assert images > 0
    assert torch.equal(calls[0][first : first + images], calls[1][first : first + images])
    assert run.report[0].realised_tokens == 24
    assert len(calls[1]) == len(calls[0]) - 72


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(own: tuple[Any, Any], inputs: dict[str, Tensor], dtype: torch.dtype) -> None:
    model, _ = own
    model.to(dtype)
    try:
        stock = model.generate(**inputs, **GREEDY)
        with Dense()(model):
            assert torch.equal(model.generate(**inputs, **GREEDY), stock)
        for name in ("mmg_vid", "tome", "fastv"):
            with get_method(name, retention_ratio=0.3)(model) as run:
                out = model(**inputs)
            assert out.logits.dtype == dtype
            assert out.logits.isfinite().all()
            assert len(run.report) == 2
        with get_method("dycoke", retention_ratio=0.3, layer=1)(model):  # looks at the cache's keys, at each step
            assert model.generate(**inputs, **GREEDY).shape == stock.shape
    finally:
        model.float()


def test_two_models_in_two_threads_do_not_disturb_each_other(own: tuple[Any, Any]) -> None:
    models = [own, built(3)]
    prompts = [prompt_inputs(processor, TEXTS[:1], [[random_video(6, 4)]]) for _, processor in models]
    methods = [get_method("mmg_vid", retention_ratio=0.3), get_method("fastv", retention_ratio=0.2)]

    def answer(i: int) -> list[int]:
        with methods[i](models[i][0]):
            return models[i][0].generate(**prompts[i], **GREEDY)[0, -6:].tolist()

    expected, found = [answer(i) for i in range(2)], [[], []]

    def many(i: int) -> None:
        found[i] += [answer(i) for _ in range(5)]

    threads = [threading.Thread(target=many, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[expected[0]] * 5, [expected[1]] * 5]


def test_one_model_in_two_threads_at_once_is_refused(own: tuple[Any, Any], inputs: dict[str, Tensor]) -> None:
    model, _ = own
    refused: list[str] = []

    def call() -> None:
        with pytest.raises(RuntimeError) as error:
            model(**inputs)
        refused.append(str(error.value))

    def meanwhile(*args: Any) -> None:
        other = threading.Thread(target=call)
        other.start()
        other.join()

    with torch.no_grad(), get_method("fastv", retention_ratio=0.3)(model):
        expected = model(**inputs).logits
        handle = model.model.language_model.layers[1].register_forward_pre_hook(meanwhile)
        found = [model(**inputs).logits for _ in range(2)]
        handle.remove()
    assert all(torch.equal(logits, expected) for logits in found)
    assert [message.partition(":")[0] for message in refused] == [
        "a model that is being pruned was called from two threads at once"
    ] * 2


@pytest.mark.parametrize("name", ["random", "fastv"])
def test_attention_kernels_get_no_position_ids(own: tuple[Any, Any], name: str) -> None:
    """Flash kernels take jumps in position ids for borders between packed sequences, whenever no mask is left."""
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

    model, processor = own
    seen: list[tuple[int, Any]] = []

    def recording(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> Any:
        seen.append((query.shape[2], kwargs.get("position_ids")))
        return sdpa_attention_forward(module, query, key, value, mask, **kwargs)

    AttentionInterface.register("recording", recording)
    AttentionMaskInterface.register("recording", ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    inputs = prompt_inputs(processor, TEXTS[:1], [[random_video(6)]])
    with get_method(name, retention_ratio=0.3)(model):
        expected = model.generate(**inputs, **GREEDY)
    language = model.model.language_model
    language.set_attn_implementation("recording")
    try:
        model.generate(**inputs, **GREEDY)
        assert any(ids is not None for _, ids in seen), "the stock model passes position ids on"
        seen.clear()
        with get_method(name, retention_ratio=0.3)(model):
            assert torch.equal(model.generate(**inputs, **GREEDY), expected)
    finally:
        language.set_attn_implementation("sdpa")
    assert seen
    assert all(ids is None for _, ids in seen)


def test_a_dispatched_model(own: tuple[Any, Any], inputs: dict[str, Tensor]) -> None:
    """accelerate's hooks (device_map) replace `forward`; ours run around them."""
    accelerate = pytest.importorskip("accelerate")
    model, _ = own
    method = get_method("fastv", retention_ratio=0.3)
    with method(model):
        expected = model.generate(**inputs, **GREEDY)
    accelerate.dispatch_model(model, {"": "cpu"}, force_hooks=True)
    try:
        with method(model):
            assert torch.equal(model.generate(**inputs, **GREEDY), expected)
    finally:
        accelerate.hooks.remove_hook_from_module(model, recurse=True)


def test_a_model_in_four_bits() -> None:
    """Pruned as the same model is with the numbers that its four bits stand for; dense as if untouched."""
    packed = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    model, same = (
        AutoModelForImageTextToText.from_pretrained(EMBEDDED, quantization_config=packed, dtype=torch.float32)
        for _ in range(2)
    )
    assert adapter_for(model).layers[0].self_attn.q_proj.weight.dtype == torch.uint8
    same.dequantize()
    assert adapter_for(same).layers[0].self_attn.q_proj.weight.dtype == torch.float32
    inputs = prompt_inputs(AutoProcessor.from_pretrained(EMBEDDED), TEXTS, [[random_video(6, 1)], [random_video(6, 2)]])
    text_only = {k: inputs[k] for k in ("input_ids", "attention_mask")}
    with torch.inference_mode():
        stock = model(**inputs).logits
        with Dense()(model):
            assert torch.equal(model(**inputs).logits, stock)
        for name in ("mmg_vid", "visionzip", "fastv"):
            method = get_method(name, retention_ratio=0.3)
            tokens, encoded = adapter_for(same).encode(inputs, method.needs)
            with pruning(model, method, encoded=tokens) as run:
                logits = model(**text_only, **fresh(encoded)).logits
            with pruning(same, method, encoded=tokens) as expected:
                exact = same(**text_only, **fresh(encoded)).logits
            # bitsandbytes multiplies in bfloat16 where a CPU can
            assert (logits - exact).abs().max() < 0.05 * exact.abs().max()
            assert [v.stages for v in run.report] == [v.stages for v in expected.report]
            assert run.stages or {v.realised_tokens for v in run.report} == {round(0.3 * 6 * 49)}


class Wrapped(torch.nn.Module):
    """As PEFT wraps a model: twice, and what is not found is looked for further inside."""

    def __init__(self, whole: Any, twice: bool = True) -> None:
        super().__init__()
        self.inner = Wrapped(whole, twice=False) if twice else None
        self.model = self.inner or whole

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.model, name)

    def get_base_model(self) -> Any:
        return self.model.model


@pytest.mark.parametrize("wrap", [Wrapped, torch.compile, lambda model: Wrapped(torch.compile(model))])
def test_what_wraps_a_model_is_looked_through(own: tuple[Any, Any], inputs: dict[str, Tensor], wrap: Any) -> None:
    model, _ = own
    method = get_method("fastv", retention_ratio=0.3)
    with method(model) as run:
        expected, reports = model.generate(**inputs, **GREEDY), told(run)
    wrapped = wrap(model)
    for opened, called in ((wrapped, wrapped), (wrapped, model), (model, wrapped)):
        with method(opened) as run:
            assert torch.equal(called.generate(**inputs, **GREEDY), expected)
            assert told(run) == reports
            with pytest.raises(RuntimeError, match="already being pruned"), method(model):
                pass


class Offloaded(DynamicCache):
    """A cache whose layers wait on the host, as those of transformers do, which needs streams for it."""

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        layer: Any = self.layers[layer_idx]
        layer.prefetch()
        held = super().update(keys, values, layer_idx, *args, **kwargs)
        layer.offload()
        assert layer.keys.device.type == "cpu"
        return held


@pytest.mark.parametrize("name", ["mmg_vid", "fastv", "dycoke", "prunevid"])
def test_a_cache_may_lie_on_the_host(own: tuple[Any, Any], inputs: dict[str, Tensor], name: str) -> None:
    method = get_method(name, retention_ratio=0.3, **({"layer": 1} if name == "dycoke" else {}))
    with method(own[0]):
        expected = own[0].generate(**inputs, **GREEDY)
    with mock_cuda():
        model = copy.deepcopy(own[0]).to("cuda")
        there = {key: value.to("cuda") for key, value in inputs.items()}
        with method(model):
            answers = model.generate(**there, **GREEDY, **{CACHE: Offloaded(config=model.config.text_config)})
        assert torch.equal(answers.cpu(), expected)


@pytest.mark.parametrize("family", ["qwen3_vl", "llava_onevision"])
def test_caches_of_other_kinds_are_served_or_refused(family: str) -> None:
    torch.manual_seed(0)
    model, processor = families.BUILDERS[family]()
    inputs = families.prompts(family, processor, TEXTS[:1])
    grows = r"a 2-D attention mask, and a cache that grows: leave cache_implementation"
    for name in ("mmg_vid", "pact", "fastv"):
        with get_method(name, retention_ratio=0.3)(model) as run:
            model.generate(**inputs, **GREEDY, cache_implementation="quantized", cache_config={"backend": "fp8"})
            (video,) = run.report
            assert len(video.left) < video.total_tokens
            with pytest.raises(ValueError, match=grows):
                model.generate(**inputs, **GREEDY, cache_implementation="static")
    looks = r"{} reads the cache, and Fp8QuantizedLayer does not store all keys unchanged: leave cache_implementation"
    for name in ("dycoke", "prunevid"):
        options = {"layer": 1} if name == "dycoke" else {}
        with get_method(name, **options)(model), pytest.raises(ValueError, match=looks.format(name)):
            model.generate(**inputs, **GREEDY, cache_implementation="quantized", cache_config={"backend": "fp8"})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("random", "model"),
        ("random", "multimodal"),
        ("fastv", "language_model"),
        ("fastv", "layers"),
        ("framefusion", "layers"),
    ],
)
def test_what_was_compiled_without_hooks_is_an_error(name: str, part: str) -> None:
    """torch.compile does not look whether hooks were set since: nothing would be pruned, without a word."""
    model, processor = families.qwen2_5_vl()
    inputs = families.prompts("qwen2_5_vl", processor, TEXTS[:1])
    method, adapter = get_method(name, retention_ratio=0.3), adapter_for(model)
    refusal = pytest.raises(RuntimeError, match=rf"{name}: not all hooks ran, .* torch.compiler.reset\(\)")
    with torch.no_grad(), method(model):
        expected = model(**inputs).logits
    compiled = getattr(adapter, part)
    torch.compiler.reset()  # what other tests compiled counts towards torch's limit, beyond which it runs uncompiled
    for module in compiled if part == "layers" else [compiled]:
        module.compile(backend="eager")
    try:
        with torch.no_grad():
            stock = model(**inputs).logits
            with method(model), refusal:
                model(**inputs)
            torch.compiler.reset()
            with method(model):
                torch.testing.assert_close(model(**inputs).logits, expected)
            torch.testing.assert_close(model(**inputs).logits, stock)
    finally:
        torch.compiler.reset()


@pytest.mark.slow
def test_a_compiled_language_model_is_pruned_alike(own: tuple[Any, Any], inputs: dict[str, Tensor]) -> None:
    """Hooks stay in force on layers whose forward is compiled."""
    model, _ = own
    method = get_method("random", retention_ratio=0.3)
    with method(model):
        expected = model(**inputs).logits
    layers = model.model.language_model.layers
    for layer in layers:
        layer.compile(backend="eager", dynamic=True)
    try:
        with method(model), torch.no_grad():
            torch.testing.assert_close(model(**inputs).logits, expected)
    finally:
        for layer in layers:
            layer._compiled_call_impl = None
        torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "aim",
        "dart",
        "dycoke",
        "fastv",
        "flashvid",
        "framefusion",
        "holitom",
        "pact",
        "pdrop",
        "prunevid",
        "sparsevlm",
        "v2drop",
    ],
)
def test_compiled_layers_choose_alike(name: str) -> None:
    torch.manual_seed(0)
    model, processor = families.qwen2_5_vl()
    inputs = families.prompts("qwen2_5_vl", processor, TEXTS[:1])
    method = get_method(name, retention_ratio=0.4, **({"l1": 0, "l2": 2} if name == "aim" else {}))
    with torch.no_grad(), method(model) as run:
        model(**inputs)
        expected = run.report[0].left.tolist()
    for layer in adapter_for(model).layers:
        layer.compile(backend="eager")
    try:
        with torch.no_grad(), method(model) as run:
            model(**inputs)
            assert run.report[0].left.tolist() == expected
    finally:
        torch.compiler.reset()


@pytest.mark.slow
def test_a_method_is_not_compiled_with_the_language_model() -> None:
    torch.manual_seed(0)
    model, processor = families.qwen2_5_vl()
    inputs = families.prompts("qwen2_5_vl", processor, TEXTS[:1])
    method = get_method("sttm", retention_ratio=0.4)
    with torch.no_grad(), method(model):
        expected = model(**inputs).logits
    adapter_for(model).language_model.compile(backend="eager")
    try:
        with torch.no_grad(), method(model):
            torch.testing.assert_close(model(**inputs).logits, expected)
    finally:
        torch.compiler.reset()
