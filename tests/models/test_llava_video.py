"""LLaVA-Video: a checkpoint in its authors' layout, converted, computes what its weights say; and pruning in it."""

from __future__ import annotations

import copy
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from masking import masked_logits, stock_prompt, traced
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from mmg_bench.methods.registry import get_method
from mmg_bench.models.adapter import UnsupportedModelError, adapter_for
from mmg_bench.models.checking import bare_adapter
from mmg_bench.models.hooks import pruning
from mmg_bench.models.llava_video import LlavaVideo, attach, is_attached
from mmg_bench.models.loading import VideoLLM
from mmg_bench.models.processors import word_tokenizer
from mmg_bench.models.spec import ModelSpec
from mock_cuda import mock_cuda
from prompts import random_video

SCRIPT = Path(__file__).parents[2] / "scripts" / "convert_llava_video.py"
spec = importlib.util.spec_from_file_location("convert_llava_video", SCRIPT)
assert spec is not None
assert spec.loader is not None
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)

TEXT = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
}
SIDE, FRAMES, STEPS = 5, 4, 3  # patches a side: odd, so that the two ways to pool differ in size
QUESTION = "what colour is the star ?"


def vision_config() -> SiglipVisionConfig:
    return SiglipVisionConfig(
        image_size=SIDE * 4,
        patch_size=4,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        vision_use_head=False,
    )


@pytest.fixture(scope="module", params=["bilinear", "average"])
def original(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint as LLaVA-Video's authors lay theirs out."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("original")
    language = Qwen2ForCausalLM(Qwen2Config(**TEXT, rope_parameters={"rope_type": "default", "rope_theta": 1e6}))
    weights = {name: value.clone() for name, value in language.state_dict().items()}
    weights["lm_head.weight"] *= 40
    tower = {n.removeprefix("vision_model."): v for n, v in SiglipVisionModel(vision_config()).state_dict().items()}
    weights |= {f"model.vision_tower.vision_tower.vision_model.{name}": value for name, value in tower.items()}
    for number, width in ((0, 16), (2, 32)):
        weights[f"model.mm_projector.{number}.weight"] = torch.randn(32, width) / 4
        weights[f"model.mm_projector.{number}.bias"] = torch.randn(32) / 4
    weights["model.image_newline"] = torch.randn(32)
    names = sorted(weights)
    for part, chosen in enumerate((names[::2], names[1::2])):
        save_file({n: weights[n].contiguous() for n in chosen}, folder / f"model-0000{part + 1}-of-00002.safetensors")
    theirs = {**TEXT, "model_type": "llava_qwen", "architectures": ["LlavaQwenForCausalLM"], "rope_theta": 1e6}
    theirs |= {"mm_newline_position": "grid", "mm_spatial_pool_mode": request.param, "tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(theirs))
    words = word_tokenizer([*QUESTION.split(), "system", "user", "assistant", "you", "are", "a", "helpful", "."])
    words.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llm(original: Path, tmp_path_factory: pytest.TempPathFactory) -> VideoLLM:
    target = tmp_path_factory.mktemp("converted")
    script.convert(original, target, heads=2)
    return VideoLLM(ModelSpec("llava_video", str(target), frames=FRAMES, dtype="float32", device="cpu"))


def directly(original: Path, pixels: Tensor, ids: Tensor, video_token: int) -> tuple[Tensor, Tensor]:
    """Embeddings and logits of a prompt, from the original weights alone: `[S, D]`, `[S, vocabulary]`."""
    weights, theirs = script.read_weights(original), json.loads((original / "config.json").read_text())
    tower = SiglipVisionModel(vision_config()).eval()
    own = tower.state_dict()
    prefix = "vision_model." if any(n.startswith("vision_model.") for n in own) else ""
    tower.load_state_dict({prefix + n.removeprefix(script.TOWER): v for n, v in weights.items() if script.TOWER in n})
    patches = tower(pixels, output_hidden_states=True).hidden_states[-1]  # [T, P, C]
    first, second = (
        (weights[f"model.mm_projector.{n}.weight"], weights[f"model.mm_projector.{n}.bias"]) for n in (0, 2)
    )
    features = nn.functional.linear(nn.functional.gelu(nn.functional.linear(patches, *first)), *second)
    square = features.transpose(1, 2).unflatten(2, (SIDE, SIDE))
    if theirs["mm_spatial_pool_mode"] == "average":
        square = nn.functional.avg_pool2d(square, 2)
    else:
        square = nn.functional.interpolate(square, size=(3, 3), mode="bilinear")
    rows = []
    for frame in square.permute(0, 2, 3, 1):  # [H, W, D]
        for row in frame:
            rows += [*row, weights["model.image_newline"]]
    language = Qwen2ForCausalLM(Qwen2Config(**TEXT, rope_parameters={"rope_type": "default", "rope_theta": 1e6})).eval()
    language.load_state_dict({n: v for n, v in weights.items() if n in language.state_dict()})
    embeds = language.get_input_embeddings()(ids[0]).clone()
    embeds[ids[0] == video_token] = torch.stack(rows)
    return embeds, language(inputs_embeds=embeds[None]).logits[0]


def inputs_of(llm: VideoLLM) -> dict[str, Any]:
    pixels = llm.preprocess(random_video(FRAMES, size=SIDE * 4))
    return {**llm.tokenize(QUESTION, pixels.texts), **pixels.tensors}


def test_what_was_converted_computes_what_the_weights_say(original: Path, llm: VideoLLM) -> None:
    inputs = inputs_of(llm)
    with torch.no_grad():
        embeds, expected = directly(
            original, inputs["pixel_values_videos"][0], inputs["input_ids"], llm.adapter.video_token_id
        )
        torch.testing.assert_close(llm.model(**inputs).logits[0], expected, atol=2e-4, rtol=2e-3)
    side = {"bilinear": 3, "average": 2}[llm.model.config.mmg_pool]
    assert (inputs["input_ids"] == llm.adapter.video_token_id).sum() == FRAMES * side * (side + 1)
    encoded = llm.encode(llm.preprocess(random_video(FRAMES, size=SIDE * 4)), {"attention"})
    (tokens,) = encoded.tokens
    assert tokens.features.shape == (FRAMES, side * side, 32)
    assert tokens.attention is not None
    assert tokens.attention.shape == (FRAMES, side * side)
    where = (inputs["input_ids"][0] == llm.adapter.video_token_id).nonzero().flatten()
    body = where[llm.adapter.body((FRAMES, side, side))]
    torch.testing.assert_close(tokens.features.flatten(0, 1), embeds[body], atol=1e-5, rtol=1e-4)
    newlines = where[torch.isin(where, body, invert=True)]
    assert bool((embeds[newlines] == llm.model.model.image_newline).all())
    assert "system" in llm.processor.tokenizer.decode(inputs["input_ids"][0])


@pytest.mark.parametrize("positions", ["original", "contiguous"])
@pytest.mark.parametrize("name", ["random", "mmg_vid", "visionzip", "fastv", "framefusion"])
def test_pruning_equals_masking(llm: VideoLLM, name: str, positions: Any) -> None:
    inputs, method = inputs_of(llm), get_method(name, retention_ratio=0.4)
    where = (inputs["input_ids"][0] == llm.adapter.video_token_id).nonzero().flatten()
    columns = where[llm.adapter.body((FRAMES, *llm.adapter.grid))].tolist()
    options = {"max_new_tokens": STEPS, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    llm.model.generation_config.eos_token_id = None
    with traced(method, TEXT["num_hidden_layers"]) as trace, pruning(llm.model, method, positions) as run:
        ours = torch.stack(llm.model.generate(**inputs, **options).logits)[:, 0]
    with torch.no_grad():
        prompt = stock_prompt(llm.model, inputs, columns)
        expected = masked_logits(llm.model, prompt, method, positions, trace, STEPS)
    torch.testing.assert_close(ours, expected, atol=2e-4, rtol=2e-3)
    assert run.report[0].total_tokens == len(columns)
    newlines = len(where) - len(columns)
    text = inputs["input_ids"].shape[1] - len(where)
    assert run.prompt_tokens == text + newlines + run.report[0].realised_tokens


def test_a_model_that_is_not_attached_is_refused(llm: VideoLLM) -> None:
    path = llm.spec.path
    model, processor = AutoModelForImageTextToText.from_pretrained(path), AutoProcessor.from_pretrained(path)
    with pytest.raises(UnsupportedModelError, match=r"llava_video.attach\(model, processor\) first"):
        adapter_for(model)
    attach(torch.compile(model), processor)  # what wraps it is looked through
    attach(model, processor)  # a second time changes nothing
    inputs = inputs_of(llm)
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, llm.model(**inputs).logits)
    model.config.mmg_pool = "max"
    with pytest.raises(ValueError, match=r"config\.mmg_pool='max': not a converted LLaVA-Video"):
        attach(model, processor)


def test_a_copy_goes_by_its_own_weights(llm: VideoLLM) -> None:
    inner = copy.deepcopy(llm.model).model
    assert is_attached(llm.model)
    with torch.no_grad():
        inner.image_newline.fill_(7.0)
        inner.multi_modal_projector.linear_2.weight.zero_()
        inner.multi_modal_projector.linear_2.bias.fill_(3.0)
        features = inner.get_video_features(inputs_of(llm)["pixel_values_videos"]).pooler_output
    assert features.unique().tolist() == [3.0, 7.0]


def test_what_it_serves_is_known_before_it_is_loaded(llm: VideoLLM) -> None:
    bare = bare_adapter(llm.spec)
    assert isinstance(bare, LlavaVideo)
    assert bare.grid == llm.adapter.grid


def test_a_model_of_another_family_is_not_attached(tiny: tuple[Any, Any]) -> None:
    model, processor = copy.deepcopy(tiny[0]), tiny[1]
    says = r"^config\.mmg_family=None, config\.mmg_pool={}: not a converted LLaVA-Video"
    with pytest.raises(ValueError, match=says.format(None)):
        attach(model, processor)
    model.config.mmg_pool = "average"
    with pytest.raises(ValueError, match=says.format("'average'")):
        attach(model, processor)
    assert not is_attached(model)


def test_features_are_an_output_also_where_a_tuple_is_asked_for(llm: VideoLLM) -> None:
    features, pixels = llm.model.model.get_video_features, inputs_of(llm)["pixel_values_videos"]
    with torch.no_grad():
        as_tuple, usual = features(pixels, return_dict=False), features(pixels)
    assert torch.equal(as_tuple.pooler_output, usual.pooler_output)


def test_newlines_follow_their_rows_to_another_gpu(llm: VideoLLM) -> None:
    pixels = inputs_of(llm)["pixel_values_videos"]
    model, processor = (kind.from_pretrained(llm.spec.path) for kind in (AutoModelForImageTextToText, AutoProcessor))
    attach(model, processor)
    inner = model.model
    with torch.no_grad():
        expected = inner.get_video_features(pixels).pooler_output
        with mock_cuda(2):
            inner.image_newline = nn.Parameter(inner.image_newline.to("cuda:0"))
            for part in (inner.vision_tower, inner.multi_modal_projector):
                part.to("cuda:1")
            features = inner.get_video_features(pixels.to("cuda:1")).pooler_output
            assert str(features.device) == "cuda:1"
            torch.testing.assert_close(features.cpu(), expected)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"mm_newline_position": "one_token"}, "mm_newline_position='one_token': only 'grid'"),
        ({"mm_spatial_pool_stride": 3}, "mm_spatial_pool_stride=3"),
        ({"mm_spatial_pool_mode": "max"}, "mm_spatial_pool_mode='max': choose one with --pool"),
    ],
)
def test_other_checkpoints_are_refused(changes: dict[str, Any], says: str) -> None:
    theirs = {"mm_newline_position": "grid", "mm_spatial_pool_mode": "average", **changes}
    with pytest.raises(script.ConversionError, match=says):
        script.pool_of(theirs, None)
    with pytest.raises(script.ConversionError, match=r"model_x\.weight: not a known weight"):
        script.renamed("model_x.weight")


def test_each_video_gets_the_placeholders_of_its_own_frames(llm: VideoLLM) -> None:
    height, width = llm.adapter.grid
    text = llm.processor.replace_video_token({"pixel_values_videos": [torch.zeros(4, 3), torch.zeros(2, 3)]}, 1)
    assert text == llm.processor.video_token * (2 * height * (width + 1))


def test_frames_are_counted_though_they_outnumber_the_tokens_of_one(llm: VideoLLM) -> None:
    encoded = llm.encode(llm.preprocess(random_video(20, size=SIDE * 4)), set())
    with llm.adapter.capture(set()) as captured:
        assert llm.adapter.layouts(encoded.arguments, captured) == [(20, *llm.adapter.grid)]


def test_the_frames_stay_in_order(llm: VideoLLM) -> None:
    video = np.stack([np.full((SIDE * 4, SIDE * 4, 3), 20 * i, dtype=np.uint8) for i in range(FRAMES)])
    (tokens,) = llm.encode(llm.preprocess(video), set()).tokens
    (first,) = llm.encode(llm.preprocess(video[:1]), set()).tokens
    torch.testing.assert_close(tokens.features[0], first.features[0])
    assert not torch.allclose(tokens.features[1], first.features[0])
