"""Pruning inside the language model: the attention it goes by, and the equality of removing with masking."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from equalities import VARIANTS
from masking import masked_logits, stock_prompt, traced
from probing import Probe
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from llm_layer import layer_attention
from mmg_bench.methods._inside import InsideMethod, layers_at
from mmg_bench.methods.base import Method, Positions
from mmg_bench.methods.registry import get_method, method_class, method_names
from mmg_bench.models.adapter import UnsupportedModelError
from mmg_bench.models.attention import softmax_weights
from mmg_bench.models.hooks import pruning
from mmg_bench.models.inside import weighed
from mmg_bench.models.kept import Kept
from mmg_bench.models.prompt import Prompt, Span
from mmg_bench.tokens import LayerTokens, PrunedTokens, Selection, VideoTokens, keep
from prompts import prompt_inputs, random_video

STEPS = 4
GREEDY = {"max_new_tokens": STEPS, "min_new_tokens": STEPS, "do_sample": False}
QUESTION = "What colour is the star? Answer with one word."
DEPTH = 6


def inside_methods() -> list[str]:
    built = {name: method_class(name) for name in method_names()}
    return [n for n, c in built.items() if c.layers is not Method.layers or c.key_layer is not Method.key_layer]


@pytest.fixture(autouse=True)
def no_hook_is_left(deep: tuple[Any, Any]) -> Iterator[None]:
    yield
    hooks = [h for m in deep[0].modules() for h in m._forward_pre_hooks.values()]
    assert not any(h.__module__.startswith("mmg_bench") for h in hooks)


@dataclass(frozen=True)
class Chooses(InsideMethod):
    """Leaves, before layer 2, what it is told to."""

    chosen: Any = None

    name: ClassVar[str] = "chooses"

    def layers(self, depth: int) -> tuple[int, ...]:
        return (2,)

    def select_inside(self, tokens: LayerTokens) -> Selection:
        selection: Selection = self.chosen(tokens)
        return selection


@pytest.mark.parametrize(
    ("chosen", "error", "says"),
    [
        (lambda t: None, TypeError, r"chooses\.select_inside returned NoneType: it must return Selection"),
        (lambda t: torch.arange(3), TypeError, r"chooses\.select_inside returned Tensor: it must return Selection"),
        (
            lambda t: Selection(torch.tensor([4, 4])),
            ValueError,
            r"stage 0 inside the model: index must be within 0\.\.95, each token at most once",
        ),
        (lambda t: Selection(torch.tensor([2, -1])), ValueError, r"index must be within 0\.\.95"),
        (lambda t: Selection(torch.tensor([2, 96])), ValueError, r"index must be within 0\.\.95"),
        (
            lambda t: Selection(torch.arange(0)),
            ValueError,
            r"index is \[0\] int64: it must be \[K\] int64 with K in 1\.\.96",
        ),
        (lambda t: Selection(torch.tensor([1.0])), ValueError, r"index is \[1\] float32: it must be \[K\] int64"),
        (lambda t: Selection(torch.arange(2), t.features[:1]), ValueError, r"they must be \[2, 32\]"),
        (lambda t: Selection(torch.arange(1), t.features[:1] / 0), ValueError, "features hold NaN or infinite"),
    ],
)
def test_selections_that_are_out_of_place_are_refused(
    deep: tuple[Any, Any], inputs: dict[str, Tensor], chosen: Any, error: type[Exception], says: str
) -> None:
    with Chooses(chosen=chosen)(deep[0]), torch.no_grad(), pytest.raises(error, match=says):
        deep[0](**inputs)


def test_what_a_layer_gave_is_not_written_to(deep: tuple[Any, Any], inputs: dict[str, Tensor]) -> None:
    """Features of the method's own go on in a copy: others may hold the hidden states."""
    given: list[tuple[Tensor, Tensor]] = []
    handle = (
        deep[0]
        .model.language_model.layers[1]
        .register_forward_hook(lambda module, args, output: given.append((output, output.clone())))
    )
    with Chooses(chosen=lambda t: Selection(torch.arange(4), t.features[:4] + 1))(deep[0]), torch.no_grad():
        deep[0](**inputs)
    handle.remove()
    ((output, before),) = given
    assert torch.equal(output, before)


# ------------------------------------------------------------------------------------------------ attention


def test_rows_are_those_of_eager_attention(deep: tuple[Any, Any], inputs: dict[str, Tensor]) -> None:
    model, _ = deep
    probe, used = Probe(), []
    sdpa = torch.nn.functional.scaled_dot_product_attention

    def counting(*args: Any, **kwargs: Any) -> Tensor:
        used.append(args[0].shape)
        return sdpa(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch, probe(model):
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", counting)
        assert model.model.language_model.config._attn_implementation == "sdpa"
        model(**inputs)
        assert model.model.language_model.config._attn_implementation == "sdpa"
    assert sum(shape[1] == 4 for shape in used) == DEPTH, "every layer of the language model must stay on SDPA"
    model.set_attn_implementation("eager")
    try:
        eager = model(**inputs, output_attentions=True).attentions  # of each layer [1, heads, S, S]
    finally:
        model.set_attn_implementation("sdpa")
    visual = (inputs["input_ids"][0] == model.config.video_token_index).nonzero().flatten()[:-1]
    behind = torch.arange(int(visual[-1]) + 2, inputs["input_ids"].shape[1])
    for stage, layer in enumerate((2, 3)):
        seen = probe.seen[stage]
        torch.testing.assert_close(seen["last"], eager[layer - 1][0][:, -1:, visual], atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(seen["text"], eager[layer - 1][0][:, behind][..., visual], atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(seen["own"], eager[layer][0][:, -1:, visual], atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(seen["all"][:, -1], seen["text"][:, -1])  # the last token's row, which sees all
        assert (seen["all"][:, :-1].sum(-1) < seen["text"][:, :-1].sum(-1)).all()  # of the later text, too
        assert not torch.allclose(seen["plain"], seen["all"], atol=1e-3)
        heads = probe.heads[stage]  # up to the last visual token
        assert heads.queries.shape[1] == heads.keys.shape[1] == int(heads.visual[-1]) + 1
        queries, keys = probe.compared[stage]
        whole = softmax_weights(queries, keys.keys, torch.ones(queries.shape[1], len(queries[0])).tril().bool(), 1)
        torch.testing.assert_close(whole, eager[layer - 1][0], atol=1e-6, rtol=1e-4)
        assert torch.equal(keys.visual, visual)
        assert torch.equal(keys.text, behind)
        hidden, normed = probe.normed[stage]
        assert torch.equal(normed, model.model.language_model.norm(hidden))


def test_rows_of_a_padded_prompt_are_those_of_it_alone(deep: tuple[Any, Any]) -> None:
    model, processor = deep
    texts, videos = [QUESTION, "How many times does the star flash?"], [[random_video(6, seed)] for seed in (1, 2)]
    both = prompt_inputs(processor, texts, videos)
    padded = both["attention_mask"][:, 0].tolist().index(0)
    together, alone = Probe(), Probe()
    with together(model):
        model(**both)
    with alone(model):
        model(**prompt_inputs(processor, texts[padded : padded + 1], videos[padded : padded + 1]))
    for stage, expected in enumerate(alone.seen):
        for name, rows in expected.items():
            torch.testing.assert_close(together.seen[2 * stage + padded][name], rows, atol=1e-6, rtol=1e-4)
        (*parts, keys), (*own, of_own) = together.heads[2 * stage + padded], alone.heads[stage]
        for part, same in [*zip(parts, own, strict=True), (keys @ keys.mT, of_own @ of_own.mT)]:
            torch.testing.assert_close(part, same, atol=1e-4, rtol=1e-4)  # positions count from the first column
        (queries, keys), (own, of_own) = together.compared[2 * stage + padded], alone.compared[stage]
        torch.testing.assert_close(queries[:4:2] @ keys.keys.mT, own[:4:2] @ of_own.keys.mT, atol=1e-4, rtol=1e-4)
        assert torch.equal(keys.visual, of_own.visual)
        assert torch.equal(keys.text, of_own.text)


def test_rows_without_rotary_embedding_and_mask_are_those_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, q, k = (torch.randn(*shape, generator=generator) for shape in ((5, 6), (8, 6), (4, 6)))
    real, rows = torch.tensor([False, True, True, True, True]), torch.tensor([1, 3])
    attention = replace(layer_attention(hidden, q, k, 4, torch.arange(5), 1e4), real=real)  # two heads share their keys
    weights = attention.weights(rows, rotary=False, causal=False)
    for head in range(4):
        queries, keys = (
            x @ w.T for x, w in ((hidden[rows], q.view(4, 2, 6)[head]), (hidden, k.view(2, 2, 6)[head // 2]))
        )
        torch.testing.assert_close(weights[head, :, 1:], (queries @ keys[1:].T / 2**0.5).softmax(-1))
    assert not weights[..., 0].any()


def test_queries_and_keys_are_each_normalised_by_a_norm_of_their_own() -> None:
    hidden, q, k = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(0))
    attention, rows = layer_attention(hidden, q, k, 2, torch.arange(4), 1e4), torch.tensor([1, 3])
    queries, keys = attention.queries(rows), attention.keys()
    attention.module.q_norm, attention.module.k_norm = (lambda x: 2 * x), (lambda x: 3 * x)
    torch.testing.assert_close(attention.queries(rows), 2 * queries)
    torch.testing.assert_close(attention.keys(), 3 * keys)


def test_attention_of_a_model_in_half_precision_is_in_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, q, k = (torch.randn(*shape, generator=generator).bfloat16() for shape in ((5, 6), (8, 6), (4, 6)))
    attention = layer_attention(hidden, q, k, 4, torch.arange(5), 1e4)
    queries, keys = attention.queries(torch.tensor([4]), rotary=False), attention.keys(rotary=False)
    assert {queries.dtype, keys.dtype} == {torch.float32}
    seen, cached = torch.ones(1, 5, dtype=torch.bool), keys.bfloat16()  # as a cache keeps them
    assert torch.equal(softmax_weights(queries, cached, seen, 0.5), softmax_weights(queries, keys, seen, 0.5))


@dataclass(frozen=True)
class Remembers(InsideMethod):
    """Hides no keys; `saw` gets what it is told at each step, the attention and what it returned at the last."""

    saw: list[tuple[Tensor, Tensor | None]] = field(default_factory=list)

    name: ClassVar[str] = "remembers"

    def key_layer(self, depth: int) -> int:
        return 2

    def select_keys(self, attention: Tensor, memory: Tensor | None) -> tuple[Tensor | None, Tensor]:
        self.saw.append((attention, memory))
        return None, attention


def test_each_step_is_told_its_mean_attention_and_what_the_last_returned(
    deep: tuple[Any, Any], inputs: dict[str, Tensor]
) -> None:
    model, length = copy.deepcopy(deep[0]), inputs["input_ids"].shape[1]
    with (method := Remembers())(model):
        ids = model.generate(**inputs, **GREEDY)[:, :-1]
    model.set_attn_implementation("eager")
    with torch.no_grad():
        whole = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
        rows = model(**whole, output_attentions=True).attentions[1][0].mean(0)[length:]
    visual = (inputs["input_ids"][0] == model.config.video_token_index).nonzero().flatten()[:-1]
    told, remembered = zip(*method.saw, strict=True)
    torch.testing.assert_close(torch.stack(told), rows[:, visual], atol=1e-6, rtol=1e-4)
    assert remembered[0] is None
    assert all(torch.equal(last, memory) for last, memory in zip(told[:-1], remembered[1:], strict=True))


def test_each_row_of_a_batch_is_told_its_own_attention(deep: tuple[Any, Any]) -> None:
    model, processor = deep
    texts, videos = [QUESTION, "How many times does the star flash?"], [[random_video(6, seed)] for seed in (1, 2)]
    with (together := Remembers())(model):
        model.generate(**prompt_inputs(processor, texts, videos), **GREEDY)
    for row in (0, 1):
        with (alone := Remembers())(model):
            model.generate(**prompt_inputs(processor, texts[row : row + 1], videos[row : row + 1]), **GREEDY)
        told, expected = (torch.stack([seen for seen, _ in saw]) for saw in (together.saw[row::2], alone.saw))
        torch.testing.assert_close(told, expected, atol=1e-6, rtol=1e-4)


@dataclass(frozen=True)
class Hides(Remembers):
    """Shows three keys."""

    name: ClassVar[str] = "hides"

    def select_keys(self, attention: Tensor, memory: Tensor | None) -> tuple[Tensor | None, Tensor]:
        return torch.arange(3), attention


def test_keys_are_hidden_in_a_mask_of_its_own(deep: tuple[Any, Any], inputs: dict[str, Tensor]) -> None:
    """Not in the caller's, which goes on to the next step."""
    mask = torch.cat([inputs["attention_mask"], torch.ones(1, 1, dtype=torch.long)], dim=1)
    with torch.no_grad(), Hides()(deep[0]):
        out = deep[0](**inputs, use_cache=True)
        deep[0](input_ids=torch.tensor([[5]]), attention_mask=mask, past_key_values=out.past_key_values)
    assert mask.all()


# ------------------------------------------------------------------------------------- removing and masking


@pytest.mark.parametrize("positions", ["original", "contiguous"])
@pytest.mark.parametrize("name", [*inside_methods(), "sparsevlm+", "framefusion+"])
def test_removing_equals_masking(
    deep: tuple[Any, Any], inputs: dict[str, Tensor], name: str, positions: Positions
) -> None:
    model, _ = deep
    options: dict[str, dict[str, Any]] = {
        "flashvid": {option: value for option, value in VARIANTS["flashvid"].items() if option != "name"},
        "random": {"layer": 2},
        "sparsevlm+": {"version": 2},
        "framefusion+": {"similarity_lower_bound": 0.4},  # at which it merges before all MLPs but the last
    }
    method = get_method(name.removesuffix("+"), retention_ratio=0.3, **options.get(name, {}))
    visual = (inputs["input_ids"][0] == model.config.video_token_index).nonzero().flatten()[:-1]
    with torch.no_grad(), traced(method, DEPTH) as trace, method(model, positions=positions) as run:
        made = model.generate(**inputs, **GREEDY, return_dict_in_generate=True, output_logits=True)
    with torch.no_grad():
        prompt = stock_prompt(model, inputs, visual.tolist())
        expected = masked_logits(model, prompt, method, run.positions, trace, STEPS)
    ids = made.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    assert ids == expected.argmax(-1).tolist()
    torch.testing.assert_close(torch.cat(made.logits), expected, atol=2e-4, rtol=2e-3)
    assert run.stages == [[layer, len(chosen.index)] for layer, _, chosen in trace.stages]
    left = run.report[0].positions
    for _, _, chosen in trace.stages:
        left = left[chosen.index]
    assert torch.equal(run.report[0].left, left)
    assert [n for _, n in run.stages] == sorted((n for _, n in run.stages), reverse=True)
    if method.key_layer(DEPTH) is not None:
        assert any(keys is not None and len(keys) < run.report[0].realised_tokens for keys in trace.keys)
    else:
        assert run.stages[-1][1] < run.report[0].realised_tokens


def test_caches_below_the_stage_are_pruned_where_the_method_says_so(
    deep: tuple[Any, Any], inputs: dict[str, Tensor]
) -> None:
    model, _ = deep
    for name, pruned in (("prunevid", True), ("fastv", False)):
        method = get_method(name, retention_ratio=0.5)
        with torch.no_grad(), method(model) as run:
            cache = model(**inputs, use_cache=True).past_key_values
        lengths = [layer.get_seq_length() for layer in cache.layers]
        (layer, left), whole = run.stages[0], run.prompt_tokens
        assert whole is not None
        assert lengths[layer:] == [whole - run.report[0].realised_tokens + left] * (DEPTH - layer)
        assert lengths[:layer] == [lengths[-1] if pruned else whole] * layer


# --------------------------------------------------------------------------------------- proportional attention


def test_sizes_weigh_attention_by_whichever_implementation(deep: tuple[Any, Any], inputs: dict[str, Tensor]) -> None:
    """A token that stands for two, in this layer and all behind it, counts as if it stood there twice."""
    model = copy.deepcopy(deep[0])
    answers = {}
    for kind in ("sdpa", "eager"):
        model.set_attn_implementation(kind)
        for proportional in (True, False):
            with torch.no_grad(), get_method("pact", retention_ratio=0.2, proportional=proportional)(model):
                made = model.generate(**inputs, **GREEDY, return_dict_in_generate=True, output_logits=True)
            answers[kind, proportional] = torch.stack(made.logits)
    for proportional in (True, False):
        torch.testing.assert_close(answers["sdpa", proportional], answers["eager", proportional], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(answers["sdpa", True], answers["sdpa", False], atol=1e-2)


def test_a_mask_of_sizes_counts_tokens_more_than_once() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 5, 8, generator=generator)
    twice = [0, 1, 1, 2, 3, 3, 3, 4]
    weights = torch.tensor([[1, 2, 1, 3, 1]]).log()
    hidden = torch.zeros(1, 5, 16)
    attend = torch.nn.functional.scaled_dot_product_attention
    seen = torch.tensor(twice) <= torch.arange(5)[:, None]
    expected = attend(q, k[:, :, twice], v[:, :, twice], attn_mask=seen)
    causal = torch.ones(1, 1, 5, 5, dtype=torch.bool).tril()
    added = torch.zeros(1, 1, 5, 5).masked_fill(~causal, torch.finfo(torch.float32).min)
    for mask in (None, causal, added):
        torch.testing.assert_close(attend(q, k, v, attn_mask=weighed(mask, weights, hidden)), expected)
    for mask in (None, causal, added.half()):
        half = weighed(mask, weights, hidden.half())
        assert half.dtype == torch.float16
        assert half.isfinite().all()
        assert torch.equal(half == torch.finfo(torch.float16).min, ~causal)
    last = weighed(None, weights, hidden[:, -2:])  # of two that are decoded behind three
    torch.testing.assert_close(attend(q[:, :, -2:], k, v, attn_mask=last), expected[:, :, -2:])


@dataclass(frozen=True)
class Weighs(InsideMethod):
    """Leaves tokens out of order, with sizes at the first and the last of three stages."""

    name: ClassVar[str] = "weighs"
    weighs: ClassVar[bool] = True

    def layers(self, depth: int) -> tuple[int, ...]:
        return (1, 2, 4)

    def select_inside(self, tokens: LayerTokens) -> Selection:
        index, sizes = (([5, 3, 9], [2.0, 3.0, 4.0]), ([2, 0], None), ([1, 0], [5.0, 6.0]))[tokens.stage]
        return Selection(torch.tensor(index), sizes=None if sizes is None else torch.tensor(sizes))


def test_sizes_stay_with_their_tokens_until_others_are_told(deep: tuple[Any, Any], inputs: dict[str, Tensor]) -> None:
    """At prefill, and at each step behind it."""
    masks: list[list[Tensor]] = [[] for _ in range(DEPTH)]
    with Weighs()(deep[0]):
        handles = [
            layer.register_forward_pre_hook(
                lambda module, args, kwargs, seen=seen: seen.append(kwargs["attention_mask"]), with_kwargs=True
            )
            for layer, seen in zip(deep[0].model.language_model.layers, masks, strict=True)
        ]
        deep[0].generate(**inputs, **GREEDY)
        for handle in handles:
            handle.remove()
    for seen, sizes in zip(masks[1:], ([2, 3, 4], [4, 2], [4, 2], [5, 6], [5, 6]), strict=True):
        assert len(seen) == STEPS
        for mask in seen:
            weights = mask[0, 0, -1]  # of the last row, which sees all
            torch.testing.assert_close(weights[weights != 0].exp(), torch.tensor(sizes, dtype=torch.float32))


def test_attention_that_takes_no_weights_is_refused(deep: tuple[Any, Any]) -> None:
    model = copy.deepcopy(deep[0])
    model.model.language_model.config._attn_implementation = "flash_attention_2"
    says = (
        "pact adds to attention scores, which flash_attention_2 cannot: .*=sdpa or eager, "
        r"or turn this off if the method has an option for it \(pact's is proportional=False\)"
    )
    with pytest.raises(UnsupportedModelError, match=says), get_method("pact")(model):
        pass
    with get_method("pact", proportional=False)(model), get_method("fastv")(deep[0]):
        pass


# ------------------------------------------------------------------------------------------ batches and misuse


@dataclass(frozen=True)
class Uneven(InsideMethod):
    """Leaves a number of tokens that depends on the video."""

    name: ClassVar[str] = "uneven"
    positions: ClassVar[Positions] = "contiguous"

    def layers(self, depth: int) -> tuple[int, ...]:
        return (1, 3)

    def select_inside(self, tokens: LayerTokens) -> Selection:
        count = 30 - 10 * tokens.stage + int(tokens.features.double().sum().abs() * 1e4) % 7
        return Selection(torch.arange(count) * (2 - tokens.stage))


@pytest.mark.parametrize(
    "name", ["uneven", "fastv", "framefusion", "sparsevlm", "holitom", "pact", "prunevid", "dycoke"]
)
def test_rows_of_a_batch_are_answered_as_if_alone(deep: tuple[Any, Any], name: str) -> None:
    model, processor = deep
    texts = [QUESTION, "How many times does the star flash?", "What shape is the red object?"]
    videos = [[random_video(6, seed)] for seed in (1, 2, 3)]
    method = Uneven() if name == "uneven" else get_method(name, retention_ratio=0.4)
    inputs = prompt_inputs(processor, texts, videos)
    assert (inputs["attention_mask"] == 0).any()
    with method(model) as run:
        together = model.generate(**inputs, **GREEDY)[:, -STEPS:]
    counts = [v.stages for v in run.report]
    for row, (text, video) in enumerate(zip(texts, videos, strict=True)):
        with method(model) as run:
            alone = model.generate(**prompt_inputs(processor, [text], [video]), **GREEDY)[:, -STEPS:]
        assert torch.equal(together[row], alone[0])
        assert counts[row] == run.report[0].stages


def test_two_videos_in_one_prompt_are_pruned_each(deep: tuple[Any, Any]) -> None:
    model, processor = deep
    inputs = prompt_inputs(processor, [QUESTION], [[random_video(4, 1), random_video(4, 2)]])
    with get_method("fastv", retention_ratio=0.25)(model) as run:
        model.generate(**inputs, **GREEDY)
    assert [v.stages for v in run.report] == [((2, 16),), ((2, 16),)]
    assert run.stages == [[2, 32]]


@dataclass(frozen=True)
class Reads(Method):
    """Keeps every other token, before the model and at two layers of it; `saw` gets what it was shown of the text."""

    saw: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    name: ClassVar[str] = "reads"
    needs: ClassVar[frozenset[str]] = frozenset({"query"})

    def layers(self, depth: int) -> tuple[int, ...]:
        return (1, 3)

    def select(self, tokens: VideoTokens) -> PrunedTokens:
        self.saw.append((tokens.query, torch.empty(0)))
        return keep(tokens, torch.arange(self.budget(tokens)) * 2)

    def select_inside(self, tokens: LayerTokens) -> Selection:
        rows = tokens.attention(torch.arange(len(tokens.text)))
        torch.testing.assert_close(rows[:, -1:], tokens.attention())
        assert tokens.attention.phases()[0].shape[0] == len(tokens.text)
        self.saw.append((tokens.text, rows))
        return Selection(torch.arange(0, len(tokens.positions), 2))


def test_the_text_behind_a_video_holds_no_other_video(deep: tuple[Any, Any]) -> None:
    """Of a video, or two with words between them, in prompts of unequal length; what the language model has of it."""
    model, processor = deep
    prompts = [f"<video> what colour ? <video> {QUESTION}", "how many <video> times ?"]
    videos = [random_video(4, seed) for seed in (1, 2, 3)]
    inputs = processor(text=prompts, videos=videos, return_tensors="pt", padding=True)
    hidden: list[Tensor] = []
    watched = [model.model.language_model.layers[number] for number in (0, 2)]
    handles = [layer.register_forward_hook(lambda m, a, output: hidden.append(output)) for layer in watched]
    with torch.no_grad(), (method := Reads(0.5))(model):
        model(**inputs)
    for handle in handles:
        handle.remove()
    rows, words = [0, 0, 1], []
    video = inputs["input_ids"] == model.config.video_token_index
    for number, row in enumerate(rows):
        ends = (video[row] & ~video[row].roll(-1)).nonzero().flatten()
        text = inputs["input_ids"][row, int(ends[number % 2]) :]
        words.append(text[text != model.config.video_token_index])
    assert len(words[0]) > len(words[1]) > len(words[2]) > 0
    for number, ids in enumerate(words):
        embedded = model.get_input_embeddings()(ids)
        assert torch.equal(method.saw[number][0], embedded)
        for stage, states in enumerate(hidden):
            text, attention = method.saw[3 * (stage + 1) + number]
            last, second = len(words[max(number, 1)]), 32 // (stage + 1) + 1  # of the other video, and its newline
            between = states[rows[number]][-second - len(ids) : -second - last] if number == 0 else states[0, :0]
            assert torch.equal(text, torch.cat([between, states[rows[number], -last:]]))
            assert text.shape == embedded.shape
            assert attention.shape[1] == len(ids)


def test_the_text_behind_a_video_holds_no_image(deep: tuple[Any, Any]) -> None:
    model, processor = deep
    picture = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    prompt = f"<video> what colour ? <image> {QUESTION}"
    inputs = processor(text=[prompt], videos=[random_video(4, 1)], images=[picture], return_tensors="pt")
    with torch.no_grad(), (method := Reads(0.5))(model):
        model(**inputs)
    (ids,) = inputs["input_ids"]
    is_video, is_image = ids == model.config.video_token_index, ids == model.config.image_token_index
    assert is_image.any()
    behind = torch.arange(len(ids)) > is_video.nonzero().max()
    assert torch.equal(method.saw[0][0], model.get_input_embeddings()(ids[behind & ~is_image]))
    assert [len(text) for text, _ in method.saw] == [int((behind & ~is_image).sum())] * 3


@dataclass(frozen=True)
class Thins(InsideMethod):
    """Keeps every other token before two layers that follow each other, and one that does not; `saw` gets all."""

    saw: list[LayerTokens] = field(default_factory=list)

    name: ClassVar[str] = "thins"

    def layers(self, depth: int) -> tuple[int, ...]:
        return (2, 3, 5)

    def select_inside(self, tokens: LayerTokens) -> Selection:
        self.saw.append(tokens)
        return Selection(torch.arange(0, len(tokens.positions), 2), state=(tokens.state or 0) + 1)


def test_a_stage_is_shown_what_its_tokens_were_before_the_last_layer(deep: tuple[Any, Any]) -> None:
    model, processor = deep
    inputs = prompt_inputs(processor, ["what ?", QUESTION], [[random_video(4, 1)], [random_video(4, 2)]])
    calls: list[tuple[Tensor, Tensor]] = []  # what each layer was given, and what came of it
    hooks = [
        layer.register_forward_hook(lambda module, args, output: calls.append((args[0], output)))
        for layer in model.model.language_model.layers
    ]
    with torch.no_grad(), (method := Thins())(model):
        model(**inputs)
    for hook in hooks:
        hook.remove()
    assert [tokens.stage for tokens in method.saw] == [0, 0, 1, 1, 2, 2]
    assert [tokens.state for tokens in method.saw] == [None, None, 1, 1, 2, 2]
    for number, tokens in enumerate(method.saw):
        given, came = (part[number % 2] for part in calls[method.layers(DEPTH)[tokens.stage] - 1])
        columns = (tokens.features.unsqueeze(1) == came).all(-1).int().argmax(1)
        assert torch.equal(came[columns], tokens.features)
        assert torch.equal(given[columns], tokens.previous)
        assert not torch.equal(tokens.previous, tokens.features)


@pytest.mark.parametrize("name", ["pdrop", "prunevid"])  # the second prunes caches, if there are any
def test_without_a_cache_the_answer_is_the_same(deep: tuple[Any, Any], inputs: dict[str, Tensor], name: str) -> None:
    model, _ = deep
    with torch.no_grad(), get_method(name, retention_ratio=0.3)(model):
        cached = model(**inputs, use_cache=True).logits
        torch.testing.assert_close(model(**inputs, use_cache=False).logits, cached)


@dataclass(frozen=True)
class Backwards(InsideMethod):
    """Names layers that are none."""

    name: ClassVar[str] = "backwards"

    def layers(self, depth: int) -> tuple[int, ...]:
        return (3, 2)


@pytest.mark.parametrize("layer", [1, 3])
def test_beams_keep_what_their_own_steps_attended_to(
    deep: tuple[Any, Any], inputs: dict[str, Tensor], layer: int
) -> None:
    """A beam's score is that of its ids decoded alone, though a method remembers the last step of each."""
    model = copy.deepcopy(deep[0])
    with torch.no_grad():
        model.lm_head.weight.div_(40)  # beams that are nearly as good as one another
    method, steps, length = get_method("dycoke", p=0.9, layer=layer), 10, inputs["input_ids"].shape[1]
    beams = {"num_beams": 4, "num_return_sequences": 4, "length_penalty": 0.0, "max_new_tokens": steps}
    with method(model):
        found = model.generate(
            **inputs, **beams, min_new_tokens=steps, do_sample=False, return_dict_in_generate=True, output_scores=True
        )
    assert len({tuple(row) for row in found.beam_indices.tolist()}) > 1
    for ids, score in zip(found.sequences[:, length:].tolist(), found.sequences_scores.tolist(), strict=True):
        total = 0.0
        with torch.no_grad(), method(model):
            out = model(**inputs, use_cache=True)
            for token in ids:
                total += float(out.logits[0, -1].log_softmax(-1)[token])
                step = torch.tensor([[token]])
                out = model(input_ids=step, past_key_values=out.past_key_values, use_cache=True)
        assert total == pytest.approx(score, abs=1e-3)


def test_each_video_of_a_beam_goes_on_from_its_own_memory() -> None:
    nothing = torch.empty(0, dtype=torch.long)
    spans = [Span(row, row, nothing, nothing, nothing, 0, None) for row in (0, 0, 1, 1)]
    prompt = Prompt(0, None, spans, memory={number: torch.tensor(number) for number in (0, 1, 2)})
    prompt.reorder_cache(torch.tensor([1, 0]))  # of the last, nothing was handed on
    assert {to: int(memory) for to, memory in prompt.memory.items()} == {0: 2, 2: 0, 3: 1}
    prompt.reorder_cache(torch.tensor([1, 1]))
    assert {to: int(memory) for to, memory in prompt.memory.items()} == {0: 0, 1: 1, 2: 0, 3: 1}


def test_a_prompt_is_cropped_by_as_much_at_each_stage() -> None:
    first = Kept.of(torch.tensor([[True, False, True, True, True]]), [4], contiguous=False)
    second = Kept.of(torch.tensor([[False, True, True, True]]), [3], contiguous=False)
    prompt = Prompt(0, None, [], stages=[first, second])
    prompt.crop(4)
    assert [stage.whole for stage in prompt.stages] == [4, 3]


def test_what_was_said_is_known_while_each_call_tells_it() -> None:
    prompt = Prompt(0, None, [], said=torch.tensor([[1, 2, 3]]))
    prompt.hear(torch.tensor([[4, 5]]), 3)
    assert prompt.holds(torch.tensor([[2, 3, 4]]), 1)
    prompt.hear(torch.tensor([[6]]), 4)  # in place of the last, which was cropped
    assert prompt.holds(torch.tensor([[3, 4, 6]] * 2), 2)
    assert not prompt.holds(torch.tensor([[3, 4, 6], [3, 4, 5]]), 2)
    two = torch.tensor([[7], [8]])
    for column in (5, 6):  # to copies of it
        prompt.hear(two, column)
    assert prompt.holds(two.repeat(1, 2), 5)
    assert not prompt.holds(torch.tensor([[7], [7]]), 5)
    assert not prompt.holds(two[:1], 5)
    for ids, before in ((None, 7), (two, 8), (two[:1], 7)):
        other = copy.copy(prompt)
        other.hear(ids, before)
        assert not other.holds(two, 5)  # nothing is known any more
        other.hear(two, before + 1)
        assert not other.holds(two, before + 1)


@pytest.mark.parametrize(
    ("name", "options"),
    [("fastv", {"layer": 2}), ("dycoke", {"layer": 2}), ("framefusion", {"similarity_lower_bound": 0.4})],
)
def test_nothing_of_a_layer_is_kept_for_longer_than_it_is_looked_at(
    deep: tuple[Any, Any], inputs: dict[str, Tensor], name: str, options: dict[str, Any]
) -> None:
    """Memory of as many hidden states as a prompt has would be charged to the method."""
    layers = deep[0].model.language_model.layers
    given: list[StorageWeakRef] = []
    left: list[bool] = []
    handles = [
        layers[1].self_attn.register_forward_pre_hook(
            lambda module, args, kwargs: given.append(StorageWeakRef(kwargs["hidden_states"].untyped_storage())),
            with_kwargs=True,
        ),
        layers[1].register_forward_pre_hook(
            lambda module, args: given.append(StorageWeakRef(args[0].untyped_storage()))
        ),
        layers[3].register_forward_pre_hook(lambda module, args: left.extend(not one.expired() for one in given)),
    ]
    try:
        with torch.inference_mode(), get_method(name, **options)(deep[0]):
            deep[0](**inputs)
    finally:
        for handle in handles:
            handle.remove()
    assert left == [False, False]


def test_sliding_windows_are_refused(deep: tuple[Any, Any], inputs: dict[str, Tensor]) -> None:
    model, _ = deep
    config = copy.deepcopy(model.config)
    config.text_config.layer_types = ["sliding_attention", *config.text_config.layer_types[1:]]
    config.text_config.sliding_window = 24
    sliding = type(model)(config).eval()
    refusal = pytest.raises(UnsupportedModelError, match=r"fastv prunes inside .* full_attention, sliding_attention")
    with refusal, get_method("fastv")(sliding):
        pass
    with torch.no_grad(), get_method("random", retention_ratio=1.0)(sliding):
        pruned = sliding(**inputs).logits
    with torch.no_grad():
        assert torch.equal(sliding(**inputs).logits, pruned)


def test_misuse_is_explained(deep: tuple[Any, Any]) -> None:
    model, _ = deep
    with (
        pytest.raises(ValueError, match=r"FastV.layer=6: it must be an integer in \[1, 5\]"),
        pruning(model, get_method("fastv", layer=DEPTH)),
    ):
        pass
    with (
        pytest.raises(
            ValueError,
            match=r"backwards: layers\(6\) is \(3, 2\): it must be a tuple of ascending whole numbers in 1\.\.5$",
        ),
        pruning(model, Backwards()),
    ):
        pass
    with pytest.raises(ValueError, match="has no room for 3 pruning stages"):
        layers_at((8, 16, 24), 32, 3)


def test_official_layers_at_other_depths() -> None:
    assert [get_method("pdrop").layers(n) for n in (32, 28, 4)] == [(8, 16, 24), (7, 14, 21), (1, 2, 3)]
    assert [get_method("sparsevlm").layers(n) for n in (32, 28, 4)] == [(3, 7, 16), (3, 6, 14), (1, 2, 3)]
    assert get_method("holitom").layers(28) == (18,)
    assert get_method("holitom", inner=False).layers(28) == ()
    assert get_method("flashvid").layers(28) == (20,)
    assert get_method("prunevid").layers(32) == (11,)
    assert get_method("fastv").layers(28) == (2,)


@pytest.mark.parametrize("name", ["prunevid", "fastv", "dycoke"])
def test_a_prompt_of_text_may_come_between_a_prefill_and_its_decoding(
    deep: tuple[Any, Any], inputs: dict[str, Tensor], name: str
) -> None:
    """PruneVid's stages, which prune caches, are settled only when decoding begins."""
    model, processor = deep
    text = processor.tokenizer("what colour is the star", return_tensors="pt")["input_ids"]
    seen = []
    with torch.no_grad(), get_method(name, retention_ratio=0.3)(model):
        for between in (False, True):
            out = model(**inputs, use_cache=True)
            token = out.logits[:, -1:].argmax(-1)
            if between:
                model(input_ids=text, use_cache=False)
            mask = torch.cat([inputs["attention_mask"], torch.ones_like(token)], dim=1)
            step = model(input_ids=token, attention_mask=mask, past_key_values=out.past_key_values, use_cache=True)
            seen.append(step.logits)
    assert torch.equal(*seen)


@torch.no_grad()
@pytest.mark.parametrize("name", ["fastv", "dart", "prunevid", "sparsevlm"])
def test_a_video_may_be_the_end_of_a_prompt_where_no_text_is_read(
    name: str, deep: tuple[Any, Any], inputs: dict[str, Tensor]
) -> None:
    model, _ = deep
    end = int((inputs["input_ids"][0] == model.config.video_token_index).nonzero()[-1]) + 1
    cut = {key: value[:, :end] if key in ("input_ids", "attention_mask") else value for key, value in inputs.items()}
    with get_method(name, retention_ratio=0.5)(model) as run:
        if name in ("fastv", "dart"):
            assert model(**cut).logits.isfinite().all()
            assert len(run.report[0].left) < run.report[0].total_tokens
        else:
            with pytest.raises(ValueError, match=f"{name} reads the text after a video, .*: put the question after"):
                model(**cut)
            assert model(**inputs).logits.isfinite().all()
