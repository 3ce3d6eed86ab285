"""Every model family: dense is stock, pruning equals masking, and nothing is left behind."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, get_args

import numpy as np
import pytest
import torch
from equalities import BOTH, METHODS, lacking, method_of, prunes_inside, sequential
from masking import Prompt, Trace, kept_logits, masked_logits, stock_prompt, traced
from probing import Probe
from torch import Tensor
from transformers.video_utils import VideoMetadata

import families
from mmg_bench.benchmarks.video import Clip, Timing
from mmg_bench.measure import workload
from mmg_bench.methods.base import Method, Positions
from mmg_bench.methods.dense import Dense
from mmg_bench.methods.registry import get_method
from mmg_bench.models.adapter import FAMILIES, UnsupportedModelError, adapter_for, fresh
from mmg_bench.models.caches import CACHE
from mmg_bench.models.checking import ModelError
from mmg_bench.models.framed import FrameCapture
from mmg_bench.models.hooks import pruning
from mmg_bench.models.loading import VideoLLM, _of_frames
from mmg_bench.models.places import places
from mmg_bench.models.spec import ModelSpec
from mmg_bench.models.splice import PROMPT
from mmg_bench.tokens import PrunedTokens, VideoTokens, keep

STEPS = 4
GREEDY = {"max_new_tokens": STEPS, "do_sample": False}
QUESTION = "What colour is the star?"
CASES = [(label, None) for label in METHODS if label not in BOTH]
CASES += [(label, positions) for label in BOTH for positions in get_args(Positions)]


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
    adapter = adapter_for(model)
    columns = (inputs["input_ids"][0] == adapter.video_token_id).nonzero().flatten().tolist()
    return columns[: len(columns) - adapter.trailing]


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
    frames = families.FRAMES // (2 if name.startswith(("qwen", "glm", "exaone")) else 1)
    assert run.report[0].realised_tokens == frames * math.prod(families.GRIDS[name])


@pytest.mark.parametrize(("label", "positions"), CASES)
def test_pruning_equals_masking(
    family: tuple[str, Any, Any], inputs: dict[str, Tensor], label: str, positions: Positions | None
) -> None:
    _, model, _ = family
    pruner = method_of(label, retention_ratio=0.3)
    if missing := lacking(model, label):
        with pytest.raises(UnsupportedModelError, match=f"do not supply {', '.join(missing)}"), pruner(model):
            pass
        return
    if sequential(model) and prunes_inside(model, label):
        says = "prunes inside .*, which requires all layers to be .*: this model has .*(linear|sliding)_attention"
        with pytest.raises(UnsupportedModelError, match=says), pruner(model):
            pass
        return
    columns = visual(model, inputs)
    positions = positions or pruner.positions
    with traced(pruner, families.LAYERS) as trace, pruner(model, positions=positions) as run:
        ours = logits(model, inputs)[:, 0]
    with torch.no_grad():
        prompt = stock_prompt(model, inputs, columns)
        if sequential(model):
            expected = kept_logits(model, prompt, trace.pruned[0], positions, STEPS)
        else:
            expected = masked_logits(model, prompt, pruner, positions, trace, STEPS)
    torch.testing.assert_close(ours, expected, atol=2e-4, rtol=2e-3)
    assert torch.equal(ours.argmax(-1), expected.argmax(-1))
    left = min([run.report[0].realised_tokens, *(n for _, n in run.report[0].stages)])
    assert left < len(columns) or any(keys is not None for keys in trace.keys)
    if pruner.name == "framefusion":  # prunes by attention, and merges
        fewer = [chosen for _, before, chosen in trace.stages if len(chosen.index) < len(before.positions)]
        assert any((chosen.features is None) == (label == "framefusion") for chosen in fewer)
    stock = logits(model, inputs)[:, 0]
    assert not torch.allclose(ours, stock, atol=1e-3), "the method changed nothing"


def pairs(x: Tensor, interleaved: bool) -> Tensor:
    """What a rotary embedding turns with each other, as complex numbers: `[..., 2 w]` to `[..., w]`."""
    return torch.view_as_complex(x.unflatten(-1, (-1, 2))) if interleaved else torch.complex(*x.chunk(2, -1))


def test_rows_are_those_of_eager_attention(family: tuple[str, Any, Any], inputs: dict[str, Tensor]) -> None:
    """Methods inside go by what is recomputed; the reference takes their choices, and could not tell."""
    _, model, _ = family
    if sequential(model):
        pytest.skip("no method prunes inside it")
    probe = Probe()
    with probe(model):
        cache = getattr(model(**inputs, use_cache=True), CACHE)
    eager_model = copy.deepcopy(model)
    eager_model.set_attn_implementation("eager")
    eager = eager_model(**inputs, output_attentions=True).attentions  # of each layer [1, heads, S, S]
    columns = visual(model, inputs)
    for stage, layer in enumerate(probe.layers(families.LAYERS)):
        seen = probe.seen[stage]
        torch.testing.assert_close(seen["last"], eager[layer - 1][0][:, -1:, columns], atol=1e-5, rtol=1e-3)
        torch.testing.assert_close(seen["own"], eager[layer][0][:, -1:, columns], atol=1e-5, rtol=1e-3)
        heads, keys = probe.heads[stage], cache.layers[layer].keys[0]  # [key-value heads, S, width]
        torch.testing.assert_close(heads.rotated, keys[:, columns], atol=1e-5, rtol=1e-3)
        assert heads.visual.tolist() == columns
        # a rotation leaves lengths as they are
        torch.testing.assert_close(heads.keys[:, columns].norm(dim=-1), keys[:, columns].norm(dim=-1))
        assert heads.queries.shape == (len(eager[layer][0]), columns[-1] + 1, keys.shape[-1])
        ones = probe.phases[stage][1]  # [n, width]: turned as keys are
        turned, straight = (x[..., : ones.shape[-1]] for x in (heads.rotated, heads.keys[:, columns]))
        of_ones, of_turned, of_straight = (pairs(x, adapter_for(model).interleaved) for x in (ones, turned, straight))
        torch.testing.assert_close(of_ones * of_straight, (1 + 1j) * of_turned, atol=1e-4, rtol=1e-3)


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


@dataclass(frozen=True)
class Uneven(Method):
    """Keeps another number of tokens of each video, in turn: the rows of a batch become unequal."""

    counts: list[int] = field(default_factory=list)

    name: ClassVar[str] = "uneven"
    exact: ClassVar[bool] = False

    def select(self, tokens: VideoTokens) -> PrunedTokens:
        return keep(tokens, torch.arange(self.counts.pop(0)) * 3)


def test_a_row_of_which_less_is_left_is_answered_as_if_alone(family: tuple[str, Any, Any]) -> None:
    name, model, processor = family
    both, one = (families.prompts(name, processor, [QUESTION] * rows) for rows in (2, 1))
    with Uneven(counts=[5, 9])(model) as run:
        together = logits(model, both)
    assert [video.realised_tokens for video in run.report] == [5, 9]
    with Uneven(counts=[5])(model):
        torch.testing.assert_close(together[:, :1], logits(model, one), atol=2e-4, rtol=2e-3)


def test_two_videos_in_a_padded_batch_equal_masking(family: tuple[str, Any, Any]) -> None:
    name, model, processor = family
    if name in families.FRAMED:
        pytest.skip("takes one video a prompt: see test_what_is_not_one_video_is_refused")
    texts = [QUESTION, "How many times does it flash?"]
    both, alone = (families.prompts(name, processor, texts[:rows], videos_each=2) for rows in (2, 1))
    assert both["attention_mask"].all(1).tolist() == [False, True]
    pruner, token = get_method("random", retention_ratio=0.3), adapter_for(model).video_token_id
    with torch.no_grad():
        first, second = stock_prompt(model, alone, []), stock_prompt(model, both, [])
    ids = second.ids.expand(*second.ids.shape[:-2], 2, -1)[..., 1:, :]
    prompts = (first, Prompt(second.embeds[1:], ids, [], [added[1:] for added in second.additions]))
    for positions in get_args(Positions):
        with traced(pruner, families.LAYERS) as trace, pruner(model, positions=positions) as run:
            ours = logits(model, both)
        total = run.report[0].total_tokens
        for row, inputs in enumerate((alone["input_ids"][0], both["input_ids"][1])):
            columns = (inputs == token).nonzero().flatten().tolist()
            columns = columns[:total] + columns[len(columns) // 2 :][:total]  # without newlines
            one, other = trace.pruned[2 * row : 2 * row + 2]
            kept = PrunedTokens(
                torch.cat([one.features, other.features]), torch.cat([one.positions, other.positions + total])
            )
            prompt = replace(prompts[row], visual=columns)
            with torch.no_grad():
                if sequential(model):
                    expected = kept_logits(model, prompt, kept, positions, STEPS)
                else:
                    expected = masked_logits(model, prompt, pruner, positions, Trace([kept]), STEPS)
            torch.testing.assert_close(ours[:, row], expected, atol=2e-4, rtol=2e-3)


def test_text_between_placeholders_that_stand_side_by_side_is_named(
    family: tuple[str, Any, Any], inputs: dict[str, Tensor]
) -> None:
    name, model, _ = family
    if not name.startswith(("qwen", "glm", *families.FRAMED)):
        pytest.skip("its frames are not known to have no words between them")
    frames, (height, width) = families.FRAMES // (1 if name in families.FRAMED else 2), families.GRIDS[name]
    length = height * width * (frames if name.startswith("qwen2") else 1)
    ids, at = inputs["input_ids"], visual(model, inputs)[length - 1]
    broken = torch.cat([ids[:, :at], ids[:, -1:], ids[:, at:]], dim=1)
    adapter, layouts = adapter_for(model), [(frames, height, width)]
    assert len(list(places(ids, adapter, layouts))) == 1
    with pytest.raises(ValueError, match=f"not in {length} adjacent ones"):
        list(places(broken, adapter, layouts))


def test_two_videos_and_an_image(family: tuple[str, Any, Any]) -> None:
    name, model, processor = family
    if name in ("llava_onevision", "llava_next_video"):
        pytest.skip("its processor lays images out as videos' frames do not")
    if name in families.FRAMED:
        pytest.skip("takes one video a prompt: see test_what_is_not_one_video_is_refused")
    if name in families.ALONE:
        both = families.prompts(name, processor, [QUESTION], image=True)
        with pytest.raises(ValueError, match="features and image tokens do not match"):
            model.generate(**both, **GREEDY)
    inputs = families.prompts(name, processor, [QUESTION], videos_each=2, image=name not in families.ALONE)
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


def test_two_videos_of_different_sizes(family: tuple[str, Any, Any]) -> None:
    name, model, processor = family
    if name in families.SIZES:
        pytest.skip("its frames are all of one size")
    sizes, merged = ((8, 24, 32), (4, 40, 24)), 1 if name == "video_llama_3" else 2  # frames, pixels a side
    inputs = families.videos_of(processor, QUESTION, *sizes)
    layouts = [(frames // merged, height // 8, width // 8) for frames, height, width in sizes]
    method = get_method("mmg_vid", retention_ratio=0.3)
    with method(model) as run:
        expected = logits(model, inputs)
    assert [video.layout for video in run.report] == layouts
    adapter = adapter_for(model)
    text = families.text_of(inputs)
    tokens, encoded = adapter.encode(inputs, set())
    assert [(video.frames, *video.grid) for video in tokens] == layouts
    with pruning(model, method, encoded=tokens):
        torch.testing.assert_close(logits(model, {**text, **fresh(encoded)}), expected)


@pytest.mark.parametrize(
    ("videos", "image", "says"),
    [
        (2, False, "the same number|do not follow"),
        (1, True, "a first image that is not introduced like"),
        (0, True, "a single image"),
    ],
)
def test_what_is_not_one_video_is_refused(family: tuple[str, Any, Any], videos: int, image: bool, says: str) -> None:
    name, model, processor = family
    if name not in families.FRAMED:
        pytest.skip("has placeholders of its own for videos")
    inputs = families.prompts(name, processor, [QUESTION], videos_each=videos, image=image)
    if name == "smolvlm" and videos and image:  # its processor loses the image
        with pytest.raises(ValueError, match="do not match"):
            model.generate(**inputs, **GREEDY)
        return
    before = model.generate(**inputs, **GREEDY)
    with (
        get_method("random", retention_ratio=0.5)(model),
        pytest.raises(ValueError, match=f"prompt 0 holds .*({says})"),
    ):
        model.generate(**inputs, **GREEDY)
    assert torch.equal(model.generate(**inputs, **GREEDY), before)


def test_frames_are_told_by_the_words_before_them(family: tuple[str, Any, Any]) -> None:
    name, model, _ = family
    if name not in families.FRAMED:
        pytest.skip("has placeholders of its own for videos")
    adapter: Any = adapter_for(model)
    captured = FrameCapture(adapter, frozenset())
    frame = adapter.side**2 * [adapter.video_token_id]
    first, *introduction = words = list(range(1000, 1000 + adapter.words))
    others = [first, *introduction[:-1], 7]  # with the next number, or a later time

    def layouts(before: list[int], *between: list[int], frame: list[int] = frame) -> Any:
        ids = before + frame + [token for some in between for token in some + frame] + [9]
        return adapter.layouts({"input_ids": torch.tensor([ids])}, captured)

    assert layouts(introduction, words, others) == [(3, adapter.side, adapter.side)]
    assert len(layouts(introduction, words, [*others, 7, 7, 7, 7])) == 1
    assert len(layouts([5, *introduction], words)) == 1
    half = (len(introduction) + 1) // 2
    assert len(layouts([5] * (half - 1) + introduction[half - 1 :], words)) == 1
    refused: list[tuple[str, list[int], list[list[int]]]] = [
        ("do not follow one another", introduction, [words, [*others, 7, 7, 7, 7, 7]]),
        ("do not follow one another", introduction[1:], [words[1:]]),
        ("do not follow one another", introduction, [words, words[1:]]),
        ("a first image that is not introduced like", introduction[1:], [words, others]),
        ("a first image that is not introduced like", introduction[:-1], [words, others]),
        ("a first image that is not introduced like", [5] * len(words), [words, others]),
        ("a first image that is not introduced like", [5] * half + introduction[half:], [words, others]),
        ("a single image", introduction, []),
    ]
    if adapter.numbered:
        refused.append(("frames with the same number", introduction, [words, words]))
        refused.append(("do not follow one another", [11, 12], [[10, 11, 12]]))  # images: `</img> \n <img>`
    else:
        assert len(layouts(introduction, words, words)) == 1
    for says, before, between in refused:
        with pytest.raises(ValueError, match=f"prompt 0 holds .*{says}"):
            layouts(before, *between)
    for between, each in (([words, others], frame[1:]), ([words, [*words, frame[0], *words]], frame)):
        with pytest.raises(ValueError, match=f"an image that does not have {len(frame)} adjacent tokens"):
            layouts(introduction, *between, frame=each)


def test_encoding_once_and_beams_give_the_same(family: tuple[str, Any, Any], inputs: dict[str, Any]) -> None:
    name, model, _ = family
    method = get_method("mmg_vid", retention_ratio=0.3)
    beams = {**GREEDY, "num_beams": 2}
    if name in families.ALONE:
        with pytest.raises(ValueError, match="expected a non-empty list of Tensors"):
            model.generate(**inputs, **beams)
        beams = GREEDY
    with method(model):
        expected = [logits(model, inputs), model.generate(**inputs, **beams)]
    text = families.text_of(inputs)
    tokens, encoded = adapter_for(model).encode(inputs, set())
    with pruning(model, method, encoded=tokens):
        torch.testing.assert_close(logits(model, {**text, **fresh(encoded)}), expected[0])
        assert torch.equal(model.generate(**text, **fresh(encoded), **beams), expected[1])
        torch.testing.assert_close(logits(model, {**text, **fresh(encoded)}), expected[0])


def test_videos_are_encoded_in_the_precision_of_the_model(
    family: tuple[str, Any, Any], inputs: dict[str, Tensor]
) -> None:
    model = copy.deepcopy(family[1]).to(torch.bfloat16)
    (tokens,), encoded = adapter_for(model).encode(inputs, set())  # of pixels in float32, as processors make them
    assert tokens.features.dtype == torch.bfloat16
    assert not tokens.features.requires_grad
    text = families.text_of(inputs)
    wider = replace(tokens, features=tokens.features.float())  # as of a tower that was left in float32
    with pruning(model, get_method("random", retention_ratio=0.3), encoded=[wider]):
        assert logits(model, {**text, **fresh(encoded)}).isfinite().all()


def test_an_earlier_prompt_says_nothing_of_videos_encoded_beforehand(family: tuple[str, Any, Any]) -> None:
    name, model, processor = family
    one, two = (families.prompts(name, processor, [QUESTION] * n) for n in (1, 2))
    _, encoded = adapter_for(model).encode(one, set())
    said = families.text_of(one)

    def answer() -> Any:
        try:
            return model.generate(**said, **fresh(encoded), **GREEDY).tolist()
        except ValueError as error:  # where only the tower tells how videos are laid out
            return str(error)

    with get_method("random", retention_ratio=0.3)(model):
        alone = answer()
        for earlier in (one, two):
            model.generate(**earlier, **GREEDY)
            assert answer() == alone
            model(**earlier)  # which encodes in the call itself
            assert answer() == alone


def test_videos_encoded_in_the_context_are_reported_as_they_are(family: tuple[str, Any, Any]) -> None:
    """Not as those that were encoded before."""
    name, model, processor = family
    one, two = (families.prompts(name, processor, [QUESTION] * n) for n in (1, 2))
    adapter = adapter_for(model)
    beams = {} if name in families.ALONE else {"num_beams": 2}
    with get_method("random", retention_ratio=0.3)(model) as run:
        for inputs, videos in ((one, 1), (two, 2), (one, 1)):
            _, encoded = adapter.encode(inputs, set())
            text = families.text_of(inputs)
            model.generate(**text, **fresh(encoded), **GREEDY, **beams)
            assert len(run.report) == videos


def test_prompts_are_not_taken_for_copies_by_an_earlier_call(family: tuple[str, Any, Any]) -> None:
    name, model, processor = family
    if name not in families.FRAMED:
        pytest.skip("has placeholders of its own for videos")
    one, two = (families.prompts(name, processor, [QUESTION] * n) for n in (1, 2))
    _, encoded = adapter_for(model).encode(two, set())
    with get_method("random", retention_ratio=0.3)(model) as run:
        model.generate(**one, **GREEDY)
        model.generate(**{k: two[k] for k in ("input_ids", "attention_mask")}, **fresh(encoded), **GREEDY)
    assert len(run.report) == 2


def test_smolvlm_sees_no_pixels_that_are_padding(family: tuple[str, Any, Any], inputs: dict[str, Tensor]) -> None:
    name, model, _ = family
    if name != "smolvlm":
        pytest.skip("its processor says nothing of the kind")
    shown = inputs["pixel_attention_mask"].clone()
    shown[..., shown.shape[-1] // 2 :] = 0
    inputs = {**inputs, "pixel_attention_mask": shown}
    (tokens,), _ = adapter_for(model).encode(inputs, set())
    with torch.no_grad():
        expected = model.model.get_image_features(inputs["pixel_values"], shown, return_dict=True).pooler_output
    assert torch.equal(tokens.flat, torch.cat(list(expected)))


@pytest.mark.parametrize("method", ["mmg_vid", "fastv"])
def test_a_video_is_reported_once(family: tuple[str, Any, Any], method: str) -> None:
    """However many beams or answers a prompt has."""
    name, model, processor = family
    if method == "fastv" and sequential(model):
        pytest.skip("no method prunes inside it")
    both, one = (families.prompts(name, processor, [QUESTION, "How many times does it flash?"][:n]) for n in (2, 1))
    words = {"suppress_tokens": adapter_for(model).placeholder_ids}  # of an answer, stock code seeks their features
    pruner = get_method(method, retention_ratio=0.3)
    tokens, encoded = adapter_for(model).encode(one, set())
    text = families.text_of(one)
    with pruner(model) as run:
        logits(model, both)
    once, stages = [replace(video, elapsed=None) for video in run.report], run.stages
    assert len(once) == 2
    assert bool(stages) == (method == "fastv")
    repeating: list[dict[str, Any]] = [
        {"num_beams": 3},
        {"num_return_sequences": 2, "do_sample": True},
        {"num_beams": 2, "use_cache": False},
    ]
    for several in repeating if name not in families.ALONE else [{"use_cache": False}]:
        with pruner(model) as run:
            model.generate(**both, **{**GREEDY, **several, **words})
        assert [replace(video, elapsed=None) for video in run.report] == once
        assert run.stages == stages
        with pruning(model, pruner, encoded=tokens) as run:
            model.generate(**text, **fresh(encoded), **{**GREEDY, **several, **words})
        assert [replace(video, elapsed=None) for video in run.report] == once[:1]


def test_prompts_are_copies_only_of_what_the_tower_saw(family: tuple[str, Any, Any]) -> None:
    """Its last call may have been for other prompts, or before the context."""
    name, model, processor = family
    if name not in families.FRAMED:
        pytest.skip("has placeholders of its own for videos")
    adapter: Any = adapter_for(model)
    captured = FrameCapture(adapter, frozenset())
    both = families.prompts(name, processor, [QUESTION] * 2)
    second = {"input_ids": torch.stack([torch.zeros_like(both["input_ids"][0]), both["input_ids"][1]])}
    for captured.frames, videos in ((8, 1), (16, 2), (0, 2), (3, 2), (4, 2), (7, 2), (32, 2)):
        assert len(adapter.layouts(both, captured)) == videos
    for captured.frames in (8, 4, 0):
        assert len(adapter.layouts(second, captured)) == 1
    frame, words = adapter.side**2 * [adapter.video_token_id], list(range(1000, 1000 + adapter.words))
    two = words[1:] + frame + words + frame
    three = [*two, *words[:-1], 7, *frame]
    two += [9] * (len(three) - len(two))
    for captured.frames, rows, frames in ((0, [two] * 2, [2, 2]), (5, [two] * 2 + [three] * 2, [2, 3])):
        assert [count for count, *_ in adapter.layouts({"input_ids": torch.tensor(rows)}, captured)] == frames


def test_decoding_by_hand_continues_at_the_right_position(
    family: tuple[str, Any, Any], inputs: dict[str, Tensor]
) -> None:
    _, model, _ = family
    bare = {k: v for k, v in inputs.items() if k != "attention_mask"}

    def follow(given: dict[str, Tensor], *parts: Tensor) -> Tensor:
        """Logits behind each token of a prompt's continuation, which comes in parts."""
        out = model(**given, use_cache=True)
        made, mask = [out.logits[0, -1:]], given.get("attention_mask")
        for part in parts:
            if mask is not None:
                mask = torch.cat([mask, torch.ones_like(part)], dim=1)
            out = model(input_ids=part, attention_mask=mask, past_key_values=out.past_key_values, use_cache=True)
            made.append(out.logits[0])
        return torch.cat(made)

    for positions in get_args(Positions):
        with torch.no_grad(), get_method("random", retention_ratio=0.3)(model, positions=positions):
            expected = logits(model, inputs)[:, 0]
            tokens = expected[:-1].argmax(-1)[None]
            # stock code that counts on by deltas numbers a whole mask anew, and fails by itself
            for given in [bare] if getattr(model.model, "rope_deltas", None) is not None else [bare, inputs]:
                for parts in (tokens.split(1, dim=1), (tokens,)):
                    torch.testing.assert_close(follow(given, *parts), expected, atol=2e-4, rtol=2e-3)


def second_turn(inputs: dict[str, Tensor], first: Any) -> dict[str, Tensor]:
    """All ids so far and five more, and their mask."""
    ids = torch.cat([first.sequences, torch.tensor([[5, 6, 5, 7, 8]]).expand(len(first.sequences), -1)], dim=1)
    mask = torch.ones_like(ids)
    mask[:, : inputs["attention_mask"].shape[1]] = inputs["attention_mask"]
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("positions", get_args(Positions))
@pytest.mark.parametrize("questions", [[QUESTION], [QUESTION, "How many times does it flash?"]])
def test_a_second_turn_is_as_the_whole_conversation(
    family: tuple[str, Any, Any], positions: Positions, questions: list[str]
) -> None:
    """`generate` is given the cache of the first one, and repeats of its text what the cache is shorter by."""
    name, model, processor = family
    inputs = families.prompts(name, processor, questions)
    with get_method("random", retention_ratio=0.3)(model, positions=positions) as run:
        first = model.generate(**inputs, **GREEDY, return_dict_in_generate=True)
        turn, cache = second_turn(inputs, first), first.past_key_values
        assert cache.get_seq_length() < inputs["input_ids"].shape[1]
        told = list(run.report)
        again = copy.deepcopy(cache)
        ours = logits(model, turn, past_key_values=cache)
        assert run.report == told
        third = torch.cat([turn["input_ids"], ours[:-1].argmax(-1).T], dim=1)
        assert getattr(cache, PROMPT).holds(third, 0)
        # the model counts positions on from what it saw last, and stock code anew where it is told of old videos
        model.generate(input_ids=torch.tensor([[5, 6, 7]]), **GREEDY)
        types = families.typed(inputs, turn["input_ids"])
        ways = ({}, types) if types else ({},)
        later = [logits(model, {**turn, **way}, past_key_values=copy.deepcopy(again)) for way in ways]
        expected = logits(model, {**inputs, **turn, **types})
    for found in (ours, *later):
        torch.testing.assert_close(found, expected, atol=2e-4, rtol=2e-3)


def test_an_image_may_come_in_the_second_turn(family: tuple[str, Any, Any], inputs: dict[str, Tensor]) -> None:
    name, model, processor = family
    if name in (*families.FRAMED, *families.ALONE):
        pytest.skip("takes no image beside videos")
    if name == "llava_next_video":
        pytest.skip("of a prompt with an image alone, its tiny processor makes a token less than its model does")
    image = families.prompts(name, processor, [QUESTION], videos_each=0, image=True)
    with get_method("random", retention_ratio=0.3)(model):
        first = model.generate(**inputs, **GREEDY, return_dict_in_generate=True)
        ids = torch.cat([first.sequences, image["input_ids"]], dim=1)
        turn = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        types = families.typed(inputs, turn["input_ids"])
        if types:
            types["mm_token_type_ids"][:, first.sequences.shape[1] :] = image["mm_token_type_ids"]
        turn |= types | {key: value for key, value in image.items() if key not in families.OF_TEXT}
        grids = {key: value for key, value in inputs.items() if key in ("video_grid_thw", "second_per_grid_ts")}
        ours = logits(model, {**turn, **grids}, past_key_values=first.past_key_values)
        expected = logits(model, {**inputs, **turn})
    torch.testing.assert_close(ours, expected, atol=2e-4, rtol=2e-3)


@pytest.mark.parametrize("positions", get_args(Positions))
@pytest.mark.parametrize("label", ["fastv", "framefusion", "dycoke", "chain(before=tome, inside=sparsevlm)"])
def test_a_second_turn_behind_pruned_layers_is_as_its_tokens_alone(
    family: tuple[str, Any, Any], inputs: dict[str, Tensor], label: str, positions: Positions
) -> None:
    _, model, _ = family
    if sequential(model):
        pytest.skip("no method prunes inside it")
    with method_of(label, retention_ratio=0.3)(model, positions=positions), torch.no_grad():
        first = model.generate(**inputs, **GREEDY, return_dict_in_generate=True)
        turn, cache = second_turn(inputs, first), first.past_key_values
        alone = turn["input_ids"][:, first.sequences.shape[1] - 1 :]
        expected = model(input_ids=alone, past_key_values=copy.deepcopy(cache)).logits[:, -1]
        ours = logits(model, turn, past_key_values=cache)
    torch.testing.assert_close(ours[0], expected, atol=2e-4, rtol=2e-3)


def test_other_text_than_the_cache_holds_is_refused(family: tuple[str, Any, Any], inputs: dict[str, Tensor]) -> None:
    _, model, _ = family
    with get_method("random", retention_ratio=0.3)(model):
        first = model.generate(**inputs, **GREEDY, return_dict_in_generate=True)
        turn, cache = second_turn(inputs, first), first.past_key_values
        turn["input_ids"][:, -7] += 1  # the last but one of the first turn
        with pytest.raises(ValueError, match=r"neither continue nor repeat what the cache .* holds: pass the whole"):
            logits(model, turn, past_key_values=cache)


@pytest.fixture(scope="module")
def llm(family: tuple[str, Any, Any], tmp_path_factory: pytest.TempPathFactory) -> VideoLLM:
    folder = tmp_path_factory.mktemp(family[0])
    for part in family[1:]:
        part.save_pretrained(folder)
    return VideoLLM(ModelSpec("tiny", str(folder), frames=7, dtype="float32", device="cpu"))


@pytest.mark.parametrize("frames", [7, 8])
def test_the_runners_prompts_are_the_processors_own(
    family: tuple[str, Any, Any], llm: VideoLLM, frames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, model, processor = family
    size = families.SIZES.get(name, (24, 32))
    video = np.random.default_rng(5).integers(0, 256, (frames, *size, 3), dtype=np.uint8)
    timing = Timing(tuple(range(3, 3 + 9 * frames, 9)), 200, 6.0)
    chat = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": QUESTION}]}]
    expected = processor(
        text=[processor.apply_chat_template(chat, add_generation_prompt=True)],
        videos=[video],
        video_metadata=[VideoMetadata(200, 6.0, duration=200 / 6, frames_indices=list(timing.indices))],
        return_tensors="pt",
        do_sample_frames=False,
    )
    monkeypatch.setattr(llm.processor.video_processor, "do_sample_frames", True)  # as checkpoints have it
    pixels = llm.preprocess(video, timing)
    inputs = llm.tokenize(QUESTION, pixels.texts)
    assert {*pixels.tensors, *inputs} == set(expected) - {"token_type_ids"}
    assert not set(pixels.tensors) & set(inputs)
    for part, value in {**pixels.tensors, **inputs}.items():
        torch.testing.assert_close(value.view_as(expected[part]), expected[part], rtol=0, atol=0)
    ids = model.generate(**{k: v for k, v in expected.items() if k != "token_type_ids"}, **GREEDY)
    text = processor.tokenizer.decode(ids[0, expected["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    assert llm.generate(inputs, llm.encode(pixels, set()), {"max_new_tokens": STEPS}) == text


def test_times_that_a_family_wants_must_be_told(llm: VideoLLM) -> None:
    video = np.zeros((4, 32, 32, 3), dtype=np.uint8)
    if llm.adapter.timed:
        with pytest.raises(ValueError, match="need the times of frames: pass `preprocess` the timing"):
            llm.preprocess(video)
        with pytest.raises(ValueError, match="timing of a video whose frame rate is known"):
            llm.preprocess(video, Timing((0, 1, 2, 3), 4, None))
    else:
        assert llm.preprocess(video).texts == llm.preprocess(video, Timing.every_second(4)).texts


def test_tokens_know_when_their_frames_are_shown(llm: VideoLLM) -> None:
    """Seven frames, a second and a half apart; where pairs of them become one, four that span the same time."""
    video = np.zeros((7, 32, 32, 3), dtype=np.uint8)
    timing = Timing(tuple(range(3, 66, 9)), 70, 6.0)
    (tokens,) = llm.encode(llm.preprocess(video, timing), set()).tokens
    assert tokens.times is not None
    expected = {7: [0.5, 2, 3.5, 5, 6.5, 8, 9.5], 4: [0.5, 3.5, 6.5, 9.5]}[tokens.frames]
    torch.testing.assert_close(tokens.times, torch.tensor(expected))
    elsewhere = replace(tokens, features=tokens.features.to("meta"), times=None)
    of_frames = _of_frames(elsewhere, torch.arange(7.0))  # known where the model begins, wanted where it encodes
    assert of_frames is not None
    assert of_frames.device == elsewhere.features.device
    if not llm.adapter.timed:
        (tokens,) = llm.encode(llm.preprocess(video), set()).tokens
        assert tokens.times is None


def test_positions_go_on_behind_a_prefill_by_hand(family: tuple[str, Any, Any], llm: VideoLLM) -> None:
    size = families.SIZES.get(family[0], (24, 32))
    timing = Timing(tuple(range(7)), 7, 8.0)  # short, so that no time runs ahead of the text
    clip = Clip(np.random.default_rng(5).integers(0, 256, (7, *size, 3), dtype=np.uint8), timing)
    pixels = workload.preprocess(llm, [clip, clip])
    seen: list[Tensor] = []
    for name in ("dense", "random", "fastv")[: 2 if sequential(llm.model) else 3]:
        method = get_method(name, retention_ratio=1.0 if name == "dense" else 0.3)
        encoded = llm.encode(pixels, set())
        inputs = {k: v.repeat(2, 1) for k, v in llm.tokenize(QUESTION, encoded.texts[:1]).items()}
        with torch.no_grad(), pruning(llm.model, method, encoded=encoded.tokens):
            expected = logits(llm.model, {**inputs, **fresh(encoded.arguments)})
            out = workload.prefill(llm, encoded, inputs)
            seen.clear()
            handle = llm.model.lm_head.register_forward_hook(lambda module, args, output: seen.append(output[:, -1]))
            workload.decode_steps(llm, out, inputs["attention_mask"], STEPS - 1)
            handle.remove()
        torch.testing.assert_close(torch.stack(seen), expected[1:], atol=2e-4, rtol=2e-3)


def test_a_type_without_an_entry_is_served_by_what_it_has(
    family: tuple[str, Any, Any], inputs: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, model, _ = family
    if name == "llava_onevision":
        pytest.skip("its tokens are pooled behind the projector, where nothing can be read without knowing it")
    method = get_method("random", retention_ratio=0.3)
    with method(model):
        expected = logits(model, inputs)
    monkeypatch.delitem(FAMILIES, name, raising=False)
    if name in families.FRAMED:
        with pytest.raises(UnsupportedModelError, match=r"no config\.video_token_id; supported: "):
            adapter_for(model)
        return
    if name in families.ALONE:
        with (
            method(model),
            pytest.raises(ValueError, match=r"for only 0 of the 4 encoded videos, .* needs its own adapter"),
        ):
            model(**inputs)
    elif name in ("qwen3_vl", "qwen3_vl_moe"):
        with method(model), pytest.raises(UnsupportedModelError, match="add tower features inside the language model"):
            model(**inputs)
    else:
        with method(model):
            assert torch.equal(logits(model, inputs), expected)
        says = "prunes inside the language model, (and how layers of models of type|which requires all layers)"
        with pytest.raises(UnsupportedModelError, match=says), get_method("fastv", retention_ratio=0.3)(model):
            pass
    monkeypatch.delattr(model.model, "language_model")
    with pytest.raises(UnsupportedModelError, match=r"no model\.language_model\.layers; supported: "):
        adapter_for(model)


def test_pixels_are_limited_as_the_processor_counts_them(family: tuple[str, Any, Any], llm: VideoLLM) -> None:
    name, _, processor = family
    if hasattr(processor.video_processor, "cap_pixels_per_frame"):  # left open, or not
        left_open = processor.video_processor.cap_pixels_per_frame is None
        assert left_open == name.startswith("qwen3")
        assert llm.processor.video_processor.cap_pixels_per_frame is left_open
    fixed = name in ("llava_onevision", "internvl", "smolvlm", "llava_next_video")
    whole = name.startswith(("qwen3", "glm", "video_llama"))
    assert fixed or whole or name in ("qwen2_vl", "qwen2_5_vl", "exaone4_5")
    frames, most = 8, 16 * 32
    if fixed:
        with pytest.raises(ModelError, match=r"^model.max_pixels=512: \w+ makes all frames one size \(.*leave it at"):
            VideoLLM(replace(llm.spec, max_pixels=most))
        return

    def area(**limits: int) -> int:
        """Pixels of a frame of 64 x 128."""
        limited = VideoLLM(replace(llm.spec, frames=frames, **limits))
        made = limited.preprocess(np.zeros((frames, 64, 128, 3), dtype=np.uint8), Timing.every_second(frames))
        grids = [value for part, value in made.tensors.items() if part.startswith("video_grid")]
        _, height, width = grids[0][0].tolist()
        return height * width * processor.video_processor.patch_size**2

    counted = frames if whole else 1
    of_least = 1 if name == "video_llama_3" else counted
    assert most // 2 <= area(max_pixels=most * counted) <= most
    assert most // 2 <= area(min_pixels=most * of_least, max_pixels=most * counted) <= most
    assert 16 * most <= area(min_pixels=16 * most * of_least, max_pixels=64 * most * counted) <= 64 * most
    with pytest.raises(
        ModelError, match=r"^model.max_pixels=1: the minimum of \d+ exceeds the maximum of 1; set model.min_pix"
    ):
        area(max_pixels=1)


@pytest.mark.parametrize("name", ["random", "fastv"])
def test_hidden_states_are_what_layers_put_out(name: str, family: tuple[str, Any, Any]) -> None:
    """Whether transformers was asked for such before, and has set hooks for it, or is for the first time."""
    torch.manual_seed(0)
    model, processor = families.BUILDERS[family[0]]()
    inputs, states = families.prompts(family[0], processor, [QUESTION]), []
    if sequential(model) and prunes_inside(model, name):
        pytest.skip("refused")
    with torch.no_grad():
        for _ in range(2):
            with get_method(name, retention_ratio=0.5)(model):
                states.append(model(**inputs, output_hidden_states=True).hidden_states)
        stock = model(**inputs, output_hidden_states=True).hidden_states
    assert all(map(torch.equal, *states))
    if name == "fastv":  # layers 0 and 1 see everything
        assert all(torch.allclose(state, other) for state, other in zip(states[0][:3], stock, strict=False))
