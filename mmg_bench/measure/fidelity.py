"""How much of a video its kept tokens stand for: a measure of pruning that needs no question.

Source: arXiv 2609.35394 (SimpleCluster), which relates both numbers to accuracy; xiaozhang79/SimpleCluster e9d0e4f,
`simplecluster/feature_metrics.py`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mmg_bench.methods._merge import unit

ALIKE = 0.9
"""Cosine from which a kept token stands for another one."""
_AT_ONCE = 2**24
"""Elements of cosines, distances and float32 copies of tokens made at once."""


class Fidelity(NamedTuple):
    """How well kept tokens represent all tokens of their video."""

    coverage: float
    """Share of the tokens that have a kept one at a cosine of `ALIKE` or more, in [0, 1]."""
    quantisation_error: float
    """Mean squared distance of the tokens from the nearest kept one, divided by their variance: 0 if all are kept, 1
    for their mean alone. 0 for a video whose tokens are all the same."""


def fidelity(tokens: Tensor, kept: Tensor) -> Fidelity:
    """Compare all tokens of a video `[M, D]` with those that are kept, merged or not `[K, D]`; float32 arithmetic.

    Computed where `kept` is: a model that is spread over GPUs may encode on another one.
    """
    tokens = tokens.to(kept.device)
    centre = tokens.mean(0, dtype=torch.float32)
    directions, moved = unit(kept), kept.float() - centre  # distances stay the same, and are rounded less
    norms = moved.square().sum(1)  # [K]
    covered, error, spread = [], [], []
    for part in tokens.split(max(1, _AT_ONCE // max(kept.shape))):
        covered.append((unit(part) @ directions.T).amax(1) >= ALIKE)
        x = part.float() - centre
        spread.append(x.square().sum(1))
        error.append((spread[-1] + (norms - 2 * x @ moved.T).amin(1)).clamp_min(0))
    share, rest, whole = torch.stack([torch.cat(each).float().mean() for each in (covered, error, spread)]).tolist()
    return Fidelity(share, rest / whole if whole else 0.0)
