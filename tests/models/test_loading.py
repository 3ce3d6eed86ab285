"""Loading a model, and the prompt that reaches it."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from unweighted import MetaSpec

from mmg_bench.models.checking import ModelError, check_folder
from mmg_bench.models.loading import VideoLLM
from mmg_bench.models.spec import ModelSpec
from prompts import prompt_inputs, random_video


def spec(path: Path | str) -> ModelSpec:
    return ModelSpec("tiny", str(path), frames=4, dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def llm(tiny_folder: Path) -> VideoLLM:
    return VideoLLM(spec(tiny_folder))


def test_the_prompt_is_the_processors_own(llm: VideoLLM) -> None:
    video, text = random_video(4), "What colour is the star? Answer with one word."
    expected = prompt_inputs(llm.processor, [text], [[video]])
    pixels = llm.preprocess(video)
    assert torch.equal(pixels.tensors["pixel_values_videos"], expected["pixel_values_videos"])
    made = llm.tokenize(text, llm.encode(pixels, set()).texts)
    for name in ("input_ids", "attention_mask"):
        assert torch.equal(made[name], expected[name])


def test_a_template_that_does_not_place_each_video_is_named(llm: VideoLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm.processor, "apply_chat_template", lambda *_, **__: "a <video> b")
    for texts in ([], ["<video>", "<video>"]):
        with pytest.raises(ValueError, match=f"made 1 placeholders for {len(texts)} videos: 'a <video> b'"):
            llm.tokenize("", texts)


def test_generation_stops_at_the_tasks_words(llm: VideoLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = llm.encode(llm.preprocess(random_video(4)), set())
    # some versions of transformers return the states of every layer of the tower as well, which would be kept
    assert set(encoded.arguments["mm_encoder_outputs"]["video"].keys()) == {"pooler_output"}
    inputs = llm.tokenize("What colour is the star?", encoded.texts)
    tokenizer = llm.processor.tokenizer
    answer = tokenizer(" the star is red one word ", return_tensors="pt")["input_ids"]
    end = torch.tensor([[tokenizer.convert_tokens_to_ids("<|im_end|>")]])
    whole = tokenizer.decode(answer[0]).strip()
    assert len(set(whole.split())) == 6

    def says(input_ids: torch.Tensor, mm_encoder_outputs: dict[str, Any], **_: Any) -> torch.Tensor:
        for output in mm_encoder_outputs.values():  # as a search with beams repeats them
            output["pooler_output"] = None
        return torch.cat([input_ids, answer, end], dim=1)

    monkeypatch.setattr(llm.model, "generate", says)
    for until in (None, [], "", f"{whole[0]}~"):  # the last stands nowhere
        assert llm.generate(inputs, encoded, {"until": until}) == whole
    for until, expected in (
        ("is", "the star"),
        (["is"], "the star"),
        (["", "one"], "the star is red"),
        (["one", "is"], "the star"),
        (" ", "the"),
        ("the", ""),
    ):
        assert llm.generate(inputs, encoded, {"until": until}) == expected
    assert encoded.arguments["mm_encoder_outputs"]["video"]["pooler_output"] is not None


def test_generation_is_greedy_unless_the_task_says_otherwise(llm: VideoLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = llm.encode(llm.preprocess(random_video(4)), set())
    inputs = llm.tokenize("What colour is the star?", encoded.texts)
    told: list[dict[str, Any]] = []
    monkeypatch.setattr(llm.model, "generate", lambda **options: told.append(options) or options["input_ids"])
    greedy = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    sampled = {"do_sample": True, "temperature": 0.5, "top_p": 0.9}
    for generation, expected in (
        ({"temperature": 0.5, "top_p": 0.9}, {**greedy, "max_new_tokens": 1024}),
        ({"do_sample": False, "temperature": 0.5}, {**greedy, "max_new_tokens": 1024}),
        (
            {"num_beams": 3, "max_new_tokens": 7, "until": None, "mode": 1},
            {**greedy, "num_beams": 3, "max_new_tokens": 7},
        ),
        (sampled, {**sampled, "max_new_tokens": 1024}),
        ({"do_sample": True}, {"do_sample": True, "max_new_tokens": 1024}),
    ):
        assert llm.generate(inputs, encoded, generation) == ""
        others = {*inputs, "mm_encoder_outputs", "logits_processor"}
        assert {name: value for name, value in told.pop().items() if name not in others} == expected


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_logits_that_are_no_numbers_are_no_answer(
    value: float, beams: int, llm: VideoLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = llm.encode(llm.preprocess(random_video(4)), set())
    inputs = llm.tokenize("What colour is the star?", encoded.texts)
    options = {"max_new_tokens": 3, "num_beams": beams}
    whole = llm.generate(inputs, encoded, options)
    forward, calls = llm.model.lm_head.forward, []

    def spoilt(hidden: torch.Tensor) -> torch.Tensor:  # not at once: overflow may come later
        calls.append(hidden)
        logits: torch.Tensor = forward(hidden)
        return logits.index_fill(-1, torch.tensor([5]), value) if len(calls) > 1 else logits

    monkeypatch.setattr(llm.model.lm_head, "forward", spoilt)
    with pytest.raises(RuntimeError, match=r"logits are NaN or infinite: .* try model\.dtype=float32"):
        llm.generate(inputs, encoded, options)
    monkeypatch.undo()
    assert llm.generate(inputs, encoded, options) == whole


def test_layers_may_be_spread_by_accelerate(llm: VideoLLM, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForImageTextToText

    load, told = AutoModelForImageTextToText.from_pretrained, []
    monkeypatch.setattr(
        AutoModelForImageTextToText,
        "from_pretrained",
        lambda *args, **options: told.append(options["device_map"]) or load(*args, **options),
    )
    spread = VideoLLM(replace(spec(tiny_folder), device_map="cpu"))
    assert told == ["cpu"]
    pixels = llm.preprocess(random_video(4))
    inputs = llm.tokenize("What colour is the star?", pixels.texts)
    answers = [m.generate(inputs, m.encode(pixels, set()), {"max_new_tokens": 4}) for m in (llm, spread)]
    assert answers[0] == answers[1]


def test_what_a_model_takes_is_on_its_device(tiny_folder: Path) -> None:
    """So is the model, where accelerate does not spread it."""
    asked = MetaSpec("tiny", str(tiny_folder), frames=4, dtype="float32", device="cpu")
    moved, spread = VideoLLM(asked), VideoLLM(replace(asked, device_map="cpu"))
    assert (moved.model.device.type, spread.model.device.type) == ("meta", "cpu")
    pixels = moved.preprocess(random_video(4))
    assert all(tensor.is_meta for tensor in pixels.tensors.values())
    assert all(tensor.is_meta for tensor in moved.tokenize("What colour is the star?", pixels.texts).values())


@pytest.mark.parametrize("weights", ["pretrained", "random"])
def test_a_model_is_loaded_as_it_is_asked_for(tiny_folder: Path, weights: str) -> None:
    asked = replace(spec(tiny_folder), dtype="bfloat16", attn_implementation="eager", weights=weights)
    model = VideoLLM(asked).model
    assert (model.dtype, model.config._attn_implementation, model.training) == (torch.bfloat16, "eager", False)


def test_weights_are_identified_by_content(llm: VideoLLM, tiny_folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_folder, tmp_path / "copy")
    copied = VideoLLM(spec(copy))
    assert (copied.weights, copied.settings) == (llm.weights, llm.settings)
    assert llm.weights.startswith("tiny@")
    for name in ("README.md", "config.json", "chat_template.jinja", "tokenizer.model", "merges.txt"):
        before = copied.settings
        del copied.settings  # as of a model that is loaded now
        (copy / name).write_text("other")
        assert (copied.settings == before) == (name == "README.md")


def test_a_folder_is_identified_in_whatever_order_its_files_are_listed(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = VideoLLM(spec(shutil.copytree(tiny_folder, tmp_path / "copy")))
    (tmp_path / "copy" / "model-2.safetensors").write_bytes(b"another part")
    said = []
    for backwards in (False, True):
        for name in ("iterdir", "glob"):
            listed = getattr(Path, name)
            monkeypatch.setattr(
                Path, name, lambda *args, listed=listed, order=backwards: iter(sorted(listed(*args), reverse=order))
            )
        said.append((copied.weights, copied.settings))
        del copied.weights, copied.settings
        monkeypatch.undo()
    assert said[0] == said[1]


NEEDED = ("config.json", "tokenizer_config.json", "model.safetensors")


@pytest.mark.parametrize("name", [*NEEDED, "tokenizer.json", "processor_config.json", "chat_template.jinja"])
def test_a_missing_file_is_named(tiny_folder: Path, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "copy")
    (folder / name).unlink()
    with pytest.raises(ModelError, match=rf"copy is not a complete checkpoint: {re.escape(name)} missing;"):
        VideoLLM(spec(folder))


@pytest.mark.parametrize(
    "older",
    [
        ("chat_template.json", "vocab.json", "preprocessor_config.json"),
        ("chat_template.json", "tokenizer.model", "video_preprocessor_config.json"),
    ],
)
def test_files_may_have_their_older_names(tmp_path: Path, older: tuple[str, ...]) -> None:
    for name in (*NEEDED, *older):
        (tmp_path / name).touch()
    check_folder(tmp_path, "model.path")


def test_missing_tensors_are_named(tiny_folder: Path, tmp_path: Path) -> None:
    """transformers would fill them with random numbers, and the answers of those would be measured."""
    folder = shutil.copytree(tiny_folder, tmp_path / "copy")
    weights = load_file(folder / "model.safetensors")
    (lost, *_) = (name for name in weights if "layers.1.self_attn.k_proj.weight" in name)
    save_file({k: v for k, v in weights.items() if k != lost}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        ModelError, match=r"copy is not a complete checkpoint.*1 of its tensors.*layers\.1\.self_attn\.k_proj"
    ):
        VideoLLM(spec(folder))


def test_layers_without_weights_are_named(tiny_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "copy")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] += 1
    config["text_config"]["layer_types"] = None
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"or correct config\.json"):
        VideoLLM(spec(folder))


@pytest.mark.parametrize("weights", ["pretrained", "random"])
@pytest.mark.parametrize("attention", ["flash_attention_2", "flash_attention_3", "nobody/kernel"])
def test_attention_that_cannot_run_is_named(
    tiny_folder: Path, weights: str, attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("is_flash_attn_2_available", "is_flash_attn_3_available", "is_kernels_available"):
        monkeypatch.setattr(f"transformers.utils.{name}", lambda: False)
    with pytest.raises(
        ModelError, match=f"model.attn_implementation='{attention}': this machine lacks .*; install it, or use sdpa"
    ):
        VideoLLM(replace(spec(tiny_folder), attn_implementation=attention, weights=weights))


def test_damaged_weights_are_named(tiny_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "copy")
    (folder / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(ModelError, match="copy"):
        VideoLLM(spec(folder))


def test_other_mistakes_are_explained(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such checkpoint folder"):
        VideoLLM(spec(tmp_path / "nowhere"))
    with pytest.raises(ModelError, match="the hub cache is incomplete"):
        VideoLLM(spec("nobody/no-such-model"))
