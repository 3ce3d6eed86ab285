"""Types of transformers that the table of docs/models.md does not show."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from equalities import method_of
from masking import masked_logits, stock_prompt, traced
from torch import Tensor
from transformers.video_utils import VideoMetadata

import families
from mmg_bench.methods.base import Positions
from mmg_bench.models.adapter import UnsupportedModelError, adapter_for, fresh
from mmg_bench.models.hooks import pruning
from mmg_bench.models.scatter import GridCapture, Scatter

STEPS = 3


def logits(model: Any, inputs: dict[str, Any]) -> Tensor:
    """Of each generated token, `[steps, vocabulary]`, of one prompt."""
    made = model.generate(
        **inputs, max_new_tokens=STEPS, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    return torch.cat(made.logits)


@pytest.mark.parametrize("label", ["mmg_vid", "fastv", "visionzip"])
@pytest.mark.parametrize("name", ["glmga", "cosmos3_omni"])
def test_a_family_under_another_name(name: str, label: str) -> None:
    torch.manual_seed(0)
    model, processor = getattr(families, name)()
    inputs = families.prompts(name, processor, ["What colour is the star?"])
    pruner = method_of(label, retention_ratio=0.3)
    with traced(pruner, families.LAYERS) as trace, pruner(model) as run:
        ours = logits(model, inputs)
    assert model.config.model_type == name
    assert run.report[0].layout == (families.FRAMES // 2, 3, 4)
    columns = (inputs["input_ids"][0] == adapter_for(model).video_token_id).nonzero().flatten().tolist()
    with torch.no_grad():
        expected = masked_logits(model, stock_prompt(model, inputs, columns), pruner, pruner.positions, trace, STEPS)
    torch.testing.assert_close(ours, expected, atol=2e-4, rtol=2e-3)


@pytest.mark.parametrize("positions", get_args(Positions))
@pytest.mark.parametrize("label", ["random", "mmg_vid", "tome"])
def test_qwen_omni_before_its_language_model(label: str, positions: Positions) -> None:
    torch.manual_seed(0)
    model, processor = families.qwen2_5_omni_thinker()
    inputs = families.prompts("qwen2_5_omni_thinker", processor, ["What colour is the star?"])
    del inputs["mm_token_type_ids"]
    inputs["video_second_per_grid"] = torch.as_tensor(inputs.pop("second_per_grid_ts"))
    columns = (inputs["input_ids"][0] == adapter_for(model).video_token_id).nonzero().flatten().tolist()
    pruner = method_of(label, retention_ratio=0.3)
    with torch.no_grad():
        prompt = stock_prompt(model, inputs, columns)
        with traced(pruner, families.LAYERS) as trace, pruner(model, positions=positions):
            ours = logits(model, inputs)
        expected = masked_logits(model, prompt, pruner, positions, trace, STEPS)
        torch.testing.assert_close(ours, expected, atol=2e-4, rtol=2e-3)
        tokens, encoded = adapter_for(model).encode(inputs, set())
        text = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        with pruning(model, pruner, positions, encoded=tokens):  # as mmg-bench does
            torch.testing.assert_close(logits(model, {**text, **fresh(encoded)}), expected, atol=2e-4, rtol=2e-3)
    with pytest.raises(UnsupportedModelError, match="how layers of models of type 'qwen2_5_omni_thinker' compute"):
        method_of("fastv", 0.3)(model).__enter__()


def test_what_the_general_adapter_would_not_narrow_is_named() -> None:
    torch.manual_seed(0)
    model, processor = families.qwen2_5_vl()
    inputs = families.prompts("qwen2_5_vl", processor, ["What colour is the star?"])
    beside = {"per_layer_ids": inputs["input_ids"]}
    says = (
        r"models of type 'qwen2_5_vl' pass further inputs per token to their language model \(per_layer_ids\): "
        "they need their own"
    )
    with method_of("random", 0.3)(model):
        for more in (beside, {"per_layer_ids": inputs["input_ids"].unsqueeze(-1)}):  # with and without a width
            with pytest.raises(UnsupportedModelError, match=says):
                model(**inputs, **more)
        model(**inputs, per_layer_ids=inputs["input_ids"][0])  # of no row of the prompt
    with method_of("dense", 1.0)(model):
        model(**inputs, **beside)


def test_position_ids_tell_the_column_that_they_begin_with() -> None:
    """As `generate` counts on behind a cache, and as it does anew, with the text's count in front."""
    model = SimpleNamespace(model=SimpleNamespace(rope_deltas=torch.tensor([[-3]])))
    adapter, ids = Scatter(model), torch.tensor([[7, 8]])
    ways = (ids, ids[None], torch.stack([ids, *(ids + 5,) * 3]), ids.expand(3, 1, 2))
    assert [adapter.column(way) for way in ways] == [7, 10, 7, None]
    model.model.rope_deltas = None
    assert adapter.column(ids[None]) is None


def test_tokens_that_the_processor_has_dropped_are_named() -> None:
    torch.manual_seed(0)
    model, processor = families.video_llama_3()
    processor.video_processor.use_token_compression = True
    still = np.zeros((families.FRAMES, 24, 32, 3), dtype=np.uint8)
    times = VideoMetadata(families.FRAMES, 2.0, frames_indices=list(range(families.FRAMES)))
    inputs = processor(text=["<|video_pad|> star ?"], videos=[still], video_metadata=[times], return_tensors="pt")
    assert not inputs["video_compression_mask"].all()
    says = "has already dropped visual tokens: set its use_token_compression to False"
    with method_of("random", 0.3)(model), pytest.raises(ValueError, match=says):
        model(**inputs)
    with pytest.raises(ValueError, match=says):
        adapter_for(model).encode(inputs, set())


def bare() -> tuple[Scatter, GridCapture]:
    """An adapter, and what it records of a tower that has said nothing."""
    adapter = Scatter(SimpleNamespace(config=SimpleNamespace(vision_config=SimpleNamespace())))
    return adapter, GridCapture(adapter, frozenset())


def test_frames_that_are_no_squares_are_refused() -> None:
    adapter, captured = bare()
    captured.frames, captured.per_frame = 8, 12
    with pytest.raises(UnsupportedModelError, match=r"^12 tokens per frame do not form a square; supported: "):
        adapter.layouts({"pixel_values_videos": torch.zeros(1, 8, 3, 24, 32)}, captured)


@pytest.mark.parametrize("output", [torch.zeros(96, 32), (torch.zeros(8, 12, 32),)])
def test_a_projector_that_gives_no_frames_tells_no_layout(output: Any) -> None:
    adapter, captured = bare()
    captured.note_frames(torch.nn.Identity(), (), output)
    with pytest.raises(ValueError, match="encoded outside the context, or by an unknown vision tower"):
        adapter.layouts({"pixel_values_videos": torch.zeros(1, 8, 3, 24, 32)}, captured)


def test_what_a_model_of_no_family_lacks_is_named() -> None:
    layers = SimpleNamespace(layers=[])
    model = SimpleNamespace(config=SimpleNamespace(model_type="some_vlm", video_token_id=0), model=SimpleNamespace())
    parts = {"get_video_features": lambda: None, "language_model": layers, "vision_tower": SimpleNamespace()}
    wanted = ["model.get_video_features", "model.language_model.layers", "model.visual or model.vision_tower or"]
    for (name, part), what in zip(parts.items(), wanted, strict=True):
        with pytest.raises(UnsupportedModelError, match=f"no adapter for .*: it has no {what}"):
            adapter_for(model)
        setattr(model.model, name, part)
    assert isinstance(adapter_for(model), Scatter)
