"""`_ops.distances_of_gram` on CUDA devices: one kernel for seven plain operations, each a pass over all pairs."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 2**14  # elements that a block holds at a time


@triton.jit
def _distances_kernel(gram, squared, tokens, width, resolution, ROWS: tl.constexpr, TOKENS: tl.constexpr):
    """`_ops.distances_of_gram` divided by `width`, for some rows of one frame."""
    t = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    j = tl.arange(0, TOKENS)
    frame = gram + t * tokens * tokens
    ok = (i < tokens)[:, None] & (j < tokens)[None, :]
    norm_i = tl.load(frame + i * (tokens + 1), mask=i < tokens, other=0.0)
    norm_j = tl.load(frame + j * (tokens + 1), mask=j < tokens, other=0.0)
    there = tl.load(frame + i[:, None] * tokens + j[None, :], mask=ok, other=0.0)
    back = tl.load(frame + j[None, :] * tokens + i[:, None], mask=ok, other=0.0)
    norms = norm_i[:, None] + norm_j[None, :]
    between = norms - (there + back)
    between = tl.where(between < norms * resolution, 0.0, between) / width
    tl.store(squared + t * tokens * tokens + i[:, None] * tokens + j[None, :], between, mask=ok)


def gram_distances(gram: Tensor, width: int, resolution: float) -> Tensor:
    """`_ops.distances_of_gram(gram) / width` in one pass: `[T, N, N]` float32."""
    frames, tokens, _ = gram.shape
    squared = torch.empty_like(gram)
    rows, padded = tile(tokens)
    _distances_kernel[(frames, triton.cdiv(tokens, rows))](gram, squared, tokens, width, resolution, rows, padded)
    return squared


def tile(tokens: int) -> tuple[int, int]:
    """Rows and columns per block; the columns are those of a whole row, rounded up to a power of two."""
    padded = triton.next_power_of_2(tokens)
    return max(1, min(32, _TILE // padded)), padded
