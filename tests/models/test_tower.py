"""What vision towers attend to, family by family: held to the weights of the stock model's own eager attention."""

from __future__ import annotations

import copy
import inspect
import sys
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

import families
from mmg_bench.methods.registry import get_method
from mmg_bench.models import tower
from mmg_bench.models.adapter import UnsupportedModelError, adapter_for
from mmg_bench.models.hooks import pruning
from mmg_bench.tokens import VideoTokens

READ = [name for name in families.BUILDERS if name != "llava_onevision"]
QUESTION = "star ?"


@pytest.fixture(scope="module", params=READ)
def family(request: pytest.FixtureRequest) -> tuple[str, Any, Any]:
    torch.manual_seed(0)
    model, processor = families.BUILDERS[request.param]()
    with torch.no_grad():  # the usual small start leaves attention all but flat
        for name, parameter in adapter_for(model).tower.named_parameters():  # type: ignore[attr-defined]
            if any(part in name for part in ("qkv", "q_proj", "k_proj")):
                parameter.mul_(20)
    return request.param, model, processor


def shapes_for(name: str) -> list[tuple[int, int, int]]:
    """Two videos, of different sizes where the family takes such."""
    if name in families.FRAMED:
        return [(8, 32, 32)]
    return [(8, 32, 32)] * 2 if name in families.SIZES else [(8, 24, 48), (4, 40, 24)]


class Eager:
    """The stock model with eager attention, and the weights and keys of one module of its tower."""

    def __init__(self, model: Any, monkeypatch: pytest.MonkeyPatch):
        self.model = copy.deepcopy(model)
        self.model.set_attn_implementation("eager")
        self.adapter: Any = adapter_for(self.model)
        self.weights: list[Tensor] = []  # [B, heads, P, P]
        self.queries: list[Tensor] = []  # [B, heads, P, width]
        self.keys: list[Tensor] = []
        module = sys.modules[type(self.adapter.last_attention).__module__]
        original = module.eager_attention_forward

        def noted(attention: Any, query: Tensor, key: Tensor, *args: Any, **options: Any) -> Any:
            output, weights = original(attention, query, key, *args, **options)
            if attention is self.adapter.last_attention:
                self.weights.append(weights)
                self.queries.append(query)
                self.keys.append(key)
            return output, weights

        monkeypatch.setattr(module, "eager_attention_forward", noted)

    @torch.no_grad()
    def tokens(self, name: str, inputs: dict[str, Tensor]) -> Tensor:
        """Of each token, brought into order by the stock model itself: `[tokens, 2 + width]`.

        Attention, that of the mean query, and keys.
        """
        merged: list[Any] = []
        if name.startswith(("qwen", "glm", "exaone")):  # the merger's outputs are put in order behind it

            def replaced(module: Any, args: Any, output: Tensor) -> Tensor:
                merged.append(self.each().unflatten(0, (len(output), -1)).mean(1))
                return merged[0]

            merger = self.adapter.tower.merger.register_forward_hook(replaced)
            outputs = self.encode(inputs)
            merger.remove()
            return torch.cat(list(outputs.pooler_output))
        self.encode(inputs)
        each = self.each()  # [patches, 2 + width]
        if name == "video_llama_3":
            grids = inputs["video_grid_thw"]
            return self.adapter.tower.pixel_unshuffle(each, grids, inputs["video_merge_sizes"])
        frames = each.unflatten(0, (len(self.weights[0]), -1))  # [F, P, 2 + width]
        if name == "llava_next_video":
            return self.model.model.vision_resampler(frames).flatten(0, 1)
        if name == "smolvlm":
            shuffled = self.model.model.connector.pixel_shuffle(frames)
        else:
            side = int(frames.shape[1] ** 0.5)
            shuffled = self.model.model.pixel_shuffle(frames.unflatten(1, (side, side)).contiguous()).flatten(1, 2)
        return shuffled.unflatten(-1, (4, -1)).mean(-2).flatten(0, 1)

    def encode(self, inputs: dict[str, Tensor]) -> Any:
        if "pixel_values_videos" not in inputs:
            return self.model.get_image_features(inputs["pixel_values"], return_dict=True)
        said = {name: inputs[name] for name in ("video_grid_thw", "video_merge_sizes") if name in inputs}
        return self.model.model.get_video_features(inputs["pixel_values_videos"], **said, return_dict=True)

    def each(self) -> Tensor:
        """Of each patch as the tower holds them: without class tokens, which say what others receive."""
        rows = []
        for weights, queries, keys in zip(self.weights, self.queries, self.keys, strict=True):
            classed = weights.shape[-1] % 4
            received = weights[:, :, 0, 1:].mean(1) if classed else weights.mean((1, 2))  # [B, P]
            fours = keys[:, :, classed:].unflatten(2, (-1, 4)).mean(3)  # [B, heads, P / 4, width]
            scores = (queries.mean(2, keepdim=True) * fours).sum(-1) / keys.shape[-1] ** 0.5
            given = scores.softmax(-1).mean(1).repeat_interleave(4, 1)  # [B, P]
            columns = [received.unsqueeze(-1), given.unsqueeze(-1), keys.mean(1)[:, classed:]]
            rows.append(torch.cat(columns, -1).flatten(0, 1))
        return torch.cat(rows)


def encoded(model: Any, inputs: dict[str, Tensor]) -> list[VideoTokens]:
    adapter = adapter_for(model)
    return adapter.encode(families.pixels_of(inputs), adapter.supplies)[0]


def test_attention_and_keys_are_the_towers_own(family: tuple[str, Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    name, model, processor = family
    inputs = families.videos_of(processor, QUESTION, *shapes_for(name))
    ours = encoded(model, inputs)
    expected = Eager(model, monkeypatch).tokens(name, inputs)
    assert tower.FIELDS <= adapter_for(model).supplies <= tower.GRID_FIELDS
    for columns, field in ((slice(1), "attention"), (slice(1, 2), "mean_query_attention"), (slice(2, None), "keys")):
        if field in adapter_for(model).supplies:
            values = torch.cat([getattr(tokens, field).flatten(0, 1) for tokens in ours])  # of all tokens
            wanted = expected[:, columns].view_as(values)
            torch.testing.assert_close(values, wanted, atol=1e-5, rtol=1e-4)
            assert values.std(0).mean() > 0.05 * values.abs().mean(), "too flat to tell one token from another"
    plain = adapter_for(model).encode(families.pixels_of(inputs), set())[0]
    for tokens, stock in zip(ours, plain, strict=True):
        assert torch.equal(tokens.features, stock.features)


def test_each_video_of_a_prompt_has_its_own(family: tuple[str, Any, Any]) -> None:
    """Also of those that the tower encodes while the model is called."""
    name, model, processor = family
    inputs = families.videos_of(processor, QUESTION, *shapes_for(name))
    method = get_method("visionzip", retention_ratio=0.4)
    with pruning(model, method) as run, torch.no_grad():
        model(**inputs)
    tokens = encoded(model, inputs)
    assert [video.layout for video in run.report] == [(video.frames, *video.grid) for video in tokens]
    for video, report in zip(tokens, run.report, strict=True):
        assert torch.equal(report.positions, method.prune(video).positions)


def test_each_of_videos_that_are_encoded_together_has_its_own(family: tuple[str, Any, Any]) -> None:
    name, model, processor = family
    adapter = adapter_for(model)
    key = "pixel_values" if name in families.FRAMED else "pixel_values_videos"
    first = adapter.one_video(families.pixels_of(families.videos_of(processor, QUESTION, shapes_for(name)[0])))
    second = {**first, key: torch.randn_like(first[key])}
    together = {part: torch.cat([first[part], second[part]]) for part in first}
    alone = [adapter.encode(video, adapter.supplies)[0][0] for video in (first, second)]
    for one, other in zip(alone, adapter.encode(together, adapter.supplies)[0], strict=True):
        for part in ("features", *adapter.supplies):
            torch.testing.assert_close(getattr(other, part), getattr(one, part), atol=1e-5, rtol=1e-4)


def test_attention_is_asked_for_of_this_call_alone(family: tuple[str, Any, Any]) -> None:
    name, model, processor = family
    inputs = families.videos_of(processor, QUESTION, shapes_for(name)[0])
    pixels = families.pixels_of(inputs)
    text = families.text_of(inputs)
    _, arguments = adapter_for(model).encode(pixels, set())
    with pruning(model, get_method("visionzip")) as run, torch.no_grad():
        model(**inputs)
        assert len(run.report) == 1
        for _ in range(2):
            with pytest.raises(
                (RuntimeError, ValueError), match=r"not encode .* inside the context|encoded outside the context"
            ):
                model(**text, **arguments)


@pytest.mark.parametrize("between", ["another video", "an image"])
def test_attention_is_never_of_what_the_tower_saw_last(family: tuple[str, Any, Any], between: str) -> None:
    """Inside the context it encodes something else, of the same size, before a video comes that it encoded earlier."""
    name, model, processor = family
    if between == "an image" and name in (*families.FRAMED, *families.SIZES):
        pytest.skip("has frames of one size, or images alone")
    inputs = families.videos_of(processor, QUESTION, (2, 32, 32) if between == "an image" else shapes_for(name)[0])
    pixels = families.pixels_of(inputs)
    text = families.text_of(inputs)
    _, arguments = adapter_for(model).encode(pixels, set())
    method = get_method("visionzip", retention_ratio=0.4)
    with pruning(model, method) as run, torch.no_grad():
        model(**inputs)
        right = run.report[0].positions
        if between == "an image":
            model.model.get_image_features(
                torch.randn(64, inputs["pixel_values_videos"].shape[-1]),
                image_grid_thw=torch.tensor([[1, 8, 8]]),
                **({"image_merge_sizes": torch.tensor([2])} if name == "video_llama_3" else {}),
            )
        else:
            key = "pixel_values" if name in families.FRAMED else "pixel_values_videos"
            adapter_for(model).encode({**pixels, key: torch.randn_like(pixels[key])}, set())
        with pytest.raises(
            (RuntimeError, ValueError), match=r"not encode .* inside the context|encoded outside the context"
        ):
            model(**text, **arguments)
        made = adapter_for(model).multimodal
        if name in families.FRAMED:
            inside = {"image": model.get_image_features(pixels["pixel_values"], return_dict=True)}
        else:
            taken = inspect.signature(made.get_video_features).parameters
            said = {k: v for k, v in pixels.items() if k in taken}
            inside = {"video": made.get_video_features(**said, return_dict=True)}
        others = {k: v for k, v in arguments.items() if k != "mm_encoder_outputs"}
        model(**text, **others, mm_encoder_outputs=inside)  # of this very video
        assert torch.equal(run.report[0].positions, right)


def test_what_the_layer_was_called_with_is_let_go(family: tuple[str, Any, Any]) -> None:
    name, model, processor = family
    inputs = families.videos_of(processor, QUESTION, shapes_for(name)[0])
    adapter: Any = adapter_for(model)
    with adapter.capture({"attention"}) as captured, torch.no_grad():
        model(**inputs)
        held = [weakref.ref(x) for x in (*captured.call[0], *captured.call[1].values()) if isinstance(x, Tensor)]
        first = captured.fields(0, 1)
        assert held
        assert not any(ref() is not None for ref in held)
        assert torch.equal(captured.fields(0, 1)["attention"], first["attention"])
        with pytest.raises(RuntimeError, match=r"^attention: the vision tower did not encode these frames"):
            captured.fields(0, 1000)


def test_a_tower_whose_last_layer_attends_within_windows_is_not_read() -> None:
    model, _ = families.BUILDERS["qwen2_5_vl"]()
    assert adapter_for(model).supplies == tower.GRID_FIELDS
    model.config.vision_config.fullatt_block_indexes = [0]
    with pytest.raises(UnsupportedModelError, match=r"attention, keys \(they supply nothing\): choose another"):
        adapter_for(model).check({"attention", "keys"}, "visionzip")


def test_features_before_the_first_layer_are_refused() -> None:
    layers = ["first", "second", "third"]
    assert [tower.feature_layer(layers, index) for index in (1, -1, [1, -2])] == ["first", "third", "second"]
    with pytest.raises(UnsupportedModelError, match="vision_feature_layer=0"):
        tower.feature_layer(layers, 0)


def test_windows_that_are_no_frames_are_refused() -> None:
    model, processor = families.BUILDERS["qwen2_5_vl"]()
    model.model.visual.fullatt_block_indexes = [0]
    inputs = families.videos_of(processor, QUESTION, (4, 24, 48))
    says = (
        r"attends within sequences of \[8, 16\] patches, but frames have \[18\] tokens: "
        "the attention that each token receives"
    )
    with pytest.raises(UnsupportedModelError, match=says):
        encoded(model, inputs)


def test_frames_with_padding_are_refused() -> None:
    model, processor = families.BUILDERS["smolvlm"]()
    inputs = families.videos_of(processor, QUESTION, (4, 32, 32))
    inputs["pixel_attention_mask"][:, -1, :, 16:] = 0
    assert len(adapter_for(model).encode(families.pixels_of(inputs), set())[0]) == 1
    with pytest.raises(
        UnsupportedModelError,
        match="some patches are marked as padding: the attention that they receive in the vision tower is not known",
    ):
        encoded(model, inputs)


@pytest.mark.parametrize("length", [19, 27])
def test_patches_that_make_up_no_grid_are_refused(length: int) -> None:
    some = tower.Attended(torch.zeros(2, 1, length, 4), torch.zeros(2, 1, length, 4), 0.5)
    with pytest.raises(UnsupportedModelError, match=rf"sequences of \[{length}\] patches, but frames have \[4\]"):
        tower.of_frames(some, 2)


def test_memory_is_bounded_by_some_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    some = tower.Attended(torch.randn(3, 2, 10, 4), torch.randn(3, 2, 10, 4), 0.5)
    whole = some.received()
    torch.testing.assert_close(whole.sum(1), torch.ones(3))
    seen: list[int] = []
    softmax = Tensor.softmax
    monkeypatch.setattr(Tensor, "softmax", lambda x, *args: (seen.append(x.numel()), softmax(x, *args))[1])
    monkeypatch.setattr(tower, "_AT_ONCE", {"cpu": 200})
    torch.testing.assert_close(some.received(), whole)
    assert max(seen) <= 200
    assert len(seen) == 4


def test_the_attention_module_is_left_as_it_was(family: tuple[str, Any, Any]) -> None:
    name, model, processor = family
    attention = adapter_for(model).last_attention  # type: ignore[attr-defined]
    before, implementation = set(vars(attention)), attention.config._attn_implementation
    encoded(model, families.videos_of(processor, QUESTION, shapes_for(name)[0]))
    assert set(vars(attention)) == before
    assert attention.config._attn_implementation == implementation == "sdpa"
    assert not attention._forward_pre_hooks
