"""The table of models in docs/models.md: what 32 frames come to in each."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from unweighted import random_llm

from mmg_bench import config as cfg
from mmg_bench.benchmarks.video import Timing
from mmg_bench.measure.flops import TextGeometry, flops_gqa
from mmg_bench.models.geometry import GEOMETRIES
from mmg_bench.models.loading import Pixels, VideoLLM

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
BEGIN, END = "<!-- sizes:begin -->", "<!-- sizes:end -->"
HEAD = """\
| `model=` | checkpoint | parameters | visual tokens | dense | R = 25 % | R = 10 % |
|:--|:--|--:|--:|--:|--:|--:|"""
RATIOS = (1.0, 0.25, 0.1)


def pixels_of(llm: VideoLLM) -> Pixels:
    """32 frames of 640 x 360 pixels, one a second."""
    return llm.preprocess(np.zeros((32, 360, 640, 3), dtype=np.uint8), Timing.every_second(32))


def tokens_of(llm: VideoLLM, pixels: Pixels) -> int:
    """T * N: the placeholders, but for those of LLaVA's newlines."""
    if hasattr(llm.adapter, "grid"):
        return 32 * math.prod(llm.adapter.grid)
    ids: list[int] = llm.processor.tokenizer(pixels.texts[0])["input_ids"]
    return ids.count(llm.adapter.video_token_id)


def row(llm: VideoLLM, pixels: Pixels) -> str:
    name, parameters = llm.spec.name, sum(p.numel() for p in llm.model.parameters())
    total = tokens_of(llm, pixels)
    geometry = TextGeometry.from_config(llm.model.config.get_text_config())
    work = [flops_gqa(geometry, round(ratio * total)) / 1e12 for ratio in RATIOS]
    texts = [f"{each:.1f}" if geometry.dense else "–" for each in work]
    checkpoint = cfg.load("model", name)["path"]
    return f"| `{name}` | {checkpoint} | {parameters / 1e9:.2f} B | {total:,} | {' | '.join(texts)} |"


def table() -> str:
    models = (random_llm(name, "meta") for name in GEOMETRIES)
    return "\n".join([HEAD, *(row(llm, pixels_of(llm)) for llm in models)])
