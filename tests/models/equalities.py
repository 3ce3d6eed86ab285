"""Which method is held to the masked reference on which family; docs/models.md shows it as a table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mmg_bench.methods.base import Method
from mmg_bench.methods.registry import get_method, method_names
from mmg_bench.models.adapter import adapter_for

BEGIN, END = "<!-- table:begin -->", "<!-- table:end -->"
BOTH = ("random", "mmg_vid", "tome", "fastv", "pdrop", "prunevid", "dycoke")
"""Held to it with both kinds of position ids, one method of each kind; the others with their own."""
VARIANTS: dict[str, dict[str, Any]] = {
    "cdpruner(relevance=llm)": {"name": "cdpruner", "relevance": "llm"},
    "chain(before=tome, inside=sparsevlm)": {"name": "chain", "before": "tome", "inside": "sparsevlm"},
    "fastvid(frame_source=mean, salience=received)": {
        "name": "fastvid",
        "frame_source": "mean",
        "salience": "received",
    },
    "fastvid(variant=qwen, frame_source=mean, salience=mean_query)": {
        "name": "fastvid",
        "variant": "qwen",
        "frame_source": "mean",
        "salience": "mean_query",
    },
    # not its defaults, under which a token can be left twice: no mask shows that
    "flashvid": {
        "name": "flashvid",
        "segment_threshold": -1.0,
        "min_segment_num": 1,
        "token_selection_method": "attn_div",
    },
    # by default it only prunes there: random weights make no tokens that resemble one another
    "framefusion(similarity_lower_bound=0.2)": {"name": "framefusion", "similarity_lower_bound": 0.2},
    "holitom(outer=False)": {"name": "holitom", "outer": False},
    "prunevid(outer=False)": {"name": "prunevid", "outer": False},
    "random(layer=2)": {"name": "random", "layer": 2},
    # the only one to ask for the phases of rotary embeddings
    "sparsevlm(version=2)": {"name": "sparsevlm", "version": 2},
    "tome(scope=video)": {"name": "tome", "scope": "video"},
    "tango(interval=1, salience=mean_query)": {"name": "tango", "interval": 1, "salience": "mean_query"},
    "tango(interval=1, salience=received)": {"name": "tango", "interval": 1, "salience": "received"},
}
METHODS = sorted({*method_names(), *VARIANTS} - {"dense"})
TITLES = {
    "llava_onevision": "LLaVA-OneVision",
    "qwen2_vl": "Qwen2-VL",
    "qwen2_5_vl": "Qwen2.5-VL",
    "qwen3_vl": "Qwen3-VL",
    "qwen3_vl_moe": "Qwen3-VL-MoE",
    "qwen3_5": "Qwen3.5",
    "qwen3_5_moe": "Qwen3.5-MoE",
    "glm4v": "GLM-4.1V",
    "glm4v_moe": "GLM-4.5V",
    "glm46v": "GLM-4.6V",
    "glm_ocr": "GLM-OCR",
    "internvl": "InternVL3",
    "smolvlm": "SmolVLM2",
    "llava_next_video": "LLaVA-NeXT-Video",
    "video_llama_3": "VideoLLaMA3",
    "exaone4_5": "EXAONE-4.5",
}


def method_of(label: str, retention_ratio: float) -> Method:
    options = dict(VARIANTS.get(label, {"name": label}))
    return get_method(options.pop("name"), retention_ratio=retention_ratio, **options)


def lacking(model: Any, label: str) -> list[str]:
    """What the method asks of the vision tower and the family does not supply; empty where it is served."""
    return sorted(method_of(label, 0.5).needs - adapter_for(model).supplies - {"query", "times"})


def sequential(model: Any) -> bool:
    """Whether some layers of its language model see a sequence, and no mask hides a gap in it.

    Linear attention has no mask, and a sliding window counts what is hidden.
    """
    return bool(set(getattr(adapter_for(model).text_config, "layer_types", None) or ()) - {"full_attention"})


def prunes_inside(model: Any, label: str) -> bool:
    """Whether the method does anything inside the language model."""
    return method_of(label, 0.5).prunes_inside(len(adapter_for(model).layers))


def mark(model: Any, label: str) -> str:
    """What the table says of a method on a family."""
    lacks = set(lacking(model, label))
    if not lacks:
        return "=" if not sequential(model) else "–" if prunes_inside(model, label) else "kept"
    return "siglip" if lacks <= adapter_for(model).from_siglip else "–"


def table(builders: dict[str, Callable[[], tuple[Any, Any]]]) -> str:
    """Families in columns, methods in lines, as Markdown."""
    models = {name: builder()[0] for name, builder in builders.items()}
    lines = [
        "| | " + " | ".join(TITLES[name] for name in models) + " |",
        "|:--|" + ":-:|" * len(models),
        "| dense | " + " | ".join("stock" for _ in models) + " |",
    ]
    for label in METHODS:
        cells = [mark(model, label) for model in models.values()]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
