"""The sequential part of TG-DPC (`mmg_vid.temporal_dpc`) as one kernel, for CUDA devices.

Step by step it is a dozen small operations a frame, whose launches take longer than their work. Here every segment is
served by a few thread blocks that go through its frames together. Each block has some of the channels: their part of
the distances to what was kept, and of its mean, is its own. All of them add up the parts and rank the frame's tokens
for themselves, so that they need to meet only once a frame. The launch is cooperative: all blocks run at once, or none.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 2**14  # elements that a block of 512 threads holds at a time
_MOST_PARTS = 32  # blocks of a segment


@triton.jit
def _meet(counter, target):
    """Wait until `target` blocks have come here, with what they wrote before."""
    tl.debug_barrier()
    tl.atomic_add(counter, 1, sem="acq_rel")
    while tl.atomic_add(counter, 0, sem="acq_rel") < target:
        pass
    tl.debug_barrier()


@triton.jit
def _kernel(
    x,  # [T, N, D]
    squared,  # [T, N, N] float32
    largest,  # [T] float32
    first_density,  # [S, N] float32
    chains,  # [S, steps] int64: frames
    lengths,  # [S] int64
    counts,  # [T] int64
    center,  # [S, D] float32
    partial,  # [S, 2, P, N] float32, written, as is all that follows
    moves,  # [S, 2, P] float32
    orders,  # [S, P, N] float32
    scores,  # [S, P, N] float32
    members,  # [S, P, N] int8
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
    SLICE: tl.constexpr,  # the same for the channels of a block
    TALL: tl.constexpr,  # tokens read at a time
    COLUMNS: tl.constexpr,  # tokens compared with all others at a time
    ADDED: tl.constexpr,  # parts added up at a time
):
    s = tl.program_id(0)
    p = tl.program_id(1)
    i = tl.arange(0, TOKENS)
    inside = i < tokens
    share = tl.cdiv(width, PARTS)
    d = p * share + tl.arange(0, SLICE)
    own = (tl.arange(0, SLICE) < share) & (d < width)
    order_sp = orders + (s * PARTS + p) * tokens
    score_sp = scores + (s * PARTS + p) * tokens
    member_sp = members + (s * PARTS + p) * tokens
    # of what is kept so far: its mean in the block's own channels, its size, and its scatter
    c = tl.load(center + s * width + d, mask=own, other=0.0)
    size = 0.0
    scatter = 0.0
    added = 0.0
    moved = 0.0
    met = 0
    length = tl.load(lengths + s)
    for j in range(length):
        t = tl.load(chains + s * steps + j)
        m = tl.load(counts + t)
        frame = x + t * tokens * width
        # taken in turns, for a block may still read those of the last frame
        partial_s = partial + (s * 2 + j % 2) * PARTS * tokens
        moves_s = moves + (s * 2 + j % 2) * PARTS

        # squared distances to the mean of what is kept
        for start in range(0, tokens, TALL):
            k = start + tl.arange(0, TALL)
            ok = (k < tokens)[:, None] & own[None, :]
            values = tl.load(frame + k[:, None] * width + d[None, :], mask=ok, other=0.0).to(tl.float32)
            difference = tl.where(ok, values - c[None, :], 0.0)
            tl.store(partial_s + p * tokens + k, tl.sum(difference * difference, axis=1), mask=k < tokens)
        tl.store(moves_s + p, moved)
        met += PARTS
        _meet(meetings + s, met)
        norm = tl.zeros([TOKENS], tl.float32)
        for start in range(0, PARTS, ADDED):
            q = start + tl.arange(0, ADDED)
            ok = (q < PARTS)[:, None] & inside[None, :]
            parts = tl.load(partial_s + q[:, None] * tokens + i[None, :], mask=ok, other=0.0, cache_modifier=".cg")
            norm += tl.sum(parts, axis=0)
        if j > 0:
            q = tl.arange(0, PARTS_PADDED)
            shifts = tl.load(moves_s + q, mask=q < PARTS, other=0.0, cache_modifier=".cg")
            # rounding must not turn distances negative
            scatter = tl.maximum(scatter + added - size * tl.sum(shifts), 0.0)

        # what tokens are ordered by: log density in the first frame, then the mean squared distance to what is kept
        first = tl.load(first_density + s * tokens + i, mask=inside, other=0.0)
        order = tl.where(j == 0, first, (norm + scatter / tl.maximum(size, 1.0)) / width)
        tl.store(order_sp + i, order, mask=inside)
        tl.debug_barrier()

        # rho * delta
        nearest = tl.full([TOKENS], float("inf"), tl.float32)
        for start in range(0, tokens, COLUMNS):
            k = start + tl.arange(0, COLUMNS)
            other = tl.load(order_sp + k, mask=k < tokens, other=0.0, cache_modifier=".cg")
            ok = (k < tokens)[:, None] & inside[None, :]
            # symmetric, so rows serve as columns and neighbours in memory lie side by side
            between = tl.load(squared + (t * tokens + k)[:, None] * tokens + i[None, :], mask=ok, other=float("inf"))
            denser = (other[:, None] > order[None, :]) & ok
            nearest = tl.minimum(nearest, tl.min(tl.where(denser, between, float("inf")), axis=0))
        delta = tl.sqrt(tl.where(nearest == float("inf"), tl.load(largest + t), nearest))
        wide = order.to(tl.float64)
        # 1 - exp(-u), whose own form loses the last digits of a small u
        rise = tl.where(wide < 1e-6, wide * (1 - 0.5 * wide), 1 - tl.exp(-wide))
        log_density = tl.where(j == 0, wide, tl.log(rise)).to(tl.float32)
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

        if j < length - 1:
            added = tl.sum(tl.where(chosen, norm, 0.0))
            size += m.to(tl.float32)
            tl.store(member_sp + i, chosen.to(tl.int8), mask=inside)
            tl.debug_barrier()
            shift = tl.zeros([SLICE], tl.float32)
            for start in range(0, tokens, TALL):
                k = start + tl.arange(0, TALL)
                member = tl.load(member_sp + k, mask=k < tokens, other=0, cache_modifier=".cg") > 0
                ok = member[:, None] & own[None, :]
                values = tl.load(frame + k[:, None] * width + d[None, :], mask=ok, other=0.0).to(tl.float32)
                shift += tl.sum(tl.where(ok, values - c[None, :], 0.0), axis=0)
            shift = shift / size
            moved = tl.sum(shift * shift)
            c += shift


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
    keeps; `center` `[S, D]` float32, any origin for the distances.
    """
    frames, tokens, width = features.shape
    segments, steps = chains.shape
    # blocks of all segments together: no more than run at the same time
    processors = torch.cuda.get_device_properties(features.device).multi_processor_count if features.is_cuda else 1
    parts = max(1, min(_MOST_PARTS, width, processors // segments))
    flags = torch.zeros(frames * tokens + 4 * segments, dtype=torch.int8, device=features.device)
    meetings, kept = flags[: 4 * segments].view(torch.int32), flags[4 * segments :].view(frames, tokens)
    density, distance = squared.new_zeros(2, frames, tokens)
    _kernel[(segments, parts)](
        features.contiguous(),
        squared,
        squared.amax((-2, -1)),
        first_density,
        chains,
        lengths,
        counts,
        center,
        squared.new_empty(segments, 2, parts, tokens),
        squared.new_empty(segments, 2, parts),
        squared.new_empty(segments, parts, tokens),
        squared.new_empty(segments, parts, tokens),
        flags.new_empty(segments, parts, tokens),
        meetings,
        kept,
        density,
        distance,
        steps,
        tokens,
        width,
        **tiles(tokens, width, parts),
        **(launch_options(parts) if features.is_cuda else {}),
    )
    return kept.view(torch.bool), density, distance


def tiles(tokens: int, width: int, parts: int) -> dict[str, int]:
    """The sizes that the kernel is compiled for, where `parts` blocks serve a segment."""
    power = triton.next_power_of_2
    padded, channels = power(tokens), power(triton.cdiv(width, parts))
    return {
        "PARTS": parts,
        "PARTS_PADDED": power(parts),
        "TOKENS": padded,
        "SLICE": channels,
        "TALL": max(1, min(padded, _TILE // channels)),
        "COLUMNS": max(1, min(padded, _TILE // padded)),
        "ADDED": max(1, min(power(parts), _TILE // padded)),
    }


def launch_options(parts: int) -> dict[str, Any]:
    """How the kernel is compiled and launched: cooperatively where several blocks meet."""
    return {"num_warps": 16, "launch_cooperative_grid": parts > 1, "enable_fp_fusion": True}
