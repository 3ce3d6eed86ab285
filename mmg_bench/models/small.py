"""Small models of real transformers classes, with real processors, built without a download.

The embedded model is trained from one of these, and the tests use them with random weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmg_bench.models.processors import END, IMAGE, PAD, VIDEO, llava_onevision_processor, word_tokenizer

if TYPE_CHECKING:
    from transformers import LlavaOnevisionForConditionalGeneration, LlavaOnevisionProcessor


@dataclass(frozen=True)
class SmallSpec:
    """Sizes of a small LLaVA-OneVision. A frame gives `ceil(image_size / patch_size / 2) ** 2` visual tokens."""

    image_size: int = 112  # pixels per side
    patch_size: int = 8
    vision_width: int = 128
    vision_layers: int = 4
    vision_heads: int = 2
    vision_mlp: int = 384
    text_width: int = 192
    text_layers: int = 4
    text_heads: int = 3
    text_kv_heads: int = 3
    text_mlp: int = 512
    max_positions: int = 4096
    rope_theta: float = 1e6  # rotations slow enough for a word to find its token 800 positions away

    def __post_init__(self) -> None:
        for whole, part in (
            ("image_size", "patch_size"),
            ("vision_width", "vision_heads"),
            ("text_width", "text_heads"),
        ):
            if getattr(self, whole) % getattr(self, part):
                raise ValueError(
                    f"{whole}={getattr(self, whole)} is not a multiple of {part}={getattr(self, part)}: change one"
                )


def small_llava_onevision(
    words: list[str], spec: SmallSpec | None = None
) -> tuple[LlavaOnevisionForConditionalGeneration, LlavaOnevisionProcessor]:
    """A `LlavaOnevisionForConditionalGeneration` with random weights (torch's global seed), and its processor."""
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        Qwen2Config,
        SiglipVisionConfig,
    )

    spec = spec or SmallSpec()
    tokenizer = word_tokenizer(words)
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in (PAD, END, IMAGE, VIDEO)}
    vision = SiglipVisionConfig(
        image_size=spec.image_size,
        patch_size=spec.patch_size,
        hidden_size=spec.vision_width,
        intermediate_size=spec.vision_mlp,
        num_hidden_layers=spec.vision_layers,
        num_attention_heads=spec.vision_heads,
        vision_use_head=False,
    )
    text = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=spec.text_width,
        intermediate_size=spec.text_mlp,
        num_hidden_layers=spec.text_layers,
        num_attention_heads=spec.text_heads,
        num_key_value_heads=spec.text_kv_heads,
        max_position_embeddings=spec.max_positions,
        rope_parameters={"rope_type": "default", "rope_theta": spec.rope_theta},
        bos_token_id=None,
        eos_token_id=ids[END],
        pad_token_id=ids[PAD],
        tie_word_embeddings=True,
    )
    config = LlavaOnevisionConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=ids[IMAGE],
        video_token_index=ids[VIDEO],
        image_grid_pinpoints=[[spec.image_size, spec.image_size]],
        tie_word_embeddings=True,
    )
    model = LlavaOnevisionForConditionalGeneration(config).eval()
    model.generation_config.eos_token_id = ids[END]
    model.generation_config.pad_token_id = ids[PAD]
    return model, llava_onevision_processor(config, tokenizer)
