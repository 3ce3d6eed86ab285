"""Full-size architectures with random weights, built without a download: speed does not depend on the weights.

The numbers are the published ones: the towers' and language models' own configurations, with the vocabulary as the
checkpoints in transformers' layout have it (padded for the two media tokens).
"""

from __future__ import annotations

import itertools
import string
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from mmg_bench.models.small import END, IMAGE, PAD, START, UNKNOWN, VIDEO, llava_onevision_processor, tokenizer_of

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


GEOMETRIES = {
    "llava_onevision_7b": _llava_onevision(_QWEN2_7B),
    "llava_onevision_0_5b": _llava_onevision(_QWEN2_0_5B),
}
"""Name of a model's configuration -> its architecture."""


def named(name: str) -> tuple[Any, Any]:
    """Configuration and stock processor of a named architecture. The processor's words are made up.

    Raises ValueError, listing the valid names, for one that is not known.
    """
    from transformers import AutoConfig

    if name not in GEOMETRIES:
        raise ValueError(
            f"the architecture of {name!r} is not known without a download; known: {', '.join(GEOMETRIES)}"
        )
    geometry = GEOMETRIES[name]
    config = AutoConfig.for_model(**geometry.config)
    words = ("".join(letters) for letters in itertools.product(string.ascii_lowercase, repeat=3))
    vocabulary = {UNKNOWN: 0} | {word: number for number, word in enumerate(words, start=1)} | geometry.tokens
    return config, geometry.processor(config, tokenizer_of(vocabulary))


def random_model(config: Any, dtype: torch.dtype, attn_implementation: str, device: torch.device) -> Any:
    """A model of `config` with random weights, made on `device`; torch's global generator is left as it was.

    The weights are drawn as transformers draws them before training, which keeps activations finite in half precision.
    """
    from transformers import AutoModelForImageTextToText

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), device:
        torch.manual_seed(SEED)
        return AutoModelForImageTextToText.from_config(config, dtype=dtype, attn_implementation=attn_implementation)
