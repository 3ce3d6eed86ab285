"""Inputs of small models, as their stock processor makes them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


def random_video(frames: int, seed: int = 0, size: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, size=(frames, size, size, 3), dtype=np.uint8)


def prompt_inputs(processor: Any, texts: list[str], videos: list[list[np.ndarray]]) -> dict[str, torch.Tensor]:
    """What the stock processor makes of one or several prompts, each with one or several videos before its text."""
    prompts = [
        processor.apply_chat_template(
            [{"role": "user", "content": [*({"type": "video"} for _ in clips), {"type": "text", "text": text}]}],
            add_generation_prompt=True,
        )
        for text, clips in zip(texts, videos, strict=True)
    ]
    return processor(text=prompts, videos=[v for clips in videos for v in clips], return_tensors="pt", padding=True)
