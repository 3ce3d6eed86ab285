"""Stock processors that match a configuration, built without a download. Their vocabulary is made up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import (
        Glm4vConfig,
        Glm4vProcessor,
        Glm46VConfig,
        Glm46VProcessor,
        InternVLConfig,
        InternVLProcessor,
        LlavaOnevisionConfig,
        LlavaOnevisionProcessor,
        Qwen2_5_VLConfig,
        Qwen2_5_VLProcessor,
        Qwen2VLConfig,
        Qwen2VLProcessor,
        Qwen3VLConfig,
        Qwen3VLProcessor,
        SmolVLMConfig,
        SmolVLMProcessor,
    )

PAD, START, END, IMAGE, VIDEO, UNKNOWN = "<pad>", "<|im_start|>", "<|im_end|>", "<image>", "<video>", "<unk>"
QWEN_MEDIA = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
GLM_MEDIA = {"image": "<|image|>", "video": "<|video|>"} | {
    f"{kind}_{edge}": f"<|{word}_of_{kind}|>"
    for kind in ("image", "video")
    for edge, word in (("start", "begin"), ("end", "end"))
}
INTERNVL_MEDIA = ("<img>", "</img>", "<IMG_CONTEXT>", VIDEO)
SMOLVLM_MEDIA = (IMAGE, "<fake_token_around_image>", "<global-img>")

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


def chat_template(video: str, image: str) -> str:
    """The layout of Qwen3-VL's and InternVL's own templates: media at their place in the message."""
    return (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
        f"{{% if part['type'] == 'image' %}}{image}{{% elif part['type'] == 'video' %}}{video}"
        "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


QWEN3_CHAT_TEMPLATE = chat_template(*(f"<|vision_start|><|{kind}_pad|><|vision_end|>" for kind in ("video", "image")))
# Qwen2-VL's and Qwen2.5-VL's: the same, after a default system turn if none is given
QWEN_CHAT_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    + QWEN3_CHAT_TEMPLATE
)
# also in Qwen's layout: the few words of GLM's own template do not matter here
GLM_CHAT_TEMPLATE = chat_template(
    *("".join(GLM_MEDIA[f"{kind}{part}"] for part in ("_start", "", "_end")) for kind in ("video", "image"))
)


def word_tokenizer(words: list[str]) -> Any:
    """A lower-casing word-level tokenizer of `words`, plus the chat and media tokens."""
    special = [PAD, START, END, IMAGE, VIDEO, UNKNOWN]
    return tokenizer_of({t: i for i, t in enumerate([*special, *sorted({w.lower() for w in words} - set(special))])})


def tokenizer_of(vocabulary: dict[str, int], media: Sequence[str] = (IMAGE, VIDEO), *, digits: bool = False) -> Any:
    """A lower-casing word-level tokenizer with these ids; the chat and `media` tokens must be among them.

    `digits`: treat each digit as a separate word, as the tokenizers of most video LLMs do.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    backend.normalizer = normalizers.Lowercase()
    words = pre_tokenizers.Whitespace()
    apart = pre_tokenizers.Digits(individual_digits=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([words, apart]) if digits else words
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        additional_special_tokens=[START, *media],
        padding_side="left",
    )


def llava_onevision_processor(config: LlavaOnevisionConfig, tokenizer: Any) -> LlavaOnevisionProcessor:
    """The stock processor that matches a configuration with a SigLIP tower."""
    from transformers import LlavaOnevisionImageProcessor, LlavaOnevisionProcessor, LlavaOnevisionVideoProcessor

    vision: Any = config.vision_config
    pixels: dict[str, Any] = {
        "size": {"height": vision.image_size, "width": vision.image_size},
        "image_mean": [0.5] * 3,  # as in SigLIP's own processor
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
    """The stock processor that matches a configuration, with the pixels per frame of the checkpoints' own processor."""
    from transformers import Qwen2VLProcessor

    processor: Qwen2VLProcessor = _qwen_vl_processor(Qwen2VLProcessor, config, tokenizer)
    return processor


def qwen2_5_vl_processor(config: Qwen2_5_VLConfig, tokenizer: Any) -> Qwen2_5_VLProcessor:
    """The stock processor that matches a configuration, with the pixels per frame of the checkpoints' own processor."""
    from transformers import Qwen2_5_VLProcessor

    processor: Qwen2_5_VLProcessor = _qwen_vl_processor(Qwen2_5_VLProcessor, config, tokenizer)
    return processor


def _qwen_vl_processor(kind: Any, config: Any, tokenizer: Any) -> Any:
    from transformers import Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    pixels = {"size": {"shortest_edge": 56 * 56, "longest_edge": 3584 * 3584}, **_patches(config)}
    return kind(
        Qwen2VLImageProcessor(**pixels),
        tokenizer,
        Qwen2VLVideoProcessor(**pixels),
        chat_template=QWEN_CHAT_TEMPLATE,
    )


def qwen3_vl_processor(config: Qwen3VLConfig, tokenizer: Any) -> Qwen3VLProcessor:
    """The stock processor that matches a configuration, with the pixels per video of the checkpoints' own processor."""
    from transformers import Qwen2VLImageProcessor, Qwen3VLProcessor, Qwen3VLVideoProcessor

    pixels: dict[str, Any] = {**_patches(config), "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    return Qwen3VLProcessor(
        Qwen2VLImageProcessor(**pixels, size={"shortest_edge": 256 * 256, "longest_edge": 4096 * 4096}),
        tokenizer,
        Qwen3VLVideoProcessor(**pixels, size={"shortest_edge": 64 * 64, "longest_edge": 24 * 1024 * 1024}),
        chat_template=QWEN3_CHAT_TEMPLATE,
    )


def _patches(config: Any) -> dict[str, Any]:
    vision = config.vision_config
    return {
        "patch_size": vision.patch_size,
        "temporal_patch_size": vision.temporal_patch_size,
        "merge_size": vision.spatial_merge_size,
    }


def glm4v_processor(config: Glm4vConfig | Glm46VConfig, tokenizer: Any) -> Glm4vProcessor | Glm46VProcessor:
    """The stock processor that matches a configuration, with the stock limits on the pixels per video."""
    import transformers

    kind = {"glm4v": "Glm4v", "glm46v": "Glm46V"}[config.model_type]
    image, video = (getattr(transformers, f"{kind}{part}Processor") for part in ("Image", "Video"))
    pixels = _patches(config)
    processor: Glm4vProcessor | Glm46VProcessor = getattr(transformers, f"{kind}Processor")(
        image(**pixels),
        tokenizer,
        video(**pixels),
        chat_template=GLM_CHAT_TEMPLATE,
    )
    return processor


def internvl_processor(config: InternVLConfig, tokenizer: Any) -> InternVLProcessor:
    """The stock processor that matches a configuration."""
    from transformers import GotOcr2ImageProcessor, InternVLProcessor, InternVLVideoProcessor
    from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    height, width = config.vision_config.image_size
    pixels: dict[str, Any] = {
        "size": {"height": height, "width": width},
        "image_mean": IMAGENET_DEFAULT_MEAN,
        "image_std": IMAGENET_DEFAULT_STD,
    }
    names = dict(zip(("start_image", "end_image", "context_image", "video"), INTERNVL_MEDIA, strict=True))
    return InternVLProcessor(
        GotOcr2ImageProcessor(**pixels),
        named_tokens(tokenizer, **{f"{name}_token": token for name, token in names.items()}),
        InternVLVideoProcessor(**pixels),
        image_seq_length=config.image_seq_length,
        chat_template=chat_template(f"{VIDEO}\n", "<IMG_CONTEXT>\n"),
    )


def named_tokens(tokenizer: Any, **names: str) -> Any:
    """The same tokenizer with attributes that name some of its tokens, as in the checkpoints' own."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        **{f"{name}_token": getattr(tokenizer, f"{name}_token") for name in ("pad", "eos", "unk")},
        extra_special_tokens=names,
        padding_side="left",
    )


def smolvlm_processor(config: SmolVLMConfig, tokenizer: Any) -> SmolVLMProcessor:
    """The stock processor that matches a configuration. Raises ImportError if `num2words` is not installed."""
    from transformers import SmolVLMImageProcessor, SmolVLMProcessor, SmolVLMVideoProcessor

    vision: Any = config.vision_config
    edge = {"longest_edge": vision.image_size}
    return SmolVLMProcessor(
        SmolVLMImageProcessor(size={"longest_edge": 4 * vision.image_size}, max_image_size=edge),
        tokenizer,
        SmolVLMVideoProcessor(size=edge, max_image_size=edge),
        image_seq_len=(vision.image_size // vision.patch_size // config.scale_factor) ** 2,
        chat_template=chat_template(VIDEO, IMAGE),
    )
