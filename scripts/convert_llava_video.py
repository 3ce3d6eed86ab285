"""Convert a LLaVA-Video checkpoint from its authors' layout to that of transformers' LLaVA-OneVision.

python scripts/convert_llava_video.py LLaVA-Video-7B-Qwen2 llava-video-7b

The first argument is the folder as downloaded (config.json, tokenizer, *.safetensors); the second is created. Then run
`mmg-bench run model=llava_video_7b model.path=llava-video-7b`. In Python, call
`mmg_bench.models.llava_video.attach(model, processor)` on what `from_pretrained` returns: LLaVA-Video has a newline
after every row of every frame, which stock code does not support (see that module).
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmg_bench.models.llava_video import FAMILY, POOLS
from mmg_bench.models.processors import CHAT_TEMPLATE, IMAGE, VIDEO, llava_onevision_processor

TOWER = "model.vision_tower.vision_tower.vision_model."
# their prompts start with a system turn
SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
)
RENAMED = {
    TOWER: "model.vision_tower.",
    "model.mm_projector.0.": "model.multi_modal_projector.linear_1.",
    "model.mm_projector.2.": "model.multi_modal_projector.linear_2.",
    "model.image_newline": "model.image_newline",
    "lm_head.": "lm_head.",
    "model.": "model.language_model.",
}
"""Prefix of a name in their layout -> prefix in transformers'; the first match applies."""


class ConversionError(ValueError):
    """A checkpoint that the conversion does not support."""


def renamed(name: str) -> str | None:
    """A weight's name in transformers' layout; None if the weight is not used."""
    if name.startswith(TOWER) and name.removeprefix(TOWER).startswith("head."):
        return None
    for old, new in RENAMED.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    raise ConversionError(f"{name}: not a known weight of a LLaVA-Video checkpoint")


def read_weights(source: Path) -> dict[str, Tensor]:
    """All weights of a folder, under their own names."""
    from safetensors.torch import load_file

    files = sorted(source.glob("*.safetensors"))
    if not files:
        raise ConversionError(f"{source}: no *.safetensors found; download the whole repository")
    return {name: value for file in files for name, value in load_file(file).items()}


def pool_of(theirs: dict[str, Any], pool: str | None) -> str:
    """How the checkpoint pools. Raises ConversionError for settings that the adapter does not support."""
    newline, stride = theirs.get("mm_newline_position"), theirs.get("mm_spatial_pool_stride", 2)
    if newline != "grid":
        raise ConversionError(f"mm_newline_position={newline!r}: only 'grid', LLaVA-Video's own, can be converted")
    if stride != 2:
        raise ConversionError(f"mm_spatial_pool_stride={stride}: only 2 can be converted")
    found = pool or theirs.get("mm_spatial_pool_mode")
    if found not in POOLS:
        raise ConversionError(f"mm_spatial_pool_mode={found!r}: choose one with --pool {' or '.join(POOLS)}")
    return str(found)


def config_of(theirs: dict[str, Any], weights: dict[str, Tensor], pool: str, heads: int, ids: dict[str, int]) -> Any:
    """The configuration. The tower's sizes, which theirs does not give, are read from its weights."""
    from transformers import LlavaOnevisionConfig, Qwen2Config, SiglipVisionConfig

    patches = weights[f"{TOWER}embeddings.patch_embedding.weight"]  # [C, 3, patch, patch]
    positions = weights[f"{TOWER}embeddings.position_embedding.weight"]  # [P, C]
    layers = {int(n.removeprefix(f"{TOWER}encoder.layers.").split(".")[0]) for n in weights if f"{TOWER}encoder." in n}
    text = {
        k: v for k, v in theirs.items() if k in Qwen2Config().to_dict() and k not in ("model_type", "architectures")
    }
    if "rope_theta" in theirs:
        text["rope_parameters"] = {"rope_type": "default", "rope_theta": theirs["rope_theta"]}
    return LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(
            image_size=math.isqrt(len(positions)) * patches.shape[-1],
            patch_size=patches.shape[-1],
            hidden_size=len(patches),
            intermediate_size=len(weights[f"{TOWER}encoder.layers.0.mlp.fc1.weight"]),
            num_hidden_layers=len(layers),
            num_attention_heads=heads,
            vision_use_head=False,
        ),
        text_config=Qwen2Config(**text),
        image_token_index=ids[IMAGE],
        video_token_index=ids[VIDEO],
        vision_feature_layer=-1,  # their tower ends with the layer whose output is taken
        vision_feature_select_strategy="full",
        tie_word_embeddings=bool(theirs.get("tie_word_embeddings", False)),
        mmg_family=FAMILY,
        mmg_pool=pool,
    )


def convert(source: Path, target: Path, pool: str | None = None, heads: int = 16) -> None:
    """Write the checkpoint in `source` to `target`. Raises ConversionError, naming what does not fit."""
    from transformers import AutoTokenizer, LlavaOnevisionForConditionalGeneration

    theirs = json.loads((source / "config.json").read_text())
    pool, weights = pool_of(theirs, pool), read_weights(source)
    tokenizer = AutoTokenizer.from_pretrained(str(source), padding_side="left")
    tokenizer.add_tokens([IMAGE, VIDEO], special_tokens=True)
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in (IMAGE, VIDEO)}
    config = config_of(theirs, weights, pool, heads, ids)
    if max(ids.values()) >= config.text_config.vocab_size:
        raise ConversionError(
            f"{ids}: the {config.text_config.vocab_size} embeddings have no rows left for these tokens"
        )
    with torch.device("meta"):
        model = LlavaOnevisionForConditionalGeneration(config)
    ours = {new: value for name, value in weights.items() if (new := renamed(name)) is not None}
    if config.tie_word_embeddings:
        ours.setdefault("lm_head.weight", ours["model.language_model.embed_tokens.weight"])
    norm = "model.vision_tower.post_layernorm."
    for name in ("weight", "bias"):  # without effect, and not in all checkpoints
        ours.setdefault(norm + name, torch.full((config.vision_config.hidden_size,), float(name == "weight")))
    missing, unknown = model.load_state_dict(ours, strict=False, assign=True)
    if missing or unknown:
        raise ConversionError(f"weights missing: {missing[:3]}; unknown: {unknown[:3]}")
    dtype = ours["model.image_newline"].dtype
    processor = llava_onevision_processor(config, tokenizer)
    processor.chat_template = SYSTEM + CHAT_TEMPLATE
    model.to(dtype).save_pretrained(target)
    processor.save_pretrained(target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder in the authors' layout")
    parser.add_argument("target", type=Path, help="folder to make")
    parser.add_argument("--pool", choices=POOLS, help="how 2 x 2 patches are pooled, if config.json does not say")
    parser.add_argument("--vision-heads", type=int, default=16, help="attention heads of the tower (SigLIP SO400M: 16)")
    options = parser.parse_args()
    convert(options.source, options.target, options.pool, options.vision_heads)


if __name__ == "__main__":
    main()
