"""Architectures without a download: the published sizes, and weights that can be measured on."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sizes_table
import torch
from transformers import AutoConfig
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
from unweighted import MetaSpec, random_llm

from mmg_bench import config as cfg
from mmg_bench.benchmarks.video import Timing
from mmg_bench.cells import make_cell
from mmg_bench.measure.flops import TextGeometry, flops_gqa
from mmg_bench.measure.memory import PeakMemory, memory_values
from mmg_bench.methods.fastv import FastV
from mmg_bench.methods.framefusion import FrameFusion
from mmg_bench.models.adapter import UnsupportedModelError
from mmg_bench.models.checking import ModelError, bare_adapter
from mmg_bench.models.geometry import GEOMETRIES
from mmg_bench.models.hooks import pruning
from mmg_bench.models.loading import VideoLLM
from mmg_bench.models.processors import END, PAD, START
from mmg_bench.models.spec import PIXEL_BOUNDS, ModelSpec, folder_of
from mmg_bench.specs import model_spec
from prompts import random_video

WORDS = ("<|im_start|>", "user", "abc", "def", "ghi", "<|im_end|>", "<|im_start|>", "assistant")


def billions_of(llm: VideoLLM) -> float:
    return sum(p.numel() for p in llm.model.parameters()) / 1e9


@pytest.mark.parametrize(("name", "billions"), [("llava_onevision_7b", 8.03), ("llava_onevision_0_5b", 0.894)])
def test_published_sizes(name: str, billions: float) -> None:
    llm = random_llm(name, "meta")
    assert billions_of(llm) == pytest.approx(billions, rel=2e-3)
    pixels = llm.preprocess(np.zeros((32, 360, 640, 3), dtype=np.uint8))
    encoded = llm.encode(pixels, frozenset())
    assert encoded.tokens[0].total == 6272
    assert llm.tokenize("abc def ghi", encoded.texts)["input_ids"].shape == (1, 6273 + len(WORDS))
    if name == "llava_onevision_7b":
        geometry = TextGeometry.from_config(llm.model.config.get_text_config())
        assert round(flops_gqa(geometry, encoded.tokens[0].total) / 1e12, 2) == 48.82
    assert llm.weights == "random"


def test_published_sizes_of_qwen2_5_vl() -> None:
    llm = random_llm("qwen2_5_vl_7b", "meta")
    assert billions_of(llm) == pytest.approx(8.292, rel=1e-4)
    text, tower = llm.model.config.text_config, llm.model.config.vision_config
    assert (text.vocab_size, text.rope_parameters["mrope_section"]) == (152064, [16, 24, 24])
    assert (tower.fullatt_block_indexes, tower.tokens_per_second) == ([7, 15, 23, 31], 2)
    # two frames of 640 x 360 pixels become 23 x 13 tokens of 28 x 28 pixels each
    pixels = llm.preprocess(np.zeros((32, 360, 640, 3), dtype=np.uint8), Timing.every_second(32))
    assert pixels.tensors["pixel_values_videos"].shape == (16 * 26 * 46, 3 * 2 * 14 * 14)
    assert pixels.texts == [llm.processor.video_token * (16 * 23 * 13)]
    inputs = llm.tokenize("abc def ghi", pixels.texts)
    system = ("<|im_start|>", "system", "you", "are", "a", "helpful", "assistant", ".", "<|im_end|>")
    assert inputs["input_ids"].shape == (1, 16 * 23 * 13 + 2 + len(WORDS) + len(system))
    tower_alone = sum(p.numel() for p in llm.model.model.visual.parameters()) / 1e9
    assert tower_alone == pytest.approx(0.6766, rel=1e-3)


def test_bounds_of_pixels_as_the_page_tells_them() -> None:
    limited = cfg.load("model", "qwen2_5_vl_7b")
    utils = {option: limited[option] for option in PIXEL_BOUNDS}
    said = []
    for options in ({}, utils, {"max_pixels": 200704}):
        llm = random_llm("qwen2_5_vl_7b", "meta", **options)
        pixels = llm.preprocess(np.zeros((32, 720, 1280, 3), dtype=np.uint8), Timing.every_second(32))
        said.append(f"{sizes_table.tokens_of(llm, pixels):,}")
        assert llm.processor.video_processor.cap_pixels_per_frame  # its bounds are of a frame, however many there are
    page = " ".join(sizes_table.PAGE.read_text().split())
    assert f"are {said[0]} tokens to Qwen2.5-VL by its checkpoint's own bounds," in page
    assert f"own bounds, and {said[2]} by `model.max_pixels=200704`." in page
    assert f"They are {said[1]} by the bounds of qwen-vl-utils," in page


def test_few_frames_are_bounded_as_by_qwen_vl_utils() -> None:
    """768 tokens a frame, of a bound on all that would allow 3,072 to each of eight."""
    llm = random_llm("qwen3_vl_8b", "meta")
    assert dict(llm.processor.video_processor.size)["longest_edge"] == 8 * 3072 * 32 * 32
    pixels = llm.preprocess(np.zeros((8, 720, 1280, 3), dtype=np.uint8), Timing.every_second(8))
    assert sizes_table.tokens_of(llm, pixels) == 4 * 20 * 36
    # a cap would give each of all the frames 1.05 times the least of all together
    most = 32 * 128 * 1024
    tight = random_llm("qwen3_vl_8b", "meta", min_pixels=most, max_pixels=most)
    pixels = tight.preprocess(np.zeros((32, 720, 1280, 3), dtype=np.uint8), Timing.every_second(32))
    assert sizes_table.tokens_of(tight, pixels) == 16 * 8 * 15


@pytest.mark.parametrize(
    ("name", "parameters", "tokens"),
    [
        ("llava_onevision_0_5b", 893_675_552, 32 * 14 * 14),
        ("llava_onevision_7b", 8_030_807_584, 32 * 14 * 14),
        ("qwen2_5_vl_7b", 8_292_166_656, 16 * 13 * 23),
        ("llava_onevision_72b", 73_181_570_592, 32 * 14 * 14),
        ("llava_video_7b", 8_030_348_832, 32 * 13 * 14),
        ("qwen2_vl_7b", 8_291_375_616, 16 * 13 * 23),
        ("qwen3_vl_8b", 8_767_123_696, 16 * 11 * 20),
        ("qwen3_vl_moe_30b", 31_070_754_032, 16 * 11 * 20),
        ("qwen3_5_9b", 9_409_813_744, 16 * 11 * 20),
        ("glm4v_9b", 10_292_777_472, 16 * 13 * 23),
        ("glm46v_9b", 10_292_777_472, 16 * 13 * 23),
        ("internvl3_8b", 7_944_373_760, 32 * 16 * 16),
        ("smolvlm2_2_2b", 2_246_784_880, 32 * 9 * 9),
    ],
)
def test_sizes(name: str, parameters: int, tokens: int) -> None:
    """Their model cards round these, to 8.29 or 31.1 billion; another width, depth or vocabulary has others."""
    llm = random_llm(name, "meta")
    assert sum(p.numel() for p in llm.model.parameters()) == parameters
    pixels = sizes_table.pixels_of(llm)
    assert sizes_table.row(llm, pixels) in sizes_table.PAGE.read_text(), "run scripts/refresh_docs.py"
    ids = llm.processor.tokenizer(pixels.texts[0])["input_ids"]
    if name.startswith("llava"):
        tokens += name != "llava_video_7b"  # the newline behind a video
    assert ids.count(llm.adapter.video_token_id) == tokens
    if not name.startswith("smolvlm"):  # whose processor has a template of its own for videos
        around = {"qwen2": 11, "qwen3": 2, "glm": 2}  # where a vision starts and ends, and a system's turn
        more = next((count for kind, count in around.items() if name.startswith(kind)), 0)
        assert llm.tokenize("abc def ghi", pixels.texts)["input_ids"].shape == (1, len(ids) + len(WORDS) + more)
    if name == "internvl3_8b":
        assert pixels.texts[0].startswith("Frame1: <img><IMG_CONTEXT>")
    if name == "qwen3_vl_moe_30b":  # Qwen3-30B-A3B, which activates 3.3 billion
        text, tower = llm.model.config.text_config, sum(p.numel() for p in llm.model.model.visual.parameters())
        idle = (text.num_experts - text.num_experts_per_tok) * 3 * text.hidden_size * text.moe_intermediate_size
        assert round((parameters - tower - idle * text.num_hidden_layers) / 1e9, 2) == 3.35
    if name.startswith("qwen3"):  # six tokens of time, seven from 10.5 on, and two around the frame: as its own makes
        assert pixels.texts[0].startswith("<0.5 seconds><|vision_start|>")
        assert len(ids) == tokens + 16 * 8 + 11


def test_towers_and_ids_of_media_are_those_that_transformers_has_by_default() -> None:
    """Of heads, windows and strides, which no count of parameters tells. These alone are others there."""
    others: dict[str, dict[str, Any]] = {
        "qwen2_5_vl_7b": {"tokens_per_second": 2, "hidden_size": 1280},
        "qwen3_vl_8b": {"out_hidden_size": 4096},
        "qwen3_vl_moe_30b": {"out_hidden_size": 2048},
        "qwen3_5_9b": {"out_hidden_size": 4096},
        "glm46v_9b": {"video_start_token_id": 151341, "video_end_token_id": 151342},
        "internvl3_8b": {"attention_bias": True},
        "smolvlm2_2_2b": {"intermediate_size": 4304, "num_hidden_layers": 27, "image_size": 384, "patch_size": 14},
    }
    others["smolvlm2_2_2b"]["image_token_id"] = 49190
    for name, geometry in GEOMETRIES.items():
        stock = AutoConfig.for_model(geometry.config["model_type"]).to_dict()
        ours = {key: value for key, value in geometry.config.items() if "_token_" in key}
        differs = {key: value for key, value in ours.items() if stock[key] != value}
        tower = {key: value for key, value in geometry.config["vision_config"].items() if key != "model_type"}
        differs |= {key: value for key, value in tower.items() if stock["vision_config"][key] != value}
        assert differs == others.get(name, {}), name


def test_axes_of_positions_share_all_that_a_head_turns() -> None:
    """Of time, height and width; no count of parameters tells."""
    shared = {}
    for name, geometry in GEOMETRIES.items():
        text = geometry.config["text_config"]
        if (sections := text["rope_parameters"].get("mrope_section")) is not None:
            width = text.get("head_dim", text["hidden_size"] // text["num_attention_heads"])
            turned = width * text["rope_parameters"].get("partial_rotary_factor", 1)
            shared[name] = turned == 2 * sum(sections)
    assert shared == dict.fromkeys((name for name in GEOMETRIES if name.startswith(("qwen", "glm"))), True)


def test_what_ends_an_answer_is_a_token_of_the_processor() -> None:
    """Without it, random weights would answer on to the most tokens, or stop at another word."""
    for name, geometry in GEOMETRIES.items():
        text, tokens = geometry.config["text_config"], geometry.tokens
        if name.startswith(("llava", "internvl", "qwen2", "qwen3_vl")):
            assert (text["bos_token_id"], text["eos_token_id"]) == (tokens[PAD], tokens[END]), name
        else:  # as of checkpoints whose generation_config.json names what ends a turn
            assert (text.get("bos_token_id"), text["eos_token_id"]) == (
                tokens[START] if name.startswith("smolvlm") else None,
                tokens[PAD],
            ), name
        assert text.get("pad_token_id", tokens[PAD]) == tokens[PAD], name


SMALL_TEXT = {"intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 1, "num_key_value_heads": 1}
SMALL_TOWER = {"depth": 3, "num_heads": 2, "intermediate_size": 64}


@pytest.mark.parametrize("name", sorted(GEOMETRIES))
def test_an_architecture_is_measured_with_its_processor(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the real classes, ids and patches, in small."""
    config = GEOMETRIES[name].config
    width = {"hidden_size": 128}  # of one head
    text, tower = config["text_config"] | SMALL_TEXT | width, config["vision_config"]
    if "num_experts" in text:
        text |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    if "layer_types" in text:
        text |= {"layer_types": ["linear_attention", "linear_attention", "full_attention"]}
    if name.startswith(("llava", "internvl", "smolvlm")):
        tower = tower | {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
    elif name.startswith("qwen2_vl"):
        tower = tower | {**SMALL_TOWER, "embed_dim": 32, "hidden_size": 128}
    else:
        tower = tower | {**SMALL_TOWER, "hidden_size": 32, "out_hidden_size": 128}
    tower |= {"deepstack_visual_indexes": [0, 1, 2]} if "deepstack_visual_indexes" in tower else {}
    small = {**config, "text_config": text, "vision_config": tower}
    monkeypatch.setitem(GEOMETRIES, name, dataclasses.replace(GEOMETRIES[name], config=small))
    llm = random_llm(name, "cpu", frames=4, dtype="float32")
    assert type(llm.processor).__name__ == PROCESSOR_MAPPING_NAMES[config["model_type"]]
    assert getattr(llm.processor.video_processor, "cap_pixels_per_frame", None) is (name.startswith("qwen") or None)
    black, *_ = llm.preprocess(np.zeros((4, 64, 64, 3), dtype=np.uint8), Timing.every_second(4)).tensors.values()
    darkest = {"qwen2": -0.48145466 / 0.26862954, "glm": -0.48145466 / 0.26862954, "internvl": -0.485 / 0.229}
    assert black.min() == pytest.approx(next((v for kind, v in darkest.items() if name.startswith(kind)), -1), abs=1e-5)
    pixels = llm.preprocess(random_video(4, size=64), Timing.every_second(4))
    with PeakMemory(llm.device) as encoding:
        encoded = llm.encode(pixels, frozenset())
    inputs = llm.tokenize("abc def ghi", encoded.texts)
    cell = make_cell("mmg_vid", 0.5)
    with torch.inference_mode(), pruning(llm.model, cell.method, encoded=encoded.tokens) as run:
        logits = llm.model(**inputs, **encoded.arguments).logits
    (report,) = run.report
    assert report.realised_tokens == round(encoded.tokens[0].total / 2)
    assert logits.shape[1] == inputs["input_ids"].shape[1] - encoded.tokens[0].total + report.realised_tokens
    assert logits.isfinite().all()
    cache = memory_values(llm, cell, encoded, encoding, inputs, 1)["kv_cache_bytes"]
    layers = text.get("layer_types", ["full_attention"] * 3).count("full_attention")
    keys_and_values = 2 * 4 * logits.shape[1] * layers * text.get("head_dim", 128)
    assert cache > keys_and_values if layers < 3 else cache == keys_and_values


def test_every_configuration_has_its_architecture() -> None:
    models = {name: cfg.load("model", name) for name in cfg.names("model") if name != "embedded"}
    assert set(GEOMETRIES) == set(models)
    for name, model in models.items():
        assert GEOMETRIES[name].hub == (None if name == "llava_video_7b" else model["path"])


def test_every_checkpoint_of_a_configuration_has_its_type(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for name in cfg.names("model"):
        spec = model_spec(cfg.load("model", name))
        bare = bare_adapter(spec)
        if bare is None:
            assert folder_of(spec.path) is not None  # of no checkpoint of the hub
        else:
            assert name == "embedded" or name.startswith(bare.model.config.model_type)
            for method in (FastV(), FrameFusion()):  # known of the type alone, before a download
                refused = pytest.raises(UnsupportedModelError, match="linear_attention")
                with refused if name == "qwen3_5_9b" else nullcontext():
                    bare.stages(method)


def test_random_weights_of_a_folder(tiny_folder: Path) -> None:
    spec = ModelSpec("tiny", str(tiny_folder), frames=2, dtype="float32", device="cpu", weights="random")
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = VideoLLM(spec)
    assert torch.equal(torch.rand(1), expected)  # the caller's generator goes on as if nothing had been drawn
    second = VideoLLM(spec)
    trained = VideoLLM(ModelSpec("tiny", str(tiny_folder), frames=2, dtype="float32", device="cpu"))
    parameters = dict(first.model.named_parameters())
    assert all(torch.equal(p, parameters[name]) for name, p in second.model.named_parameters())
    assert not torch.equal(trained.model.lm_head.weight, first.model.lm_head.weight)
    assert all(p.std() > 0 for p in parameters.values() if p.dim() > 1)


def test_a_folder_decides_what_is_built_if_there_is_one(tiny_folder: Path, tmp_path: Path) -> None:
    """As of llava_video_7b, whose configuration names the folder of a converted checkpoint."""
    spec = MetaSpec("llava_video_7b", str(tmp_path / "nowhere"), weights="random")
    llm = VideoLLM(spec)
    assert (billions_of(llm), llm.settings) == (pytest.approx(8.03, rel=1e-4), None)
    assert VideoLLM(dataclasses.replace(spec, path=str(tiny_folder))).settings is not None
    with pytest.raises(ModelError, match=r"nowhere: no such checkpoint folder"):
        VideoLLM(dataclasses.replace(spec, name="other"))


def test_weights_that_no_memory_can_hold_are_not_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sysconf", {"SC_PHYS_PAGES": 2**20, "SC_PAGE_SIZE": 2**12}.__getitem__)
    with pytest.raises(MemoryError, match=r"the weights take 16\.1 GB, this machine has 4\.3 GB of memory"):
        random_llm("llava_onevision_7b", "cpu")


def test_a_package_that_a_processor_needs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.models.smolvlm.processing_smolvlm.num2words", None)
    with pytest.raises(ModelError, match=r"'smolvlm2_2_2b' needs a package.*`pip install num2words`"):
        random_llm("smolvlm2_2_2b", "meta")


def test_what_is_not_known_is_answered_with_what_is() -> None:
    with pytest.raises(ModelError, match=r"'llava_9b' is not known without a download; known: llava_onevision_72b, "):
        random_llm("llava_9b", "meta")


@pytest.mark.slow
def test_random_weights_keep_half_precision_finite() -> None:
    llm = random_llm("llava_onevision_0_5b", "cpu", frames=1)
    encoded = llm.encode(llm.preprocess(random_video(1, size=384)), frozenset())
    inputs = llm.tokenize("abc def ghi", encoded.texts)
    with torch.inference_mode():
        logits = llm.model(**inputs, **encoded.arguments).logits.float()
    assert logits.isfinite().all()
    assert 0.01 < logits.std() < 100
    assert 0.01 < encoded.tokens[0].features.float().std() < 100
