"""Pruning an unmodified model: dense is stock, pruning equals masking, and nothing is left behind."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from mmg_bench.contract import ContractError
from mmg_bench.methods.base import Method
from mmg_bench.methods.cdpruner import CDPruner
from mmg_bench.methods.chain import Chain
from mmg_bench.methods.dense import Dense
from mmg_bench.methods.dycoke import DyCoke
from mmg_bench.methods.fastv import FastV
from mmg_bench.methods.mmg_vid import MMGVid
from mmg_bench.methods.random import Random
from mmg_bench.methods.tango import Tango
from mmg_bench.methods.visionzip import VisionZip
from mmg_bench.models.adapter import UnsupportedModelError, adapter_for
from mmg_bench.models.hooks import pruning
from mmg_bench.models.splice import Splice
from mmg_bench.tokens import PrunedTokens, VideoTokens, keep
from prompts import prompt_inputs, random_video

GREEDY = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
QUESTION = "What colour is the star? Answer with one word."


@pytest.fixture
def inputs(tiny: tuple[Any, Any]) -> dict[str, torch.Tensor]:
    return prompt_inputs(tiny[1], [QUESTION], [[random_video(6)]])


@pytest.fixture(params=[1, 2])
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """All other tests have one; what several give may depend on how they share the work."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def hooks_of(model: torch.nn.Module) -> int:
    """Hooks of ours; transformers sets some of its own, for good, when outputs are first asked for."""
    hooks = [h for m in model.modules() for h in (*m._forward_pre_hooks.values(), *m._forward_hooks.values())]
    return sum(h.__module__.startswith("mmg_bench") for h in hooks)


@pytest.fixture(autouse=True)
def no_hook_is_left(tiny: tuple[Any, Any]) -> Iterator[None]:
    yield
    assert hooks_of(tiny[0]) == 0


def masked_reference(
    model: Any, inputs: dict[str, torch.Tensor], kept: list[torch.Tensor], positions: str
) -> torch.Tensor:
    """Ids that the stock model generates when the pruned tokens are masked instead of removed."""
    mask = inputs["attention_mask"].clone()
    for row, positions_kept in enumerate(kept):
        visual = (inputs["input_ids"][row] == model.config.video_token_index).nonzero().flatten()[:-1]
        dropped = torch.ones(len(visual), dtype=torch.bool)
        dropped[positions_kept] = False
        mask[row, visual[dropped]] = 0
    whole = inputs["attention_mask"] if positions == "original" else mask
    ids = (whole.cumsum(-1) - 1).clamp(min=0)
    return model.generate(**{**inputs, "attention_mask": mask}, position_ids=ids, **GREEDY)


def test_the_report_is_of_the_last_prompt_also_without_a_video(
    tiny: tuple[Any, Any], inputs: dict[str, torch.Tensor]
) -> None:
    model, processor = tiny
    text = processor.tokenizer(QUESTION, return_tensors="pt")
    with MMGVid()(model) as run, torch.no_grad():
        model(**inputs)
        assert len(run.report) == 1
        model(**text)
        assert run.report == []
        assert run.prompt_tokens == text["input_ids"].shape[1]


@pytest.mark.usefixtures("_threads")
def test_dense_is_exactly_stock(tiny: tuple[Any, Any], inputs: dict[str, torch.Tensor]) -> None:
    model, _ = tiny
    stock_ids = model.generate(**inputs, **GREEDY)
    stock_logits = model(**inputs).logits
    with Dense()(model) as run:
        assert torch.equal(model.generate(**inputs, **GREEDY), stock_ids)
        assert torch.equal(model(**inputs).logits, stock_logits)
    assert run.report[0].realised_tokens == run.report[0].total_tokens == 6 * 16
    assert run.prompt_tokens == inputs["input_ids"].shape[1]


def test_the_model_is_left_as_it_was(tiny: tuple[Any, Any], inputs: dict[str, torch.Tensor]) -> None:
    model, _ = tiny
    before = {name: value.clone() for name, value in model.state_dict().items()}
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    stock = model.generate(**inputs, **GREEDY)
    with MMGVid(retention_ratio=0.25)(model):
        assert hooks_of(model) > 0
        model.generate(**inputs, **GREEDY)
    with pytest.raises(KeyError, match="mine"), MMGVid(retention_ratio=0.25)(model):
        raise KeyError("mine")
    assert hooks_of(model) == 0
    assert {name: set(vars(module)) for name, module in model.named_modules()} == attributes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(model.generate(**inputs, **GREEDY), stock)


def test_no_tensor_waits_for_the_garbage_collector(tiny: tuple[Any, Any], inputs: dict[str, torch.Tensor]) -> None:
    """A GPU's memory is free as soon as the context is left, and the cache let go."""
    model, _ = tiny
    tokens, encoded = adapter_for(model).encode(inputs, set())
    text = {k: inputs[k] for k in ("input_ids", "attention_mask")}
    gc.disable()
    try:
        with pruning(model, DyCoke(layer=1), encoded=tokens), torch.no_grad():
            out = model(**text, **encoded, use_cache=True)
            model(input_ids=torch.tensor([[5]]), past_key_values=out.past_key_values)
            cache = weakref.ref(out.past_key_values)
            del out
            assert cache() is None
        video = weakref.ref(tokens[0])
        del tokens
        assert video() is None
    finally:
        gc.enable()


def test_pixels_are_let_go_once_their_prompt_is_pruned(tiny: tuple[Any, Any], inputs: dict[str, torch.Tensor]) -> None:
    model, _ = tiny
    pixels = inputs["pixel_values_videos"].clone()
    held = weakref.ref(pixels)
    with MMGVid(retention_ratio=0.25)(model), torch.no_grad():
        model(**{**inputs, "pixel_values_videos": pixels})
        del pixels
        assert held() is None


@pytest.mark.parametrize("kind", ["video", "image"])
def test_what_went_through_a_tower_is_let_go_once_its_prompt_is_pruned(tiny: tuple[Any, Any], kind: str) -> None:
    """Of an image, too, it is recorded."""
    model, processor = tiny
    turn = {"role": "user", "content": [{"type": kind}, {"type": "text", "text": QUESTION}]}
    prompt = processor.apply_chat_template([turn], add_generation_prompt=True)
    shown = {"videos": [random_video(6)]} if kind == "video" else {"images": [random_video(1)[0]]}
    inputs = processor(text=prompt, **shown, return_tensors="pt")
    seen: list[StorageWeakRef] = []
    handle = model.model.vision_tower.encoder.layers[-1].register_forward_pre_hook(
        lambda module, args: seen.append(StorageWeakRef(args[0].untyped_storage()))
    )
    with VisionZip(retention_ratio=0.25)(model), torch.inference_mode():
        model(**inputs)
        assert [one.expired() for one in seen] == [True]
    handle.remove()


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("positions", ["original", "contiguous"])
@pytest.mark.parametrize("ratio", [0.05, 0.25, 0.7])
def test_pruning_equals_masking(
    tiny: tuple[Any, Any], inputs: dict[str, torch.Tensor], positions: Any, ratio: float
) -> None:
    model, _ = tiny
    method = Random(retention_ratio=ratio)
    (tokens,), _ = adapter_for(model).encode(inputs, set())
    kept = method.prune(tokens).positions
    with method(model, positions=positions) as run:
        ids = model.generate(**inputs, **GREEDY)
    assert torch.equal(ids, masked_reference(model, inputs, [kept], positions))
    assert run.report[0].realised_tokens == round(ratio * 96)
    assert run.prompt_tokens == inputs["input_ids"].shape[1] - 96 + round(ratio * 96)


def test_the_two_numberings_differ(tiny: tuple[Any, Any], inputs: dict[str, torch.Tensor]) -> None:
    model, _ = tiny
    logits = {}
    for positions in ("original", "contiguous"):
        with Random(retention_ratio=0.25)(model, positions=positions):
            logits[positions] = model(**inputs).logits[:, -1]
    assert not torch.allclose(logits["original"], logits["contiguous"])


@pytest.mark.parametrize("positions", ["original", "contiguous"])
def test_a_bare_forward_needs_no_mask(tiny: tuple[Any, Any], inputs: dict[str, torch.Tensor], positions: Any) -> None:
    """transformers takes a jump in position ids for a border between packed sequences, unless a mask is given."""
    model, _ = tiny
    bare = {k: v for k, v in inputs.items() if k != "attention_mask"}
    with Random(retention_ratio=0.25)(model, positions=positions):
        with_mask = model(**inputs, use_cache=False).logits
        without = model(**bare, use_cache=False).logits
        ids = torch.arange(7, 7 + inputs["input_ids"].shape[1])[None]  # only their differences count
        elsewhere = model(**bare, position_ids=ids, use_cache=False).logits
        given = model.model(bare.pop("input_ids"), **bare, use_cache=False).last_hidden_state
    torch.testing.assert_close(without, with_mask)
    torch.testing.assert_close(elsewhere, with_mask, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(model.lm_head(given), with_mask)


def test_decoding_by_hand_continues_at_the_right_position(
    tiny: tuple[Any, Any], inputs: dict[str, torch.Tensor]
) -> None:
    model, _ = tiny
    bare = {k: v for k, v in inputs.items() if k != "attention_mask"}
    for positions in ("original", "contiguous"):
        with Random(retention_ratio=0.25)(model, positions=positions):
            expected = model.generate(**inputs, **GREEDY)[0, -6:].tolist()
            out, ids = model(**bare, use_cache=True), []
            for _ in range(6):
                ids.append(int(out.logits[0, -1].argmax()))
                out = model(input_ids=torch.tensor([[ids[-1]]]), past_key_values=out.past_key_values, use_cache=True)
        assert ids == expected


@pytest.mark.parametrize("positions", ["original", "contiguous"])
def test_a_batch_with_left_padding(tiny: tuple[Any, Any], positions: Any) -> None:
    model, processor = tiny
    texts = ["What colour is the star? Answer with one word.", "How many times does the star flash?"]
    inputs = prompt_inputs(processor, texts, [[random_video(6, 1)], [random_video(6, 2)]])
    assert (inputs["attention_mask"] == 0).any()
    method = Random(retention_ratio=0.3)
    tokens, _ = adapter_for(model).encode(inputs, set())
    kept = [method.prune(t).positions for t in tokens]
    with method(model, positions=positions) as run:
        ids = model.generate(**inputs, **GREEDY)
    assert torch.equal(ids, masked_reference(model, inputs, kept, positions))
    assert len(run.report) == 2


@dataclass(frozen=True)
class Uneven(Method):
    """Keeps another number of tokens of each video: the rows of a batch become unequal."""

    name: ClassVar[str] = "uneven"
    exact: ClassVar[bool] = False

    def select(self, tokens: VideoTokens) -> PrunedTokens:
        count = 5 if tokens.features.sum() > self.retention_ratio else 9
        return keep(tokens, torch.arange(count) * 3)


def test_rows_that_keep_unequal_numbers(tiny: tuple[Any, Any]) -> None:
    model, processor = tiny
    inputs = prompt_inputs(processor, [QUESTION, QUESTION], [[random_video(6, 1)], [random_video(6, 2)]])
    tokens, _ = adapter_for(model).encode(inputs, set())
    sums = [t.features.sum().item() for t in tokens]
    method = Uneven(retention_ratio=0.5)
    object.__setattr__(method, "retention_ratio", sum(sums) / 2)  # one of the two videos lies above
    kept = [method.select(t).positions for t in tokens]
    assert len(kept[0]) != len(kept[1])
    with pruning(model, method) as run:
        ids = model.generate(**inputs, **GREEDY)
    assert torch.equal(ids, masked_reference(model, inputs, kept, "original"))
    assert [v.realised_tokens for v in run.report] == [len(k) for k in kept]


def test_two_videos_in_one_prompt(tiny: tuple[Any, Any]) -> None:
    model, processor = tiny
    inputs = prompt_inputs(processor, [QUESTION], [[random_video(4, 1), random_video(4, 2)]])
    method = Random(retention_ratio=0.5)
    with method(model) as run:
        model.generate(**inputs, **GREEDY)
    assert [v.realised_tokens for v in run.report] == [32, 32]
    assert run.prompt_tokens == inputs["input_ids"].shape[1] - 64


def test_each_video_has_its_own_attention(tiny: tuple[Any, Any]) -> None:
    model, processor = tiny
    method, clips = VisionZip(retention_ratio=0.25), [random_video(4, 1), random_video(4, 2)]
    both = prompt_inputs(processor, [QUESTION], [clips])
    with method(model) as run:
        model(**both)
    tokens, _ = adapter_for(model).encode(both, method.needs)
    for clip, video, encoded in zip(clips, run.report, tokens, strict=True):
        with method(model) as alone:
            model(**prompt_inputs(processor, [QUESTION], [[clip]]))
        assert torch.equal(video.positions, alone.report[0].positions)
        assert torch.equal(video.positions, method.prune(encoded).positions)
    assert not torch.equal(run.report[0].positions, run.report[1].positions)


def test_encoding_once_gives_the_same(tiny: tuple[Any, Any], inputs: dict[str, torch.Tensor]) -> None:
    model, _ = tiny
    tokens, encoded = adapter_for(model).encode(inputs, set())
    text = {k: inputs[k] for k in ("input_ids", "attention_mask")}
    method = MMGVid(retention_ratio=0.25)
    with method(model):
        expected = model.generate(**inputs, **GREEDY)
    with pruning(model, method, encoded=tokens) as run:
        first = model.generate(**text, **encoded, **GREEDY)
        second = model.generate(**text, **encoded, **GREEDY)
    assert torch.equal(first, expected)
    assert torch.equal(second, expected)
    assert run.report[0].notes["segments"]


@dataclass(frozen=True)
class Zeroed(Method):
    """Keeps token 0 only, with features of its own."""

    name: ClassVar[str] = "zeroed"
    exact: ClassVar[bool] = False

    def select(self, tokens: VideoTokens) -> PrunedTokens:
        return PrunedTokens(torch.zeros_like(tokens.flat[:1]), torch.tensor([0]))


@dataclass(frozen=True)
class Bare(Method):
    """Returns features alone."""

    name: ClassVar[str] = "bare"

    def select(self, tokens: VideoTokens) -> PrunedTokens:
        return tokens.flat  # type: ignore[return-value]


def test_what_a_method_returns_is_checked(tiny: tuple[Any, Any], inputs: dict[str, torch.Tensor]) -> None:
    with (
        Bare()(tiny[0]),
        torch.no_grad(),
        pytest.raises(TypeError, match=r"bare\.select returned Tensor: it must return"),
    ):
        tiny[0](**inputs)


@dataclass(frozen=True)
class Greedy(Method):
    """Keeps one token more than it promises."""

    name: ClassVar[str] = "greedy"

    def select(self, tokens: VideoTokens) -> PrunedTokens:
        return keep(tokens, torch.arange(self.budget(tokens) + 1))


def test_a_promised_budget_is_kept(tiny: tuple[Any, Any], inputs: dict[str, torch.Tensor]) -> None:
    says = r"greedy kept 25 of 96 tokens at retention_ratio=0.25: keep round\(R \* T \* N\) = 24, or set exact = False"
    with Greedy()(tiny[0]), torch.no_grad(), pytest.raises(ValueError, match=says):
        tiny[0](**inputs)


@dataclass(frozen=True)
class Wrong(Method):
    """Breaks its promise in one way, of the first `spoilt` videos alone."""

    way: str = ""
    spoilt: list[int] = field(default_factory=lambda: [10])

    name: ClassVar[str] = "wrong"

    def select(self, tokens: VideoTokens) -> PrunedTokens:
        kept = keep(tokens, torch.arange(self.budget(tokens)))
        self.spoilt[0] -= 1
        return WRONG[self.way][0](kept) if self.spoilt[0] >= 0 else kept


def _with(**changes: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[PrunedTokens], PrunedTokens]:
    return lambda kept: replace(kept, **{name: change(getattr(kept, name)) for name, change in changes.items()})


WRONG = {
    "no number": (_with(features=lambda x: x.index_fill(0, torch.tensor([3]), torch.nan)), "hold NaN or infinite"),
    "infinite": (_with(features=lambda x: x.index_fill(0, torch.tensor([3]), torch.inf)), "hold NaN or infinite"),
    "order": (_with(features=lambda x: x.flip(0), positions=lambda p: p.flip(0)), r"must be ascending, within 0\.\.95"),
    "before": (_with(positions=lambda p: p - 1), r"must be ascending, within 0\.\.95"),
    "behind": (_with(positions=lambda p: p + 80), r"must be ascending, within 0\.\.95"),
    "twice": (_with(positions=lambda p: p // 2), "each at most once unless the class sets exact"),
    "short": (
        _with(features=lambda x: x[1:]),
        r"features of a video .* are \[23, 32\] float32: they must be \[24, 32\]",
    ),
    "no index": (_with(positions=lambda p: p.int()), r"positions of a video .* are \[24\] int32"),
}


@pytest.mark.parametrize("way", WRONG)
def test_outcomes_that_are_no_numbers_or_out_of_place_are_refused(
    way: str, tiny: tuple[Any, Any], inputs: dict[str, torch.Tensor]
) -> None:
    with Wrong(way=way)(tiny[0]), torch.no_grad(), pytest.raises(ContractError, match=f"^wrong: .*{WRONG[way][1]}"):
        tiny[0](**inputs)


def test_of_a_gpu_faults_are_read_behind_its_work(
    tiny: tuple[Any, Any], inputs: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Put off here as there; what was pruned once for all prompts is then pruned again."""
    monkeypatch.setattr(Splice, "_look_over", lambda splice, faults: splice.faults.append(faults))
    seen: list[torch.Tensor] = []
    tokens, encoded = adapter_for(tiny[0]).encode(inputs, set())
    text = {k: inputs[k] for k in ("input_ids", "attention_mask")}
    handle = tiny[0].lm_head.register_forward_hook(lambda module, args, output: seen.append(output))
    try:
        with pruning(tiny[0], Wrong(way="twice", spoilt=[2]), encoded=tokens) as run, torch.no_grad():
            with pytest.raises(ContractError, match="each at most once unless the class sets exact"):
                tiny[0](**text, **encoded)
            assert len(seen) == 1
            with pytest.raises(ContractError, match="each at most once unless the class sets exact"):
                tiny[0].model(**text, **encoded)  # without the head
            assert tiny[0](**text, **encoded).logits.isfinite().all()
            assert run.report[0].positions.tolist() == list(range(24))
    finally:
        handle.remove()


@dataclass(frozen=True)
class Turned(Method):
    """Leaves the tokens of one video in reverse, those of others as they are."""

    total: float = 0.0
    """Sum of the features of that video."""

    name: ClassVar[str] = "turned"
    exact: ClassVar[bool] = False

    def select(self, tokens: VideoTokens) -> PrunedTokens:
        turned = abs(float(tokens.flat.sum()) - self.total) < 1e-3
        return PrunedTokens(tokens.flat.flip(0) if turned else tokens.flat, torch.arange(tokens.total))


def test_merged_features_enter_the_model(tiny: tuple[Any, Any], inputs: dict[str, torch.Tensor]) -> None:
    model, _ = tiny
    seen = []
    handle = model.model.language_model.layers[0].register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    with Zeroed()(model), torch.no_grad():
        model(**inputs)
    handle.remove()
    start = int((inputs["input_ids"][0] == model.config.video_token_index).nonzero()[0])
    assert seen[0].shape[1] == inputs["input_ids"].shape[1] - 95
    assert (seen[0][0, start] == 0).all()
    assert torch.equal(seen[0][0, start + 1], model.model.image_newline)


@pytest.mark.parametrize("before", [False, True], ids=["pixels", "encoded"])
@pytest.mark.parametrize("video", [0, 1])
def test_merged_features_enter_the_model_where_as_many_are_left(
    tiny: tuple[Any, Any], video: int, before: bool
) -> None:
    """As those that a method makes at R = 1; also if the prompt's other video stays as it is."""
    model, processor = tiny
    inputs = prompt_inputs(processor, ["What colour?"], [[random_video(6, 1), random_video(6, 2)]])
    tokens, arguments = adapter_for(model).encode(inputs, ())
    expected = [t.flat for t in tokens]
    expected[video] = expected[video].flip(0)
    seen: list[torch.Tensor] = []
    handle = model.model.language_model.layers[0].register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    with (
        torch.no_grad(),
        pruning(model, Turned(total=float(expected[video].sum())), encoded=tokens if before else None),
    ):
        model(**({k: inputs[k] for k in ("input_ids", "attention_mask")} | arguments if before else inputs))
    handle.remove()
    columns = (inputs["input_ids"][0] == model.config.video_token_index).nonzero().flatten()
    for entered, features in zip(seen[0][0, columns].split(97), expected, strict=True):
        assert torch.equal(entered[:96], features)
        assert torch.equal(entered[96], model.model.image_newline)


def test_a_prompt_without_video_is_untouched(tiny: tuple[Any, Any]) -> None:
    model, processor = tiny
    inputs = processor.tokenizer("what colour is the star?", return_tensors="pt")
    inputs = {k: inputs[k] for k in ("input_ids", "attention_mask")}
    stock = model(**inputs).logits
    with MMGVid()(model):
        assert torch.equal(model(**inputs).logits, stock)


def test_received_attention_is_the_towers_own(tiny: tuple[Any, Any], inputs: dict[str, torch.Tensor]) -> None:
    model, _ = tiny
    (tokens,), _ = adapter_for(model).encode(inputs, {"attention", "keys"})
    tower = model.model.vision_tower
    tower.set_attn_implementation("eager")
    weights = tower(inputs["pixel_values_videos"][0], output_attentions=True).attentions[-1]  # [T, heads, P, P]
    tower.set_attn_implementation("sdpa")
    expected = model.model.apply_pooling(weights.mean(dim=(1, 2))[..., None])[..., 0]
    torch.testing.assert_close(tokens.attention, expected)
    assert tokens.keys is not None
    assert tokens.keys.shape == (6, 16, 8)


@dataclass(frozen=True)
class MostAttended(Method):
    """Needs what the vision tower does not return by itself."""

    name: ClassVar[str] = "most_attended"
    needs: ClassVar[frozenset[str]] = frozenset({"attention"})

    def select(self, tokens: VideoTokens) -> PrunedTokens:
        assert tokens.attention is not None
        return keep(tokens, tokens.attention.flatten().argsort(descending=True)[: self.budget(tokens)])


def test_attention_is_captured_while_generating(tiny: tuple[Any, Any], inputs: dict[str, torch.Tensor]) -> None:
    model, _ = tiny
    method = MostAttended(retention_ratio=0.25)
    (tokens,), _ = adapter_for(model).encode(inputs, method.needs)
    kept = method.prune(tokens).positions
    with method(model):
        ids = model.generate(**inputs, **GREEDY)
    assert torch.equal(ids, masked_reference(model, inputs, [kept], "original"))


def test_attention_is_never_an_earlier_prompts(tiny: tuple[Any, Any], inputs: dict[str, torch.Tensor]) -> None:
    """Of a video that was encoded beforehand the tower has told nothing, unless it was inside, for this prompt."""
    model, processor = tiny
    text = {k: inputs[k] for k in ("input_ids", "attention_mask")}
    other = prompt_inputs(processor, [QUESTION], [[random_video(6, 1)]])
    _, encoded = adapter_for(model).encode(inputs, set())
    with MostAttended(retention_ratio=0.25)(model) as run, torch.no_grad():
        expected = model(**inputs).logits
        for earlier, options in (
            (model, {}),
            (model.generate, GREEDY),
            (model.generate, {**GREEDY, "use_cache": False}),
        ):
            earlier(**other, **options)
            with pytest.raises(RuntimeError, match=r"^attention: .* for this call, .* pass pixels to the model, or"):
                model(**text, **encoded)
        inside = model.model.get_video_features(inputs["pixel_values_videos"], return_dict=True)
        for _ in range(2):
            assert torch.equal(model(**text, mm_encoder_outputs={"video": inside}).logits, expected)
        assert len(run.report) == 1


@dataclass(frozen=True)
class AfterTheQuestion(Method):
    """Needs the question."""

    name: ClassVar[str] = "after_the_question"
    exact: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset({"query"})

    def select(self, tokens: VideoTokens) -> PrunedTokens:
        assert tokens.query is not None
        return keep(tokens, torch.arange(tokens.query.shape[0]))


def test_the_question_is_what_follows_the_video(tiny: tuple[Any, Any], inputs: dict[str, torch.Tensor]) -> None:
    model, _ = tiny
    tokens, encoded = adapter_for(model).encode(inputs, set())
    behind = inputs["input_ids"].shape[1] - 2 - 96 - 1  # without <|im_start|> user, the video and its newline
    text = {k: inputs[k] for k in ("input_ids", "attention_mask")}
    with AfterTheQuestion()(model) as run, torch.no_grad():
        model(**inputs)
    assert run.report[0].realised_tokens == behind
    with pruning(model, AfterTheQuestion(), encoded=tokens) as run, torch.no_grad():
        model(**text, **encoded)
    assert run.report[0].realised_tokens == behind


@torch.no_grad()
def test_a_context_can_be_opened_again(tiny: tuple[Any, Any], inputs: dict[str, torch.Tensor]) -> None:
    model, _ = tiny
    dense = model(**inputs).logits
    context = MMGVid(retention_ratio=0.1)(model)
    with context as first:
        pruned = model(**inputs).logits
    with pytest.raises(KeyError), context:
        raise KeyError
    with context, pytest.raises(RuntimeError, match="already being pruned"), context:
        pass
    with context as second:
        assert torch.equal(model(**inputs).logits, pruned)
    assert [v.realised_tokens for v in second.report] == [v.realised_tokens for v in first.report] == [10]
    assert pruned.shape[1] < dense.shape[1]
    assert torch.equal(model(**inputs).logits, dense)


def test_misuse_is_explained(tiny: tuple[Any, Any], inputs: dict[str, torch.Tensor]) -> None:
    model, _ = tiny
    with MMGVid()(model), pytest.raises(RuntimeError, match="already being pruned"), MMGVid()(model):
        pass
    with MMGVid()(model), pytest.raises(RuntimeError, match="close the context before copying the model"):
        copy.deepcopy(model)
    with MMGVid()(copy.deepcopy(model)) as run:
        assert not run.report
    with pytest.raises(UnsupportedModelError, match="llava_onevision"), MMGVid()(torch.nn.Linear(2, 2)):
        pass
    says = "LlavaOnevisionModel is not a whole model .*: pass the ...ForConditionalGeneration that holds it"
    with pytest.raises(UnsupportedModelError, match=says), MMGVid()(model.model):
        pass
    with (
        pytest.raises(ValueError, match=r"positions='dense'.*original, contiguous"),
        MMGVid()(model, positions="dense"),
    ):
        pass
    length = inputs["input_ids"].shape[1]
    four = {**inputs, "attention_mask": torch.zeros(1, 1, length, length)}
    with MMGVid()(model), pytest.raises(ValueError, match="2-D attention mask"):
        model(**four)
    with MMGVid()(model), pytest.raises(ValueError, match="labels do not match a pruned prompt"):
        model(**inputs, labels=inputs["input_ids"])
    with Dense()(model):
        assert model(**inputs, labels=inputs["input_ids"]).loss.isfinite()
        assert model(**inputs, logits_to_keep=torch.tensor([length - 1])).logits.shape[1] == 1
    for method in (FastV(), MMGVid()):
        with method(model):
            with pytest.raises(ValueError, match="labels do not match"):
                model(**inputs, labels=inputs["input_ids"])
            model(input_ids=inputs["input_ids"][:, -5:], labels=inputs["input_ids"][:, -5:])
            model.model(**inputs)  # without labels
            with pytest.raises(ValueError, match=r"logits_to_keep names columns of a prompt, .*: pass the number"):
                model(**inputs, logits_to_keep=torch.tensor([length - 1]))
            model(input_ids=inputs["input_ids"][:, -5:], logits_to_keep=torch.tensor([4]))
            assert model(**inputs, logits_to_keep=1).logits.shape[1] == 1
    for method in (FastV(), CDPruner(relevance="llm")):
        with method(model):  # what was asked of a call that failed is not asked of the next
            with pytest.raises(ValueError, match="logits of several tokens there were requested"):
                model(**inputs, logits_to_keep=2)
            model.model(**inputs)
    with MMGVid()(model):
        with pytest.raises(ValueError, match="passed as inputs_embeds"):
            model(**{k: v for k, v in inputs.items() if k != "input_ids"}, labels=inputs["input_ids"])
        model.model(**inputs)
    for size in (16, 32):
        with MMGVid()(model), pytest.raises(ValueError, match="prefill_chunk_size"):
            model.generate(**inputs, **GREEDY, prefill_chunk_size=size)
    torn = inputs["input_ids"].clone()
    last = int((torn[0] == model.config.video_token_index).nonzero()[-1])
    torn[0, [last, last + 1]] = torn[0, [last + 1, last]]
    with MMGVid()(model), pytest.raises(ValueError, match="placeholders in columns"):
        model(**{**inputs, "input_ids": torn})


@dataclass(frozen=True)
class Twice(Method):
    """The first token, and the second one twice: as it is, and as its negative."""

    name: ClassVar[str] = "twice"
    exact: ClassVar[bool] = False

    def select(self, tokens: VideoTokens) -> PrunedTokens:
        positions = torch.tensor([0, 1, 1])
        return PrunedTokens(tokens.flat[positions] * torch.tensor([[1.0], [1.0], [-1.0]]), positions)


def test_a_position_can_be_left_twice(tiny: tuple[Any, Any], inputs: dict[str, torch.Tensor]) -> None:
    model, _ = tiny
    seen: list[torch.Tensor] = []
    with Twice()(model) as run:
        language_model = adapter_for(model).language_model
        handle = language_model.layers[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        model(**inputs)
        handle.remove()
    assert [video.realised_tokens for video in run.report] == [3]
    first = int((inputs["input_ids"][0] == model.config.video_token_index).nonzero()[0])
    tokens = seen[0][0, first : first + 3]
    assert torch.equal(tokens[1], -tokens[2])
    assert not torch.equal(tokens[0], tokens[1])
    assert seen[0].shape[1] == run.prompt_tokens


def test_times_of_frames_come_with_encoded_videos_or_from_an_option(
    tiny: tuple[Any, Any], inputs: dict[str, torch.Tensor]
) -> None:
    model, _ = tiny
    method = Tango(salience="received")
    says = (
        "^tango reads the times of the video's frames, which a model's inputs do not tell: use tango with "
        "interval=1.0, or encode the video with its timing and pass its tokens as `encoded`$"
    )
    with pytest.raises(ValueError, match=says), method(model):
        pass
    chain = Chain(before="tango(salience=received)", inside="fastv")
    with pytest.raises(ValueError, match=r"^chain reads .*: use tango with interval=1\.0, or encode"), chain(model):
        pass
    with replace(method, interval=2.0)(model) as run:
        model.generate(**inputs, **GREEDY)
    assert run.report[0].realised_tokens < run.report[0].total_tokens
    tokens, arguments = adapter_for(model).encode({"pixel_values_videos": inputs["pixel_values_videos"]}, method.needs)
    timed = [replace(video, times=2.0 * torch.arange(video.frames)) for video in tokens]
    prompt = {name: value for name, value in inputs.items() if name != "pixel_values_videos"}
    with pruning(model, method, encoded=timed) as other:
        model.generate(**prompt, **arguments, **GREEDY)
    assert torch.equal(other.report[0].positions, run.report[0].positions)
    with pytest.raises(ValueError, match="tango needs times, missing"), pruning(model, method, encoded=tokens):
        model.generate(**prompt, **arguments, **GREEDY)


def test_a_method_without_another_way_says_so(tiny: tuple[Any, Any]) -> None:
    class Timed(Random):
        needs: ClassVar[frozenset[str]] = frozenset({"times"})

    with pytest.raises(ValueError, match="do not tell: choose another method, or encode"), Timed()(tiny[0]):
        pass
