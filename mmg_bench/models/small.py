"""Small models of real transformers classes, with real processors, built without a download.

The embedded model is trained from one of these, and the tests run on them with random weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        LlavaOnevisionProcessor,
        Qwen2_5_VLConfig,
        Qwen2_5_VLProcessor,
        Qwen2VLConfig,
        Qwen2VLProcessor,
        Qwen3VLConfig,
        Qwen3VLProcessor,
    )

PAD, START, END, IMAGE, VIDEO, UNKNOWN = "<pad>", "<|im_start|>", "<|im_end|>", "<image>", "<video>", "<unk>"
QWEN_MEDIA = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")

# the layout of LLaVA-OneVision's own template: media first, then the text of the turn
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'video' %}<video>\n{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# the layout of Qwen3-VL's own template: media where they stand in the message
QWEN3_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Qwen2-VL's and Qwen2.5-VL's: the same behind a system turn where none is given
QWEN_CHAT_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    + QWEN3_CHAT_TEMPLATE
)


@dataclass(frozen=True)
class SmallSpec:
    """Sizes of a small LLaVA-OneVision. A frame gives `ceil(image_size / patch_size / 2) ** 2` visual tokens."""

    image_size: int = 112  # pixels a side
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
    rope_theta: float = 1e6  # slow enough rotations that a word finds its token 800 positions away

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


def word_tokenizer(words: list[str]) -> Any:
    """A lower-casing word-level tokenizer of `words`, plus the chat and media tokens."""
    special = [PAD, START, END, IMAGE, VIDEO, UNKNOWN]
    return tokenizer_of({t: i for i, t in enumerate([*special, *sorted({w.lower() for w in words} - set(special))])})


def tokenizer_of(vocabulary: dict[str, int], media: Sequence[str] = (IMAGE, VIDEO)) -> Any:
    """A lower-casing word-level tokenizer with these ids; the chat and `media` tokens must be among them."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        additional_special_tokens=[START, *media],
        padding_side="left",
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


def llava_onevision_processor(config: LlavaOnevisionConfig, tokenizer: Any) -> LlavaOnevisionProcessor:
    """The stock processor that fits a configuration with a SigLIP tower."""
    from transformers import LlavaOnevisionImageProcessor, LlavaOnevisionProcessor, LlavaOnevisionVideoProcessor

    vision: Any = config.vision_config
    pixels: dict[str, Any] = {
        "size": {"height": vision.image_size, "width": vision.image_size},
        "image_mean": [0.5] * 3,  # as SigLIP's own processor
        "image_std": [0.5] * 3,
    }
    return LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(image_grid_pinpoints=config.image_grid_pinpoints, **pixels),
        tokenizer=tokenizer,
        video_processor=LlavaOnevisionVideoProcessor(**pixels),
        num_image_tokens=(vision.image_size // vision.patch_size) ** 2,
        vision_feature_select_strategy="full",
        chat_template=CHAT_TEMPLATE,
    )


def qwen2_vl_processor(config: Qwen2VLConfig, tokenizer: Any) -> Qwen2VLProcessor:
    """The stock processor that fits a configuration, with the pixels a frame that the checkpoints' own allows."""
    from transformers import Qwen2VLProcessor

    processor: Qwen2VLProcessor = _qwen_vl_processor(Qwen2VLProcessor, config, tokenizer)
    return processor


def qwen2_5_vl_processor(config: Qwen2_5_VLConfig, tokenizer: Any) -> Qwen2_5_VLProcessor:
    """The stock processor that fits a configuration, with the pixels a frame that the checkpoints' own allows."""
    from transformers import Qwen2_5_VLProcessor

    processor: Qwen2_5_VLProcessor = _qwen_vl_processor(Qwen2_5_VLProcessor, config, tokenizer)
    return processor


def _qwen_vl_processor(kind: Any, config: Any, tokenizer: Any) -> Any:
    from transformers import Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    pixels = {"size": {"shortest_edge": 56 * 56, "longest_edge": 3584 * 3584}, **_patches(config)}
    return kind(
        Qwen2VLImageProcessor(**pixels),
        tokenizer,
        Qwen2VLVideoProcessor(**pixels, cap_pixels_per_frame=False),
        chat_template=QWEN_CHAT_TEMPLATE,
    )


def qwen3_vl_processor(config: Qwen3VLConfig, tokenizer: Any) -> Qwen3VLProcessor:
    """The stock processor that fits a configuration, with the pixels a video that the checkpoints' own allows."""
    from transformers import Qwen2VLImageProcessor, Qwen3VLProcessor, Qwen3VLVideoProcessor

    pixels: dict[str, Any] = {**_patches(config), "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    return Qwen3VLProcessor(
        Qwen2VLImageProcessor(**pixels, size={"shortest_edge": 256 * 256, "longest_edge": 4096 * 4096}),
        tokenizer,
        Qwen3VLVideoProcessor(
            **pixels, size={"shortest_edge": 64 * 64, "longest_edge": 24 * 1024 * 1024}, cap_pixels_per_frame=False
        ),
        chat_template=QWEN3_CHAT_TEMPLATE,
    )


def _patches(config: Any) -> dict[str, Any]:
    vision = config.vision_config
    return {
        "patch_size": vision.patch_size,
        "temporal_patch_size": vision.temporal_patch_size,
        "merge_size": vision.spatial_merge_size,
    }
