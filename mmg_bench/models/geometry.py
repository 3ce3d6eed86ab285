"""Full-size architectures with random weights, built without a download: speed does not depend on the weights.

The numbers are the published ones: the towers' and language models' own configurations, with the vocabulary as the
checkpoints in transformers' layout have it (LLaVA-OneVision's is padded for the two media tokens).
"""

from __future__ import annotations

import itertools
import string
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from mmg_bench.models.small import (
    END,
    IMAGE,
    PAD,
    QWEN_MEDIA,
    START,
    UNKNOWN,
    VIDEO,
    llava_onevision_processor,
    qwen2_5_vl_processor,
    qwen2_vl_processor,
    qwen3_vl_processor,
    tokenizer_of,
)

SEED = 0
"""Of the random weights."""

# google/siglip-so400m-patch14-384 without its last layer and its head: LLaVA takes the features of the last but one
_SIGLIP = {
    "model_type": "siglip_vision_model",
    "image_size": 384,
    "patch_size": 14,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 26,
    "num_attention_heads": 16,
    "vision_use_head": False,
}
_QWEN2 = {
    "model_type": "qwen2",
    "max_position_embeddings": 32768,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    "rms_norm_eps": 1e-6,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "pad_token_id": 151643,
}
_QWEN2_7B = _QWEN2 | {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152128,
    "tie_word_embeddings": False,
}
_QWEN2_0_5B = _QWEN2 | {
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 152000,
    "tie_word_embeddings": True,
}
_QWEN2_5_VL_TEXT = _QWEN2_7B | {
    "model_type": "qwen2_5_vl_text",
    "max_position_embeddings": 128000,
    "vocab_size": 152064,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
}
_QWEN2_5_VL_TOWER = {
    "model_type": "qwen2_5_vl",
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "out_hidden_size": 3584,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
    "tokens_per_second": 2,
}
_QWEN2_VL_TEXT = _QWEN2_5_VL_TEXT | {"model_type": "qwen2_vl_text", "max_position_embeddings": 32768}
_QWEN2_VL_TOWER = {
    "model_type": "qwen2_vl_vision",
    "depth": 32,
    "embed_dim": 1280,
    "hidden_size": 3584,  # of its output
    "mlp_ratio": 4,
    "num_heads": 16,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
}
_QWEN3_VL_TEXT = {
    "model_type": "qwen3_vl_text",
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 262144,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 5e6,
        "mrope_section": [24, 20, 20],
        "mrope_interleaved": True,
    },
    "rms_norm_eps": 1e-6,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "pad_token_id": 151643,
    "tie_word_embeddings": False,
}
_QWEN3_VL_MOE_TEXT = _QWEN3_VL_TEXT | {
    "model_type": "qwen3_vl_moe_text",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
    "decoder_sparse_step": 1,
}
_QWEN3_VL_TOWER = {
    "depth": 27,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_heads": 16,
    "patch_size": 16,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
    "num_position_embeddings": 2304,
    "deepstack_visual_indexes": [8, 16, 24],
}
_QWEN2_TOKENS = {PAD: 151643, START: 151644, END: 151645, IMAGE: 151646, VIDEO: 151647}


@dataclass(frozen=True)
class Geometry:
    """An architecture: what its model and its stock processor are built from."""

    config: dict[str, Any]
    """Of the model, as its `config.json` holds it."""
    tokens: dict[str, int]
    """Ids of the chat and media tokens."""
    processor: Callable[[Any, Any], Any]
    """(configuration, tokenizer) -> the stock processor."""


def _llava_onevision(text: dict[str, Any]) -> Geometry:
    media = {"image_token_index": _QWEN2_TOKENS[IMAGE], "video_token_index": _QWEN2_TOKENS[VIDEO]}
    config = {"model_type": "llava_onevision", "vision_config": _SIGLIP, "text_config": text, **media}
    return Geometry(config, _QWEN2_TOKENS, llava_onevision_processor)


def _qwen_vl(kind: str, text: dict[str, Any], tower: dict[str, Any], processor: Callable[[Any, Any], Any]) -> Geometry:
    media = dict(zip(QWEN_MEDIA, (151655, 151656, 151652, 151653), strict=True))
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    config = {"model_type": kind, "vision_config": tower, "text_config": text, "tie_word_embeddings": False}
    tokens = {token: _QWEN2_TOKENS[token] for token in (PAD, START, END)} | media
    return Geometry(config | dict(zip(names, media.values(), strict=True)), tokens, processor)


GEOMETRIES = {
    "llava_onevision_7b": _llava_onevision(_QWEN2_7B),
    "llava_onevision_0_5b": _llava_onevision(_QWEN2_0_5B),
    "qwen2_vl_7b": _qwen_vl("qwen2_vl", _QWEN2_VL_TEXT, _QWEN2_VL_TOWER, qwen2_vl_processor),
    "qwen2_5_vl_7b": _qwen_vl("qwen2_5_vl", _QWEN2_5_VL_TEXT, _QWEN2_5_VL_TOWER, qwen2_5_vl_processor),
    "qwen3_vl_8b": _qwen_vl(
        "qwen3_vl", _QWEN3_VL_TEXT, _QWEN3_VL_TOWER | {"out_hidden_size": 4096}, qwen3_vl_processor
    ),
    "qwen3_vl_moe_30b": _qwen_vl(
        "qwen3_vl_moe", _QWEN3_VL_MOE_TEXT, _QWEN3_VL_TOWER | {"out_hidden_size": 2048}, qwen3_vl_processor
    ),
}
"""Name of a model's configuration -> its architecture."""
TYPES = {
    "llava-hf/llava-onevision-qwen2-0.5b-ov-hf": "llava_onevision",
    "llava-hf/llava-onevision-qwen2-7b-ov-hf": "llava_onevision",
    "llava-hf/llava-onevision-qwen2-72b-ov-hf": "llava_onevision",
    "Qwen/Qwen2-VL-7B-Instruct": "qwen2_vl",
    "Qwen/Qwen2.5-VL-7B-Instruct": "qwen2_5_vl",
    "Qwen/Qwen3-VL-8B-Instruct": "qwen3_vl",
    "Qwen/Qwen3-VL-30B-A3B-Instruct": "qwen3_vl_moe",
    "Qwen/Qwen3.5-9B": "qwen3_5",
    "zai-org/GLM-4.1V-9B-Thinking": "glm4v",
    "zai-org/GLM-4.6V-Flash": "glm46v",
    "OpenGVLab/InternVL3-8B-hf": "internvl",
    "HuggingFaceTB/SmolVLM2-2.2B-Instruct": "smolvlm",
}
"""Hub id that a model's configuration names -> model_type of the checkpoint: known before any of it is downloaded."""


def unknown(name: str) -> str:
    """What to say of an architecture that is not known by its `name`."""
    return f"the architecture of {name!r} is not known without a download; known: {', '.join(GEOMETRIES)}"


def named(name: str) -> tuple[Any, Any]:
    """Configuration and stock processor of a named architecture. The processor's words are made up.

    Raises ValueError, listing the valid names, for one that is not known.
    """
    from transformers import AutoConfig

    if name not in GEOMETRIES:
        raise ValueError(unknown(name))
    geometry = GEOMETRIES[name]
    config = AutoConfig.for_model(**geometry.config)
    words = ("".join(letters) for letters in itertools.product(string.ascii_lowercase, repeat=3))
    vocabulary = {UNKNOWN: 0} | {word: number for number, word in enumerate(words, start=1)} | geometry.tokens
    media = [token for token in geometry.tokens if token not in (PAD, START, END)]
    return config, geometry.processor(config, tokenizer_of(vocabulary, media))


def random_model(config: Any, dtype: torch.dtype, attn_implementation: str, device: torch.device) -> Any:
    """A model of `config` with random weights, made on `device`; torch's global generator is left as it was.

    The weights are drawn as transformers draws them before training, which keeps activations finite in half precision.
    """
    from transformers import AutoModelForImageTextToText

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), device:
        torch.manual_seed(SEED)
        return AutoModelForImageTextToText.from_config(config, dtype=dtype, attn_implementation=attn_implementation)
