"""A tiny model that is deep enough for several stages inside the language model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mmg_bench.models.small import SmallSpec, small_llava_onevision
from prompts import prompt_inputs, random_video
from tiny import TINY


@pytest.fixture(scope="module")
def deep() -> tuple[Any, Any]:
    """A tiny model of six layers; a frame gives 4 x 4 visual tokens."""
    from mmg_bench.benchmarks.embedded.questions import vocabulary

    torch.manual_seed(1)
    model, processor = small_llava_onevision(vocabulary(), SmallSpec(**{**TINY, "text_layers": 6}))
    with torch.no_grad():  # spread what random weights leave nearly flat: logits, and attention
        model.lm_head.weight.mul_(40)
        model.model.image_newline.normal_()
        for layer in model.model.language_model.layers:
            layer.self_attn.q_proj.weight.mul_(12)
            layer.self_attn.k_proj.weight.mul_(12)
            layer.self_attn.v_proj.weight.mul_(8)
    return model, processor


@pytest.fixture
def inputs(deep: tuple[Any, Any]) -> dict[str, Tensor]:
    return prompt_inputs(deep[1], ["What colour is the star? Answer with one word."], [[random_video(6)]])
