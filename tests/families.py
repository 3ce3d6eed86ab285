"""Tiny random models of the real classes of each family, with their real processors, and prompts for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from mmg_bench.models.adapter import adapter_for
from mmg_bench.models.processors import (
    GLM_CHAT_TEMPLATE,
    GLM_MEDIA,
    IMAGE,
    QWEN3_CHAT_TEMPLATE,
    QWEN_MEDIA,
    VIDEO,
    chat_template,
    named_tokens,
    word_tokenizer,
)
from tiny import TINY

LAYERS = 4
WORDS = (
    "user assistant what colour is the star ? answer with one word . how many times does it flash < > seconds time : "
)
WORDS += "you are provided following series of frames from a video frame 00 01 02 03 04 "  # SmolVLM's; and InternVL's
WORDS += " ".join(f"frame{number}" for number in range(1, 9))
TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "bos_token_id": None,
}


def media_ids(made: Any) -> dict[str, int]:
    """What a Qwen-VL config calls the tokens of QWEN_MEDIA."""
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    return dict(zip(names, of(made, *QWEN_MEDIA), strict=True))


def tokenizer(*media: str) -> Any:
    made = word_tokenizer(WORDS.split())
    made.add_tokens(list(media), special_tokens=True)
    return made


def of(made: Any, *tokens: str) -> list[int]:
    return [made.convert_tokens_to_ids(token) for token in tokens]


def spread(model: Any) -> Any:
    """Random logits and attention are nearly flat: spread them, so that generated ids can differ."""
    with torch.no_grad():
        model.lm_head.weight.mul_(40)
        for layer in adapter_for(model).layers:
            if hasattr(layer, "linear_attn"):
                layer.linear_attn.in_proj_qkv.weight.mul_(12)
                layer.linear_attn.out_proj.weight.mul_(8)
                continue
            for name, by in (("q_proj", 12), ("k_proj", 12), ("v_proj", 8)):
                getattr(layer.self_attn, name).weight.mul_(by)
    model.generation_config.pad_token_id = 0
    model.generation_config.eos_token_id = None  # so that every step is greedy
    return model.eval()


def llava_onevision() -> tuple[Any, Any]:
    from mmg_bench.models.small import SmallSpec, small_llava_onevision

    model, processor = small_llava_onevision(WORDS.split(), SmallSpec(**{**TINY, "text_layers": LAYERS}))
    with torch.no_grad():
        model.model.image_newline.normal_()
    return spread(model), processor


def qwen2_processor(kind: Any, words: Any) -> Any:
    """A processor of class `kind`, of the image and video processors of Qwen2-VL."""
    from transformers import Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    pixels: dict[str, Any] = {"patch_size": 4, "size": {"shortest_edge": 64, "longest_edge": 4096}}
    return kind(
        Qwen2VLImageProcessor(**pixels),
        words,
        Qwen2VLVideoProcessor(**pixels, cap_pixels_per_frame=False),
        chat_template=QWEN3_CHAT_TEMPLATE,
    )


def qwen2_vl() -> tuple[Any, Any]:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLProcessor

    words = tokenizer(*QWEN_MEDIA)
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
    config = Qwen2VLConfig(
        text_config={**TEXT, "vocab_size": len(words), "rope_parameters": rope},
        vision_config={"depth": 2, "embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2, "num_heads": 2, "patch_size": 4},
        **media_ids(words),
    )
    return spread(Qwen2VLForConditionalGeneration(config)), qwen2_processor(Qwen2VLProcessor, words)


QWEN2_5_TOWER: dict[str, Any] = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 2,
    "patch_size": 4,
    "window_size": 16,
    "fullatt_block_indexes": [1],
    "out_hidden_size": 32,
}


def qwen2_5_vl() -> tuple[Any, Any]:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

    words = tokenizer(*QWEN_MEDIA)
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
    config = Qwen2_5_VLConfig(
        text_config={**TEXT, "vocab_size": len(words), "rope_parameters": rope},
        vision_config={**QWEN2_5_TOWER, "tokens_per_second": 4},
        **media_ids(words),
    )
    return spread(Qwen2_5_VLForConditionalGeneration(config)), qwen2_processor(Qwen2_5_VLProcessor, words)


def qwen2_5_omni_thinker() -> tuple[Any, Any]:
    """With the processor of Qwen2.5-VL, which says the same of videos, but for the name of their seconds."""
    from transformers import Qwen2_5OmniThinkerConfig, Qwen2_5OmniThinkerForConditionalGeneration

    _, processor = qwen2_5_vl()
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
    layers = {"encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32}
    config = Qwen2_5OmniThinkerConfig(
        audio_config={**layers, "d_model": 32, "num_mel_bins": 16, "output_dim": 32},
        text_config={**TEXT, "vocab_size": len(processor.tokenizer), "rope_parameters": rope},
        vision_config=QWEN2_5_TOWER,
        audio_token_id=0,
        position_id_per_seconds=4,
        **media_ids(processor.tokenizer),
    )
    return spread(Qwen2_5OmniThinkerForConditionalGeneration(config)), processor


QWEN3_TOWER: dict[str, Any] = {
    "depth": 3,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 2,
    "patch_size": 4,
    "out_hidden_size": 32,
    "num_position_embeddings": 64,
}
QWEN3_TEXT: dict[str, Any] = {
    **TEXT,
    "head_dim": 8,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 1e4,
        "mrope_section": [2, 1, 1],
        "mrope_interleaved": True,
    },
}


def qwen3_processor(words: Any) -> Any:
    from transformers import Qwen2VLImageProcessor, Qwen3VLProcessor, Qwen3VLVideoProcessor

    pixels: dict[str, Any] = {"patch_size": 4, "size": {"shortest_edge": 64, "longest_edge": 65536}}
    return Qwen3VLProcessor(
        Qwen2VLImageProcessor(**pixels),
        words,
        Qwen3VLVideoProcessor(**pixels, do_sample_frames=False),
        chat_template=QWEN3_CHAT_TEMPLATE,
    )


def qwen3_vl_of(kind: str, **text: Any) -> tuple[Any, Any]:
    """A model of classes named after `kind`, with its processor."""
    import transformers

    words = tokenizer(*QWEN_MEDIA)
    config = getattr(transformers, f"{kind}Config")(
        text_config={**QWEN3_TEXT, "vocab_size": len(words), **text},
        vision_config={**QWEN3_TOWER, "deepstack_visual_indexes": [0, 1, 2]},
        **media_ids(words),
    )
    return spread(getattr(transformers, f"{kind}ForConditionalGeneration")(config)), qwen3_processor(words)


def qwen3_vl() -> tuple[Any, Any]:
    return qwen3_vl_of("Qwen3VL")


def qwen3_vl_moe() -> tuple[Any, Any]:
    return qwen3_vl_of("Qwen3VLMoe", moe_intermediate_size=16, num_experts=4, num_experts_per_tok=2)


def cosmos3_omni() -> tuple[Any, Any]:
    """Qwen3-VL under another type."""
    return qwen3_vl_of("Cosmos3Omni", model_type="qwen3_vl_text")


def byte_tokenizer(*media: str) -> Any:
    """Qwen3.5's own, of bytes: transformers loads no other for its checkpoints."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen3_5Tokenizer

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *media]
    letters = [*special, *sorted(ByteLevel.alphabet())]
    made = Qwen3_5Tokenizer({letter: number for number, letter in enumerate(letters)}, padding_side="left")
    made.add_tokens(special, special_tokens=True)
    return made


def qwen3_5_of(kind: str, **text: Any) -> tuple[Any, Any]:
    """A model of classes named after `kind`, with its processor."""
    import transformers

    words = byte_tokenizer(*QWEN_MEDIA)
    linear = {
        "layer_types": ["linear_attention", "full_attention"] * (LAYERS // 2),
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
    }
    rope = {**QWEN3_TEXT["rope_parameters"], "partial_rotary_factor": 0.5}
    sizes = {"head_dim": 16, "rope_parameters": rope, "vocab_size": len(words)}
    config = getattr(transformers, f"{kind}Config")(
        text_config={**QWEN3_TEXT, **linear, **sizes, **text}, vision_config=QWEN3_TOWER, **media_ids(words)
    )
    return spread(getattr(transformers, f"{kind}ForConditionalGeneration")(config)), qwen3_processor(words)


def qwen3_5() -> tuple[Any, Any]:
    return qwen3_5_of("Qwen3_5")


def qwen3_5_moe() -> tuple[Any, Any]:
    experts = {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}
    return qwen3_5_of("Qwen3_5Moe", **experts, shared_expert_intermediate_size=16)


GLM_HALF = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2], "partial_rotary_factor": 0.5}
"""Half of a head of 16 is turned, as GLM-4.5V has it by default."""


def glm(kind: str, processor: str, parts: str = "Glm4v", tools: str | None = None, **text: Any) -> tuple[Any, Any]:
    """A model of classes named after `kind`, its processor of those named after `processor`, or after `tools`.

    Its language model has the configuration named after `parts`, changed by `text`.
    """
    import transformers

    words = tokenizer(*GLM_MEDIA.values())
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2], "partial_rotary_factor": 1.0}
    shared = {**TEXT, "vocab_size": len(words), "pad_token_id": 0, "rope_parameters": rope}
    tower: dict[str, Any] = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "patch_size": 4}
    config = getattr(transformers, f"{kind}Config")(
        text_config=getattr(transformers, f"{parts}TextConfig")(**shared | text),
        vision_config=getattr(transformers, f"{parts.removesuffix('Moe')}VisionConfig")(
            **tower, image_size=32, out_hidden_size=32
        ),
        **{f"{name}_token_id": number for name, number in zip(GLM_MEDIA, of(words, *GLM_MEDIA.values()), strict=True)},
    )
    pixels: dict[str, Any] = {"patch_size": 4, "size": {"shortest_edge": 64, "longest_edge": 65536}}
    tools = tools or processor
    made = getattr(transformers, f"{processor}Processor")(
        getattr(transformers, f"{tools}ImageProcessor")(**pixels),
        words,
        getattr(transformers, f"{tools}VideoProcessor")(**pixels, do_sample_frames=False),
        chat_template=GLM_CHAT_TEMPLATE,
    )
    model = getattr(transformers, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[config.model_type])(config)
    return spread(model), made


def glm4v() -> tuple[Any, Any]:
    return glm("Glm4v", "Glm4v")


def glm4v_moe() -> tuple[Any, Any]:
    experts = {"moe_intermediate_size": 16, "n_routed_experts": 4, "num_experts_per_tok": 2, "first_k_dense_replace": 1}
    return glm("Glm4vMoe", "Glm4v", "Glm4vMoe", head_dim=16, rope_parameters=GLM_HALF, **experts)


def glm46v() -> tuple[Any, Any]:
    return glm("Glm46V", "Glm46V")


def glm_ocr() -> tuple[Any, Any]:
    return glm("GlmOcr", "Glm46V", "GlmOcr", head_dim=16, rope_parameters=GLM_HALF)


def glmga() -> tuple[Any, Any]:
    """GLM-4.6V's class, under another type and with processors of its own."""
    return glm("Glmga", "Glm46V", tools="Glmga")


def exaone4_5() -> tuple[Any, Any]:
    from transformers import (
        Exaone4_5_Config,
        Exaone4_5_ForConditionalGeneration,
        Exaone4_5_Processor,
        Exaone4Config,
    )

    words = tokenizer(*QWEN_MEDIA)
    config = Exaone4_5_Config(
        text_config=Exaone4Config(
            **TEXT,
            vocab_size=len(words),
            sliding_window=16,
            layer_types=["sliding_attention", "full_attention"] * (LAYERS // 2),
        ),
        vision_config={**QWEN2_5_TOWER, "num_key_value_heads": 1},
        **dict(list(media_ids(words).items())[:2]),
    )
    return spread(Exaone4_5_ForConditionalGeneration(config)), qwen2_processor(Exaone4_5_Processor, words)


def llava_next_video() -> tuple[Any, Any]:
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaNextImageProcessor,
        LlavaNextVideoConfig,
        LlavaNextVideoForConditionalGeneration,
        LlavaNextVideoProcessor,
        LlavaNextVideoVideoProcessor,
    )

    words = tokenizer()
    image, video = of(words, "<image>", "<video>")
    config = LlavaNextVideoConfig(
        vision_config=CLIPVisionConfig(
            image_size=32,
            patch_size=4,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=2,
        ),
        text_config=LlamaConfig(**TEXT, vocab_size=len(words), pad_token_id=0),
        image_token_index=image,
        video_token_index=video,
        image_grid_pinpoints=[[32, 32]],
    )
    pixels: dict[str, Any] = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    processor = LlavaNextVideoProcessor(
        LlavaNextVideoVideoProcessor(**pixels),
        LlavaNextImageProcessor(**pixels, image_grid_pinpoints=[[32, 32]]),
        words,
        chat_template=chat_template(VIDEO, IMAGE),
        patch_size=4,
        vision_feature_select_strategy="default",
    )
    return spread(LlavaNextVideoForConditionalGeneration(config)), processor


def video_llama_3() -> tuple[Any, Any]:
    from transformers import (
        Qwen2Config,
        VideoLlama3Config,
        VideoLlama3ForConditionalGeneration,
        VideoLlama3ImageProcessor,
        VideoLlama3Processor,
        VideoLlama3VideoProcessor,
        VideoLlama3VisionConfig,
    )

    words = tokenizer(*QWEN_MEDIA)
    image, video = of(words, *QWEN_MEDIA[:2])
    config = VideoLlama3Config(
        text_config=Qwen2Config(**TEXT, vocab_size=len(words), pad_token_id=0),
        vision_config=VideoLlama3VisionConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, patch_size=4
        ),
        image_token_id=image,
        video_token_id=video,
    )
    pixels: dict[str, Any] = {"patch_size": 4, "size": {"shortest_edge": 64, "longest_edge": 65536}}
    processor = VideoLlama3Processor(
        VideoLlama3ImageProcessor(**pixels),
        words,
        VideoLlama3VideoProcessor(**pixels, use_token_compression=False, do_sample_frames=False),
        chat_template=chat_template("<|video_pad|>", "<|image_pad|>"),
    )
    return spread(VideoLlama3ForConditionalGeneration(config)), processor


def internvl() -> tuple[Any, Any]:
    from transformers import (
        GotOcr2ImageProcessor,
        InternVLConfig,
        InternVLForConditionalGeneration,
        InternVLProcessor,
        InternVLVideoProcessor,
        InternVLVisionConfig,
        Qwen2Config,
    )

    names = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
    words = named_tokens(tokenizer("<img>", "</img>", "<IMG_CONTEXT>"), **names, video_token="<video>")
    config = InternVLConfig(
        text_config=Qwen2Config(**TEXT, vocab_size=len(words), pad_token_id=0),
        vision_config=InternVLVisionConfig(
            image_size=32,
            patch_size=4,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
        ),
        image_token_id=of(words, "<IMG_CONTEXT>")[0],
        image_seq_length=16,
        tie_word_embeddings=False,
    )
    pixels: dict[str, Any] = {"size": {"height": 32, "width": 32}}
    processor = InternVLProcessor(
        GotOcr2ImageProcessor(**pixels, max_patches=2),
        words,
        InternVLVideoProcessor(**pixels),
        image_seq_length=16,
        chat_template=chat_template("<video>\n", "<IMG_CONTEXT>\n"),
    )
    return spread(InternVLForConditionalGeneration(config)), processor


def smolvlm() -> tuple[Any, Any]:
    import pytest

    pytest.importorskip("num2words", reason="SmolVLM's own processor needs it")
    from transformers import (
        LlamaConfig,
        SmolVLMConfig,
        SmolVLMForConditionalGeneration,
        SmolVLMImageProcessor,
        SmolVLMProcessor,
        SmolVLMVideoProcessor,
        SmolVLMVisionConfig,
    )

    media = ("<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "<row_1_col_1>")
    words = tokenizer(*media)
    config = SmolVLMConfig(
        text_config=LlamaConfig(**TEXT, vocab_size=len(words), pad_token_id=0),
        vision_config=SmolVLMVisionConfig(
            image_size=32,
            patch_size=4,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
        ),
        image_token_id=of(words, "<image>")[0],
        scale_factor=2,
    )
    pixels: dict[str, Any] = {"size": {"longest_edge": 32}, "max_image_size": {"longest_edge": 32}}
    processor = SmolVLMProcessor(
        SmolVLMImageProcessor(**pixels, do_image_splitting=False),
        words,
        SmolVLMVideoProcessor(**pixels, num_frames=8, fps=1),
        image_seq_len=16,
        chat_template=chat_template(VIDEO, IMAGE),
    )
    return spread(SmolVLMForConditionalGeneration(config)), processor


BUILDERS = {
    f.__name__: f
    for f in (
        *(llava_onevision, qwen2_vl, qwen2_5_vl, qwen3_vl, qwen3_vl_moe, qwen3_5, qwen3_5_moe),
        *(glm4v, glm4v_moe, glm46v, glm_ocr, internvl, smolvlm, llava_next_video, video_llama_3, exaone4_5),
    )
}
FRAMED = ("internvl", "smolvlm")  # one video a prompt, and no image
ALONE = ("glm4v", "glm4v_moe", "glm46v", "glm_ocr")
"""The stock model takes no image beside videos, and its `generate` loses the videos of prompts that it repeats."""
SIZES = dict.fromkeys(
    ("llava_onevision", "llava_next_video", *FRAMED), (32, 32)
)  # height and width of frames; the others take any
GRIDS = dict.fromkeys(BUILDERS, (3, 4)) | dict.fromkeys(SIZES, (4, 4))
FRAMES = 8
"""Frames of each video; Qwen's towers merge two."""


def prompts(
    name: str, processor: Any, texts: list[str], videos_each: int = 1, image: bool = False
) -> dict[str, Tensor]:
    """What the stock processor makes of prompts with random videos (and an image) before their text."""
    from transformers.video_utils import VideoMetadata

    rng = np.random.default_rng(3)
    size = SIZES.get(name, (24, 32))
    count = len(texts) * videos_each
    videos = [rng.integers(0, 256, (FRAMES, *size, 3), dtype=np.uint8) for _ in range(count)]
    metadata = [
        VideoMetadata(total_num_frames=FRAMES, fps=2.0, frames_indices=list(range(FRAMES))) for _ in range(count)
    ]
    media = [{"type": "image"}] * image + [{"type": "video"}] * videos_each
    chats = [[{"role": "user", "content": [*media, {"type": "text", "text": text}]}] for text in texts]
    made = processor(
        text=[processor.apply_chat_template(chat, add_generation_prompt=True) for chat in chats],
        videos=videos or None,
        images=[rng.integers(0, 256, (*size, 3), dtype=np.uint8) for _ in texts] if image else None,
        video_metadata=metadata or None,
        return_tensors="pt",
        padding=True,
    )
    return {key: value for key, value in made.items() if key not in ("video_metadata", "token_type_ids")}


OF_TEXT = ("input_ids", "attention_mask", "mm_token_type_ids")


def text_of(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """What goes with videos that were encoded before."""
    return {key: inputs[key] for key in OF_TEXT if key in inputs}


def typed(inputs: dict[str, Tensor], ids: Tensor) -> dict[str, Tensor]:
    """Which of the `ids` of a second turn are visual, where the family's processor says so: those of the first one."""
    if "mm_token_type_ids" not in inputs:
        return {}
    first = inputs["mm_token_type_ids"]
    return {"mm_token_type_ids": nn.functional.pad(first, (0, ids.shape[1] - first.shape[1]))}


def pixels_of(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """What is encoded beforehand, and said of it."""
    return {key: value for key, value in inputs.items() if key not in OF_TEXT}


def videos_of(processor: Any, text: str, *shapes: tuple[int, int, int]) -> dict[str, Tensor]:
    """What the stock processor makes of a prompt with random videos of so many frames, of such heights and widths."""
    from transformers.video_utils import VideoMetadata

    rng = np.random.default_rng(3)
    content = [{"type": "video"}] * len(shapes) + [{"type": "text", "text": text}]
    made = processor(
        text=[processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)],
        videos=[rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes],
        video_metadata=[VideoMetadata(frames, 2.0, frames_indices=list(range(frames))) for frames, _, _ in shapes],
        return_tensors="pt",
    )
    return {key: value for key, value in made.items() if key not in ("video_metadata", "token_type_ids")}
