"""Rows of a decoder layer's attention, recomputed from queries and keys so that the layer itself can stay on SDPA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Rotary = tuple[Tensor, Tensor]
"""Cosines and sines `[S, width]` of the rotary embedding at the positions of a sequence."""


def rotate(x: Tensor, rotary: Rotary, interleaved: bool = False) -> Tensor:
    """Apply the rotary embedding to float32 `[..., S, head width]`; the result is float32 too.

    It rotates the first half of a head with the second or, if `interleaved`, each element with its neighbour.
    """
    cos, sin = rotary
    width = cos.shape[-1]  # models may rotate only part of the head
    turned, rest = x[..., :width], x[..., width:]
    if interleaved:
        across = torch.stack([-turned[..., 1::2], turned[..., ::2]], dim=-1).flatten(-2)
    else:
        first, second = turned.chunk(2, dim=-1)
        across = torch.cat([-second, first], dim=-1)
    turned = turned * cos + across * sin
    return torch.cat([turned, rest], dim=-1)


@dataclass(frozen=True)
class LayerAttention:
    """The attention module of one decoder layer, and its inputs."""

    module: Any
    """With `q_proj`, `k_proj`, `head_dim`, `scaling`, and `q_norm`, `k_norm` where the family has them."""
    hidden: Tensor
    """`[S, D]`: its input, for one sequence of a batch."""
    rotary: Rotary
    real: Tensor
    """`[S]` bool: False at padding."""
    interleaved: bool = False
    """See `rotate`."""

    def queries(self, rows: Tensor, rotary: bool = True) -> Tensor:
        """`[heads, R, head width]` of the tokens `rows`, float32."""
        q = _heads(self.module.q_proj(self.hidden[rows]), self.module, "q_norm")
        return rotate(q, (self.rotary[0][rows], self.rotary[1][rows]), self.interleaved) if rotary else q

    def keys(self, rotary: bool = True) -> Tensor:
        """`[key-value heads, S, head width]`, float32."""
        k = _heads(self.module.k_proj(self.hidden), self.module, "k_norm")
        return rotate(k, self.rotary, self.interleaved) if rotary else k

    def weights(self, rows: Tensor, *, rotary: bool = True, causal: bool = True) -> Tensor:
        """Softmax attention `[heads, R, S]` of the tokens `rows` (`[R]` int64), float32."""
        seen = self.real.expand(len(rows), -1)  # [R, S]
        if causal:
            seen = seen & (torch.arange(len(self.hidden), device=rows.device) <= rows[:, None])
        return softmax_weights(self.queries(rows, rotary), self.keys(rotary), seen, self.module.scaling)


def softmax_weights(queries: Tensor, keys: Tensor, seen: Tensor, scaling: float) -> Tensor:
    """Attention `[heads, R, S]` of `queries [heads, R, d]` to `keys [key-value heads, S, d]` where `seen [R, S]`."""
    grouped = queries.unflatten(0, (len(keys), -1))  # [key-value heads, queries of each, R, d]
    scores = grouped @ keys.float().unsqueeze(1).mT * scaling  # [key-value heads, group, R, S]
    return scores.masked_fill(~seen, -torch.inf).softmax(-1).flatten(0, 1)


def _heads(x: Tensor, module: nn.Module, norm: str) -> Tensor:
    """`[S, heads * width]` to `[heads, S, width]`, normalised if the family does so, float32."""
    x = x.unflatten(-1, (-1, module.head_dim))
    normalise = getattr(module, norm, None)
    return (x if normalise is None else normalise(x)).transpose(0, 1).float()
