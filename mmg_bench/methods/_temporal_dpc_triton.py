"""The sequential part of TG-DPC (`mmg_vid.temporal_dpc`) as one kernel, for CUDA devices.

Step by step it is a dozen small operations a frame, whose launches take longer than their work. Here every segment is
served by a few thread blocks that go through its frames together: each block takes some tokens for the distances to
what was kept and some channels for its new mean, and all of them rank the frame's tokens for themselves, so that only
two meetings a frame are needed. The launch is cooperative: all blocks run at the same time, or none does.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 2**13  # elements that a block of 256 threads holds at a time
_CHANNELS = 256  # of them side by side, at most, where a mean over tokens is taken


@triton.jit
def _meet(counter, target):
    """Wait until `target` blocks have come here, with what they wrote before."""
    tl.debug_barrier()
    tl.atomic_add(counter, 1, sem="acq_rel")
    while tl.atomic_add(counter, 0, sem="acq_rel") < target:
        pass
    tl.debug_barrier()


@triton.jit
def _order(norm, first, is_first, scatter_mean, width):
    """What tokens are ordered by: log density in a first frame, else mean squared distance to what is kept."""
    return tl.where(is_first, first, (norm + scatter_mean) / width)


@triton.jit
def _kernel(
    x,  # [T, N, D]
    squared,  # [T, N, N] float32
    largest,  # [T] float32
    first_density,  # [S, N] float32
    chains,  # [S, steps] int64: frames
    lengths,  # [S] int64
    counts,  # [T] int64
    center,  # [S, D] float32, all that follows is written
    norms,  # [S, N] float32
    partial,  # [S, P] float32
    scores,  # [S, P, N] float32
    meetings,  # [S] int32, zero
    kept,  # [T, N] int8
    density,  # [T, N] float32
    distance,  # [T, N] float32
    steps,
    tokens,
    width,
    PARTS: tl.constexpr,
    PARTS_PADDED: tl.constexpr,
    TOKENS: tl.constexpr,  # a power of two, at least `tokens`
    ROWS: tl.constexpr,  # the same for the tokens of a block
    WIDE: tl.constexpr,  # channels read at a time for distances
    COLUMNS: tl.constexpr,  # tokens compared with all others at a time
    SLICE: tl.constexpr,  # channels, and
    TALL: tl.constexpr,  # tokens, read at a time for the mean
):
    s = tl.program_id(0)
    p = tl.program_id(1)
    i = tl.arange(0, TOKENS)
    inside = i < tokens
    block_rows = tl.cdiv(tokens, PARTS)
    row = p * block_rows + tl.arange(0, ROWS)
    row_ok = (tl.arange(0, ROWS) < block_rows) & (row < tokens)
    first_channel = p * tl.cdiv(width, PARTS)
    last_channel = tl.minimum(first_channel + tl.cdiv(width, PARTS), width)
    norm_s = norms + s * tokens
    score_sp = scores + (s * PARTS + p) * tokens
    size = 0.0
    scatter = 0.0
    met = 0
    length = tl.load(lengths + s)
    for j in range(length):
        t = tl.load(chains + s * steps + j)
        m = tl.load(counts + t)
        frame = x + t * tokens * width

        # squared distances to the mean of what is kept, of this block's tokens
        total = tl.zeros([ROWS], tl.float32)
        for start in range(0, width, WIDE):
            d = start + tl.arange(0, WIDE)
            ok = row_ok[:, None] & (d < width)[None, :]
            values = tl.load(frame + row[:, None] * width + d[None, :], mask=ok, other=0.0).to(tl.float32)
            origin = tl.load(center + s * width + d, mask=d < width, other=0.0, cache_modifier=".cg")
            difference = tl.where(ok, values - origin[None, :], 0.0)
            total += tl.sum(difference * difference, axis=1)
        tl.store(norm_s + row, total, mask=row_ok)
        met += PARTS
        _meet(meetings + s, met)

        # rho * delta of all tokens
        is_first = j == 0
        scatter_mean = scatter / tl.maximum(size, 1.0)
        norm = tl.load(norm_s + i, mask=inside, other=0.0, cache_modifier=".cg")
        first = tl.load(first_density + s * tokens + i, mask=inside, other=0.0)
        order = _order(norm, first, is_first, scatter_mean, width)
        nearest = tl.full([TOKENS], float("inf"), tl.float32)
        for start in range(0, tokens, COLUMNS):
            k = start + tl.arange(0, COLUMNS)
            other_norm = tl.load(norm_s + k, mask=k < tokens, other=0.0, cache_modifier=".cg")
            other_first = tl.load(first_density + s * tokens + k, mask=k < tokens, other=0.0)
            other = _order(other_norm, other_first, is_first, scatter_mean, width)
            ok = (k < tokens)[:, None] & inside[None, :]
            # symmetric, so rows serve as columns and neighbours in memory lie side by side
            between = tl.load(squared + (t * tokens + k)[:, None] * tokens + i[None, :], mask=ok, other=float("inf"))
            denser = (other[:, None] > order[None, :]) & ok
            nearest = tl.minimum(nearest, tl.min(tl.where(denser, between, float("inf")), axis=0))
        delta = tl.sqrt(tl.where(nearest == float("inf"), tl.load(largest + t), nearest))
        wide = order.to(tl.float64)
        # 1 - exp(-u), whose own form loses the last digits of a small u
        rise = tl.where(wide < 1e-6, wide * (1 - 0.5 * wide), 1 - tl.exp(-wide))
        log_density = tl.where(is_first, wide, tl.log(rise)).to(tl.float32)
        score = log_density + tl.log(delta.to(tl.float64)).to(tl.float32)
        tl.store(score_sp + i, score, mask=inside)
        tl.debug_barrier()

        # the m highest, equal ones by the lower index
        rank = tl.zeros([TOKENS], tl.int32)
        for start in range(0, tokens, COLUMNS):
            k = start + tl.arange(0, COLUMNS)
            other = tl.load(score_sp + k, mask=k < tokens, other=0.0, cache_modifier=".cg")
            above = (other[:, None] > score[None, :]) | ((other[:, None] == score[None, :]) & (k[:, None] < i[None, :]))
            rank += tl.sum((above & (k < tokens)[:, None]).to(tl.int32), axis=0)
        chosen = (rank < m) & inside
        if p == 0:
            tl.store(kept + t * tokens + i, chosen.to(tl.int8), mask=inside)
            tl.store(density + t * tokens + i, tl.exp(log_density.to(tl.float64)).to(tl.float32), mask=inside)
            tl.store(distance + t * tokens + i, delta, mask=inside)

        # size, mean and scatter of what is kept so far
        if j < length - 1:
            added = tl.sum(tl.where(chosen, norm, 0.0))
            tl.debug_barrier()
            tl.store(score_sp + i, chosen.to(tl.float32), mask=inside)
            tl.debug_barrier()
            grown = size + m.to(tl.float32)
            moved = 0.0
            for begin in range(first_channel, last_channel, SLICE):
                d = begin + tl.arange(0, SLICE)
                origin = tl.load(center + s * width + d, mask=d < last_channel, other=0.0, cache_modifier=".cg")
                shift = tl.zeros([SLICE], tl.float32)
                for start in range(0, tokens, TALL):
                    k = start + tl.arange(0, TALL)
                    member = tl.load(score_sp + k, mask=k < tokens, other=0.0, cache_modifier=".cg") > 0
                    ok = member[:, None] & (d < last_channel)[None, :]
                    values = tl.load(frame + k[:, None] * width + d[None, :], mask=ok, other=0.0).to(tl.float32)
                    shift += tl.sum(tl.where(ok, values - origin[None, :], 0.0), axis=0)
                shift = shift / grown
                tl.store(center + s * width + d, origin + shift, mask=d < last_channel)
                moved += tl.sum(shift * shift)
            tl.store(partial + s * PARTS + p, moved)
            met += PARTS
            _meet(meetings + s, met)
            part = tl.arange(0, PARTS_PADDED)
            moves = tl.load(partial + s * PARTS + part, mask=part < PARTS, other=0.0, cache_modifier=".cg")
            # rounding must not turn distances negative
            scatter = tl.maximum(scatter + added - grown * tl.sum(moves), 0.0)
            size = grown


def follow_chains(
    features: Tensor,
    squared: Tensor,
    first_density: Tensor,
    chains: Tensor,
    lengths: Tensor,
    counts: Tensor,
    center: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Go through the frames of every segment: which tokens are kept (bool), rho and delta (float32), each `[T, N]`.

    `features` `[T, N, D]`; `squared` `[T, N, N]` float32, squared distances over the number of channels;
    `first_density` `[S, N]` float32, log rho in the first frame of every segment; `chains` `[S, steps]`, `lengths`
    `[S]` and `counts` `[T]` int64, a segment's frames in order, how many they are, and how many tokens each frame
    keeps; `center` `[S, D]` float32, any origin for the distances, which is changed.
    """
    frames, tokens, width = features.shape
    segments, steps = chains.shape
    features = features.contiguous()
    # blocks of all segments together: no more than run at the same time
    processors = torch.cuda.get_device_properties(features.device).multi_processor_count if features.is_cuda else 1
    parts = max(1, min(32, tokens, processors // segments))
    kept = torch.zeros(frames, tokens, dtype=torch.int8, device=features.device)
    density, distance = (squared.new_zeros(frames, tokens) for _ in range(2))
    _kernel[(segments, parts)](
        features,
        squared,
        squared.amax((-2, -1)),
        first_density,
        chains,
        lengths,
        counts,
        center,
        squared.new_empty(segments, tokens),
        squared.new_empty(segments, parts),
        squared.new_empty(segments, parts, tokens),
        torch.zeros(segments, dtype=torch.int32, device=features.device),
        kept,
        density,
        distance,
        steps,
        tokens,
        width,
        **tiles(tokens, width, parts),
        **(launch_options(parts) if features.is_cuda else {}),
    )
    return kept.bool(), density, distance


def tiles(tokens: int, width: int, parts: int) -> dict[str, int]:
    """The sizes that the kernel is compiled for, where `parts` blocks serve a segment."""
    power = triton.next_power_of_2
    rows, channels = power(triton.cdiv(tokens, parts)), min(_CHANNELS, power(triton.cdiv(width, parts)))
    return {
        "PARTS": parts,
        "PARTS_PADDED": power(parts),
        "TOKENS": power(tokens),
        "ROWS": rows,
        "WIDE": min(max(32, _TILE // rows), power(width)),
        "COLUMNS": max(1, _TILE // power(tokens)),
        "SLICE": channels,
        "TALL": _TILE // channels,
    }


def launch_options(parts: int) -> dict[str, Any]:
    """How the kernel is compiled and launched: cooperatively where several blocks meet."""
    return {"num_warps": 8, "launch_cooperative_grid": parts > 1}
