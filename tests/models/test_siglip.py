"""The pooling head and text tower of an original SigLIP checkpoint beside a LLaVA-OneVision model."""

from __future__ import annotations

import copy
import gc
import re
import shutil
import time
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import families
from mmg_bench.cells import make_cell
from mmg_bench.measure.memory import PeakMemory, memory_values, weight_bytes
from mmg_bench.measure.workload import Workload, prefill
from mmg_bench.methods.cdpruner import CDPruner
from mmg_bench.methods.fastvid import FastVID
from mmg_bench.models import siglip
from mmg_bench.models.adapter import UnsupportedModelError, adapter_for
from mmg_bench.models.checking import ModelError
from mmg_bench.models.hooks import pruning
from mmg_bench.models.loading import VideoLLM
from mmg_bench.models.small import SmallSpec, small_llava_onevision
from mmg_bench.models.spec import ModelSpec
from prompts import prompt_inputs, random_video
from tiny import TINY

WINDOW = 8
QUESTION = "What colour is the star? Answer with one word."


def siglip_folder(folder: Path, tower: Any, width: int = 16) -> Path:
    """A real SiglipModel with its own SiglipTokenizer; the vision tower's weights are those of `tower`."""
    import sentencepiece
    from transformers import SiglipConfig, SiglipModel, SiglipTokenizer

    folder.mkdir()
    text = [QUESTION, "How many times does the star flash?", "Which way does the red object move?"] * 4
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(t.lower() for t in text),
        model_prefix=str(folder / "spiece"),
        vocab_size=60,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    tokenizer = SiglipTokenizer(str(folder / "spiece.model"))
    vision = {**tower.config.to_dict(), "vision_use_head": True, "hidden_size": width}
    config = SiglipConfig(
        vision_config=vision,
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": width,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": WINDOW,
            "projection_size": width,
            "pad_token_id": tokenizer.pad_token_id,
        },
    )
    torch.manual_seed(3)
    model = SiglipModel(config).eval()
    with torch.no_grad():  # the usual small start leaves attention all but flat
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    if width == tower.config.hidden_size:
        model.vision_model.load_state_dict(tower.state_dict(), strict=False)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> Any:
    """A copy of the tiny model: what is attached to it must not reach other tests."""
    from transformers import LlavaOnevisionForConditionalGeneration

    return LlavaOnevisionForConditionalGeneration.from_pretrained(tiny_folder).eval()


@pytest.fixture(scope="module")
def source(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return siglip_folder(tmp_path_factory.mktemp("siglip") / "original", model.model.vision_tower)


@pytest.fixture(scope="module")
def attached(model: Any, source: Path, tiny: tuple[Any, Any]) -> siglip.Siglip:
    return siglip.attach(model, str(source), tiny[1].tokenizer)


@pytest.fixture
def inputs(tiny: tuple[Any, Any]) -> dict[str, torch.Tensor]:
    return prompt_inputs(tiny[1], [QUESTION], [[random_video(6)]])


@pytest.fixture(scope="module")
def original(source: Path) -> Any:
    from transformers import SiglipModel

    return SiglipModel.from_pretrained(source).eval()


@torch.no_grad()
def test_tower_fields_are_the_heads_own(
    model: Any, attached: siglip.Siglip, original: Any, inputs: dict[str, torch.Tensor]
) -> None:
    (tokens,), _ = adapter_for(model).encode(inputs, siglip.FIELDS | {"attention", "keys"})
    pixels = inputs["pixel_values_videos"][0]
    tower = original.vision_model
    torch.testing.assert_close(tokens.frame_features, tower(pixels).pooler_output)

    weights = []
    handle = tower.head.attention.register_forward_hook(lambda module, args, output: weights.append(output[1]))
    hidden = tower(pixels).last_hidden_state
    handle.remove()
    pooled = model.model.apply_pooling(weights[0].mT)[..., 0]  # [T, P, 1] to [T, N]
    torch.testing.assert_close(tokens.probe_attention, pooled)
    assert tokens.probe_attention.std() > 1e-3  # not flat

    alone = torch.stack([tower.head(hidden[:, [p]]) for p in range(hidden.shape[1])], dim=1)  # [T, P, C]
    torch.testing.assert_close(tokens.joint_features, model.model.apply_pooling(alone), atol=1e-4, rtol=1e-4)
    assert tokens.attention is not None
    assert tokens.keys is not None


@torch.no_grad()
def test_the_question_in_the_joint_space(
    model: Any, attached: siglip.Siglip, original: Any, inputs: dict[str, torch.Tensor]
) -> None:
    behind = inputs["input_ids"][0, (inputs["input_ids"][0] == model.config.video_token_index).nonzero()[-1] + 1 :]
    text = "what colour is the star ? answer with one word ."  # as the tiny model's tokenizer gives it back
    assert attached.question(behind) == text
    words = attached.tokenizer(text)["input_ids"]
    assert len(words) > 2 * WINDOW
    query = attached.joint_query(behind)
    assert query.shape == (-(-len(words) // WINDOW), 16)
    first = original.get_text_features(torch.tensor([words[:WINDOW]])).pooler_output
    torch.testing.assert_close(query[:1], first)
    last = words[len(words) // WINDOW * WINDOW :]
    padded = last + [attached.tokenizer.pad_token_id] * (WINDOW - len(last))
    torch.testing.assert_close(query[-1:], original.get_text_features(torch.tensor([padded])).pooler_output)


def test_the_question_follows_all_media(attached: siglip.Siglip, tiny: tuple[Any, Any]) -> None:
    tokenizer = tiny[1].tokenizer
    ids = tokenizer("<video> <image> how many times ? <|im_end|> <|im_start|> assistant", return_tensors="pt")
    assert attached.question(ids["input_ids"][0]) == "how many times ?"
    assert attached.question(ids["input_ids"][0, :2]) == ""
    with pytest.raises(ValueError, match=r"pass the language model's tokenizer to mmg_bench\.models\.siglip\.attach"):
        replace(attached, reader=None).question(ids["input_ids"][0])


def test_the_question_is_the_first_text_that_is_not_blank(attached: siglip.Siglip) -> None:
    """Tokens that were added to the vocabulary, but are not special, belong to it."""
    words = {0: "<image>", 1: "\n", 2: "why", 3: " red", 4: "?"}
    reader = SimpleNamespace(
        added_tokens_decoder={0: SimpleNamespace(special=True), 3: SimpleNamespace(special=False)},
        decode=lambda ids: "".join(words[i] for i in ids),
    )
    assert replace(attached, reader=reader).question(torch.tensor([1, 0, 1, 2, 3, 4, 1, 0, 2])) == "why red?"


@torch.no_grad()
def test_a_question_that_fills_its_windows_has_no_more_of_them(
    attached: siglip.Siglip, original: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = torch.arange(2 * WINDOW) + 5

    class Tokenizer:
        pad_token_id = attached.tokenizer.pad_token_id

        def __call__(self, text: str) -> dict[str, list[int]]:
            return {"input_ids": ids.tolist()}

    monkeypatch.setattr(siglip.Siglip, "question", lambda self, ids: "")
    query = replace(attached, tokenizer=Tokenizer()).joint_query(ids)
    torch.testing.assert_close(query, original.get_text_features(ids.view(2, WINDOW)).pooler_output)


def test_it_goes_with_what_a_wrapper_holds(tiny: tuple[Any, Any], source: Path) -> None:
    wrapped = torch.compile(copy.deepcopy(tiny[0]))
    parts = siglip.attach(wrapped, str(source))
    assert siglip.attached(adapter_for(wrapped).model) is parts
    assert adapter_for(wrapped).supplies >= siglip.FIELDS
    with pytest.raises(
        UnsupportedModelError, match=r"^Qwen2VLForConditionalGeneration does not use a separate SigLIP checkpoint"
    ):
        siglip.attach(families.qwen2_vl()[0], str(source))


@pytest.mark.parametrize("method", [FastVID(0.25), CDPruner(0.25)], ids=lambda m: m.name)
def test_methods_prune_the_model(
    model: Any, attached: siglip.Siglip, inputs: dict[str, torch.Tensor], method: Any
) -> None:
    """The same tokens stay whether the video is encoded inside the prompt or beforehand, and as by hand."""
    (tokens,), encoded = adapter_for(model).encode(inputs, method.needs)
    behind = inputs["input_ids"][0, (inputs["input_ids"][0] == model.config.video_token_index).nonzero()[-1] + 1 :]
    expected = method.prune(replace(tokens, joint_query=attached.joint_query(behind)))
    seen = []
    handle = model.model.language_model.layers[0].register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    with torch.no_grad():
        with method(model) as run:
            model(**inputs)
        assert run.report[0].realised_tokens == 24
        with pruning(model, method, encoded=[tokens]):
            model(**{k: inputs[k] for k in ("input_ids", "attention_mask")}, **encoded)
    handle.remove()
    start = int((inputs["input_ids"][0] == model.config.video_token_index).nonzero()[0])
    for embeds in seen:
        torch.testing.assert_close(embeds[0, start : start + 24], expected.features)


def test_without_a_checkpoint_the_option_is_named(tiny: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    tower = tiny[0].config.vision_config
    own = tower.hidden_size, "the SigLIP checkpoint that its tower comes from, if there is one (option `siglip`)"
    usual = 1152, "its original SigLIP checkpoint (option `siglip`, such as google/siglip-so400m-patch14-384)"
    for method, options in ((FastVID(), "frame_source=mean and salience=received"), (CDPruner(), "relevance=llm")):
        for width, checkpoint in (own, usual):
            monkeypatch.setattr(tower, "hidden_size", width)
            ways = f"use its stand-in, {method.name} with {options}, or give the model {checkpoint}, or choose another"
            with pytest.raises(UnsupportedModelError, match=re.escape(f"attention, keys): {ways}")), method(tiny[0]):
                pass
    monkeypatch.undo()
    for method in (FastVID(frame_source="mean", salience="received"), CDPruner(relevance="llm")):
        with method(tiny[0]):
            pass


def test_the_model_stays_as_it_is(source: Path) -> None:
    torch.manual_seed(0)
    model, _ = small_llava_onevision(["star"], SmallSpec(**TINY))
    before = set(vars(model)), {name for name, _ in model.named_modules()}
    parts = siglip.attach(model, str(source))
    assert (set(vars(model)), {name for name, _ in model.named_modules()}) == before
    frozen = [p for part in (parts.norm, parts.head, parts.text_tower) for p in part.parameters()]
    assert not any(p.requires_grad for p in frozen)
    assert not any(part.training for part in (parts.norm, parts.head, parts.text_tower))
    head = weakref.ref(parts.head)
    del model, parts, frozen
    gc.collect()
    assert head() is None  # nothing outlives the model


def test_beside_a_model_in_half_precision_the_head_stays_in_float32(source: Path) -> None:
    model, _ = small_llava_onevision(["star"], SmallSpec(**TINY))
    parts = siglip.attach(model.bfloat16(), str(source))
    assert [next(part.parameters()).dtype for part in (parts.norm, parts.head)] == [torch.float32] * 2
    assert {parameter.dtype for parameter in parts.text_tower.parameters()} == {torch.bfloat16}
    hidden = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    for name in siglip.TOWER_FIELDS:
        assert torch.equal(parts.tower_field(name, hidden), parts.tower_field(name, hidden.float()))


def test_a_model_configuration_names_the_checkpoint(tiny_folder: Path, source: Path) -> None:
    spec = ModelSpec("tiny", str(tiny_folder), frames=4, dtype="float32", device="cpu", siglip=str(source))
    llm = VideoLLM(spec)
    llm.prepare({"attention"})
    assert siglip.attached(llm.model) is None  # not read until a method asks
    llm.prepare({"frame_features"})
    llm.adapter.check(FastVID().needs | CDPruner().needs, "both")
    tokens = llm.encode(llm.preprocess(random_video(4)), FastVID().needs).tokens
    assert tokens[0].frame_features.shape == (4, 16)
    assert llm.weights_for({"attention"}) == llm.weights
    assert llm.weights_for({"frame_features"}).startswith(f"{llm.weights} siglip@")
    read = siglip.attached(llm.model)
    llm.prepare({"frame_features"})  # of the next method: it is not read again
    assert siglip.attached(llm.model) is read
    without = VideoLLM(replace(spec, siglip=None))
    without.prepare({"frame_features"})  # a method is checked beforehand: there is nothing to read
    assert without.weights_for({"frame_features"}) == llm.weights


def test_what_a_method_needs_beside_the_model_is_charged(
    tiny_folder: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = VideoLLM(ModelSpec("tiny", str(tiny_folder), frames=4, dtype="float32", device="cpu", siglip=str(source)))
    cells = {name: make_cell(name, 1.0 if name == "dense" else 0.5) for name in ("dense", "fastvid", "cdpruner")}
    llm.prepare(frozenset().union(*(cell.method.needs for cell in cells.values())))
    read, now = siglip.Siglip.joint_query, [0.0]

    def slow(self: siglip.Siglip, ids: torch.Tensor) -> torch.Tensor:
        now[0] += 0.05
        return read(self, ids)

    monkeypatch.setattr(siglip.Siglip, "joint_query", slow)
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])  # time stands still, but for reading the question
    workload, weights = Workload(None, "What colour?", 4), {}
    for name, cell in cells.items():
        with PeakMemory(llm.device) as encoding:
            encoded = llm.encode(llm.preprocess(random_video(4)), cell.method.needs)
        inputs = workload.inputs(llm, encoded)
        weights[name] = memory_values(llm, cell, encoded, encoding, inputs, 1)["weights_bytes"]
        with torch.inference_mode(), pruning(llm.model, cell.method, encoded=encoded.tokens) as run:
            prefill(llm, encoded, inputs)
        assert run.report[0].prune_seconds == pytest.approx(0.05 if name == "cdpruner" else 0)  # it is its work
    parts = siglip.attached(llm.model)
    assert parts is not None
    assert weights["fastvid"] - weights["dense"] == weight_bytes(parts.norm, parts.head) > 0
    assert weights["cdpruner"] - weights["fastvid"] == weight_bytes(parts.text_tower) > 0


def test_the_commit_that_is_named_is_read(
    model: Any, source: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    commit, other = "1" * 40, "2" * 40
    cached = tmp_path / "models--nobody--siglip"
    shutil.copytree(source, cached / "snapshots" / commit)
    siglip.attach(model, "nobody/siglip", revision=commit)
    with pytest.raises(OSError, match="cached files"):
        siglip.attach(model, "nobody/siglip", revision=other)
    (cached / "refs").mkdir()
    for revision, newest in ((commit, other), (None, commit)):
        (cached / "refs" / "main").write_text(newest)
        options = {"siglip": "nobody/siglip", "siglip_revision": revision}
        llm = VideoLLM(ModelSpec("tiny", str(tiny_folder), dtype="float32", device="cpu", **options))
        llm.prepare({"frame_features"})
        assert llm.weights_for({"frame_features"}).endswith(f" nobody/siglip@{commit}")


def test_a_wrong_checkpoint_is_named(model: Any, source: Path, tiny_folder: Path, tmp_path: Path) -> None:
    for width in (32, 8):
        other = siglip_folder(tmp_path / f"of-{width}", model.model.vision_tower, width=width)
        with pytest.raises(ValueError, match=rf"of-{width} has width {width}, but the model's has 16"):
            siglip.attach(model, str(other))

    from safetensors.torch import load_file, save_file

    weights = load_file(source / "model.safetensors")
    torn = siglip_folder(tmp_path / "torn", model.model.vision_tower)
    left = {name: weight for name, weight in weights.items() if "head.probe" not in name and "head.mlp" not in name}
    save_file(left, torn / "model.safetensors", {"format": "pt"})
    first = ", ".join(f"vision_model.head.mlp.{name}" for name in ("fc1.bias", "fc1.weight", "fc2.bias"))
    with pytest.raises(ValueError, match=f"torn is not a complete SigLIP checkpoint: it lacks {re.escape(first)}$"):
        siglip.attach(model, str(torn))

    for path, says in (
        (str(torn), "model.siglip|it lacks"),
        (
            "nobody/no-such-siglip",
            "^the SigLIP checkpoint cannot be loaded from .*hub cache is incomplete.*model.siglip",
        ),
    ):
        llm = VideoLLM(ModelSpec("tiny", str(tiny_folder), dtype="float32", device="cpu", siglip=path))
        with pytest.raises(ModelError, match=says):
            llm.prepare({"frame_features"})
