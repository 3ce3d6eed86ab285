"""Models whose weights are random, or take no memory at all."""

from __future__ import annotations

import torch

from mmg_bench.models.loading import VideoLLM
from mmg_bench.models.spec import ModelSpec


class MetaSpec(ModelSpec):
    """Of a model without memory for its weights, which options cannot ask for: it answers nothing."""

    @property
    def torch_device(self) -> torch.device:
        return torch.device("meta")


def random_llm(name: str, device: str, **options: object) -> VideoLLM:
    kind, device = (MetaSpec, "cpu") if device == "meta" else (ModelSpec, device)
    return VideoLLM(kind(name, "nobody/needs-no-download", device=device, weights="random", **options))
