"""The attention of one layer as golden runs describe it: given projections, heads and rotary embedding."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor

from mmg_bench.models.attention import LayerAttention, Rotary


def rotary_embedding(positions: Tensor, width: int, base: float = 10000.0) -> Rotary:
    """LLaMA's, by its formula: `[S, width]` cosines and sines."""
    rates = 1.0 / base ** (torch.arange(0, width, 2, device=positions.device).float() / width)
    angles = torch.cat([positions[:, None].float() * rates] * 2, dim=-1)
    return angles.cos(), angles.sin()


def layer_attention(hidden: Tensor, q: Tensor, k: Tensor, heads: int, positions: Tensor, base: float) -> LayerAttention:
    """Of `hidden [S, D]` with projections `q`, `k` `[out, in]`."""
    width = len(q) // heads
    module = SimpleNamespace(q_proj=lambda x: x @ q.T, k_proj=lambda x: x @ k.T, head_dim=width, scaling=width**-0.5)
    real = torch.ones(len(hidden), dtype=torch.bool, device=hidden.device)
    return LayerAttention(module, hidden, rotary_embedding(positions, width, base), real)
