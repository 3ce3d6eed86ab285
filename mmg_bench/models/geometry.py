"""Full-size architectures with random weights, built without a download: speed does not depend on the weights.

The sizes are the published ones. Of the vocabularies, only the ids of chat and media tokens are.
"""

from __future__ import annotations

import itertools
import os
import string
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from mmg_bench.models import llava_video, sizes
from mmg_bench.models.processors import (
    END,
    GLM_MEDIA,
    IMAGE,
    INTERNVL_MEDIA,
    PAD,
    QWEN_MEDIA,
    SMOLVLM_MEDIA,
    START,
    UNKNOWN,
    VIDEO,
    glm4v_processor,
    internvl_processor,
    llava_onevision_processor,
    qwen2_5_vl_processor,
    qwen2_vl_processor,
    qwen3_vl_processor,
    smolvlm_processor,
    tokenizer_of,
)
from mmg_bench.models.spec import ModelSpec, folder_of

SEED = 0
"""Seed of the random weights."""

_QWEN2_TOKENS = {PAD: 151643, START: 151644, END: 151645}
_LLAVA_TOKENS = _QWEN2_TOKENS | {IMAGE: 151646, VIDEO: 151647}


@dataclass(frozen=True)
class Geometry:
    """An architecture: what its model and its stock processor are built from."""

    hub: str | None
    """Hub id of the checkpoint; None if the one on the hub has another layout."""
    config: dict[str, Any]
    """Configuration of the model, as in its `config.json`."""
    tokens: dict[str, int]
    """Ids of the chat and media tokens."""
    processor: Callable[[Any, Any], Any]
    """(configuration, tokenizer) -> the stock processor."""


def _llava_onevision(hub: str | None, text: dict[str, Any], **more: Any) -> Geometry:
    media = {"image_token_index": _LLAVA_TOKENS[IMAGE], "video_token_index": _LLAVA_TOKENS[VIDEO]}
    config = {"model_type": "llava_onevision", "vision_config": sizes.SIGLIP, "text_config": text, **media, **more}
    return Geometry(hub, config, _LLAVA_TOKENS, llava_onevision_processor)


def _qwen_vl(
    hub: str,
    kind: str,
    text: dict[str, Any],
    tower: dict[str, Any],
    processor: Callable[[Any, Any], Any],
    chat: dict[str, int] = _QWEN2_TOKENS,
    media: tuple[int, ...] = (151655, 151656, 151652, 151653),
) -> Geometry:
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    config = {"model_type": kind, "vision_config": tower, "text_config": text, "tie_word_embeddings": False}
    config |= zip(names, media, strict=True)
    return Geometry(hub, config, chat | dict(zip(QWEN_MEDIA, media, strict=True)), processor)


def _glm4v(hub: str, kind: str, text: dict[str, Any]) -> Geometry:
    media = {"video_start": 151341, "video_end": 151342, "image_start": 151339, "image_end": 151340}
    media |= {"image": 151343, "video": 151344}
    config = {
        "model_type": kind,
        "vision_config": sizes.GLM4V_TOWER,
        "text_config": text,
        "tie_word_embeddings": False,
        **{f"{name}_token_id": number for name, number in media.items()},
    }
    tokens = {PAD: 151329, START: 151331, END: 151336} | {GLM_MEDIA[name]: number for name, number in media.items()}
    return Geometry(hub, config, tokens, glm4v_processor)


GEOMETRIES = {
    "llava_onevision_72b": _llava_onevision("llava-hf/llava-onevision-qwen2-72b-ov-hf", sizes.QWEN2_72B),
    "llava_onevision_7b": _llava_onevision("llava-hf/llava-onevision-qwen2-7b-ov-hf", sizes.QWEN2_7B),
    "llava_onevision_0_5b": _llava_onevision("llava-hf/llava-onevision-qwen2-0.5b-ov-hf", sizes.QWEN2_0_5B),
    "llava_video_7b": _llava_onevision(
        None,  # a converted checkpoint, whose configuration says that it averages patches
        sizes.QWEN2_7B | {"vocab_size": 152064},
        mmg_family=llava_video.FAMILY,
        mmg_pool="average",
    ),
    "qwen2_vl_7b": _qwen_vl(
        "Qwen/Qwen2-VL-7B-Instruct", "qwen2_vl", sizes.QWEN2_VL_TEXT, sizes.QWEN2_VL_TOWER, qwen2_vl_processor
    ),
    "qwen2_5_vl_7b": _qwen_vl(
        "Qwen/Qwen2.5-VL-7B-Instruct",
        "qwen2_5_vl",
        sizes.QWEN2_5_VL_TEXT,
        sizes.QWEN2_5_VL_TOWER,
        qwen2_5_vl_processor,
    ),
    "qwen3_vl_8b": _qwen_vl(
        "Qwen/Qwen3-VL-8B-Instruct",
        "qwen3_vl",
        sizes.QWEN3_VL_TEXT,
        sizes.QWEN3_VL_TOWER | {"out_hidden_size": 4096},
        qwen3_vl_processor,
    ),
    "qwen3_vl_moe_30b": _qwen_vl(
        "Qwen/Qwen3-VL-30B-A3B-Instruct",
        "qwen3_vl_moe",
        sizes.QWEN3_VL_MOE_TEXT,
        sizes.QWEN3_VL_TOWER | {"out_hidden_size": 2048},
        qwen3_vl_processor,
    ),
    "qwen3_5_9b": _qwen_vl(
        "Qwen/Qwen3.5-9B",
        "qwen3_5",
        sizes.QWEN3_5_TEXT,
        sizes.QWEN3_5_TOWER | {"out_hidden_size": 4096},
        qwen3_vl_processor,
        {PAD: 248044, START: 248045, END: 248046},
        (248056, 248057, 248053, 248054),
    ),
    "glm4v_9b": _glm4v("zai-org/GLM-4.1V-9B-Thinking", "glm4v", sizes.GLM4V_TEXT),
    "glm46v_9b": _glm4v("zai-org/GLM-4.6V-Flash", "glm46v", sizes.GLM46V_TEXT),
    "internvl3_8b": Geometry(
        "OpenGVLab/InternVL3-8B-hf",
        {
            "model_type": "internvl",
            "vision_config": sizes.INTERNVL3_TOWER,
            "text_config": sizes.INTERNVL3_TEXT,
            "image_token_id": 151667,
            "tie_word_embeddings": False,
        },
        _QWEN2_TOKENS | dict(zip(INTERNVL_MEDIA, (151665, 151666, 151667, 151674), strict=True)),
        internvl_processor,
    ),
    "smolvlm2_2_2b": Geometry(
        "HuggingFaceTB/SmolVLM2-2.2B-Instruct",
        {
            "model_type": "smolvlm",
            "vision_config": sizes.SMOLVLM2_TOWER,
            "text_config": sizes.SMOLLM2_1_7B,
            "image_token_id": 49190,
            "scale_factor": 3,
            "tie_word_embeddings": False,
        },
        {PAD: 2, START: 1, END: 49279} | dict(zip(SMOLVLM_MEDIA, (49190, 49189, 49152), strict=True)),
        smolvlm_processor,
    ),
}
"""Name of a model's configuration -> its architecture."""


def is_named(spec: ModelSpec) -> bool:
    """Whether a model is built from GEOMETRIES by its name: it has random weights, and its path is not a folder."""
    folder = folder_of(spec.path)
    return spec.weights == "random" and spec.name in GEOMETRIES and (folder is None or not folder.is_dir())


def unknown(name: str) -> str:
    """Message for an architecture that is not known by its `name`."""
    return f"the architecture of {name!r} is not known without a download; known: {', '.join(GEOMETRIES)}"


def named(name: str) -> tuple[Any, Any]:
    """Configuration and stock processor of one of GEOMETRIES. The processor's vocabulary is made up."""
    from transformers import AutoConfig

    geometry = GEOMETRIES[name]
    config = AutoConfig.for_model(**geometry.config)
    words = ("".join(letters) for letters in itertools.product(string.ascii_lowercase, repeat=3))
    free = (number for number in itertools.count() if number not in geometry.tokens.values())
    vocabulary = geometry.tokens | dict(zip((UNKNOWN, *string.digits, "frame", *words), free, strict=False))
    media = [token for token in geometry.tokens if token not in (PAD, START, END)]
    return config, geometry.processor(config, tokenizer_of(vocabulary, media, digits=True))


def random_model(config: Any, dtype: torch.dtype, attn_implementation: str, device: torch.device) -> Any:
    """A model of `config` with random weights, made on `device`; torch's global generator keeps its state.

    The weights are initialised as transformers does for training, which keeps activations finite in half precision.
    Raises MemoryError if a CPU's memory cannot hold them: the system would otherwise kill the process silently.
    """
    from transformers import AutoModelForImageTextToText

    if device.type == "cpu":
        with torch.device("meta"):
            bare = AutoModelForImageTextToText.from_config(config, dtype=dtype)
        needed = bare.get_memory_footprint()
        there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if needed > there:
            raise MemoryError(
                f"the weights take {needed / 1e9:.1f} GB, this machine has {there / 1e9:.1f} GB of memory"
            )
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), device:
        torch.manual_seed(SEED)
        return AutoModelForImageTextToText.from_config(config, dtype=dtype, attn_implementation=attn_implementation)
