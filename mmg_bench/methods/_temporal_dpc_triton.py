"""The sequential part of TG-DPC (`mmg_vid.temporal_dpc`) as one kernel for CUDA devices.

Without the kernel, a frame takes dozens of small operations, whose launches last longer than their work. Here a few
thread blocks serve each segment and go through its frames together. Each block owns some of the channels: it computes
their part of the distances to the kept tokens, and of the mean. It also owns some of the tokens, which it scores and
ranks. So the blocks of a segment synchronise three times per frame: when distances can be added up, when all tokens
have scores, and when the kept tokens are known. The launch is cooperative: all blocks run at once, or none.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 2**14  # elements that a block of 512 threads holds at a time
_MOST_PARTS = 64  # blocks of a segment


@triton.jit
def _meet(counter, target):
    """Wait until `target` blocks have arrived and their earlier writes are visible."""
    tl.debug_barrier()
    tl.atomic_add(counter, 1, sem="acq_rel")
    while tl.atomic_add(counter, 0, sem="acquire") < target:
        pass
    tl.debug_barrier()


@triton.jit
def _keys(score, index):
    """Integers in the order of float32 scores; of equal scores, the lower index has the higher key."""
    bits = (score + 0.0).to(tl.int32, bitcast=True)  # + 0.0: no negative zero
    ordered = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return (ordered.to(tl.int64) << 32) + (0x7FFFFFFF - index)


@triton.jit
def _chains_kernel(
    x,  # [T, N, D]
    squared,  # [T, N, N] float32
    means,  # [T, D] float32
    schedule,  # [2 T + (2 + steps) S] int64
    scratch,  # [S, stride] float32
    cleared,  # [3 T N + S] float32, zero
    positions,  # [K] int64
    frames,
    segments,
    steps,
    stride,
    tokens,
    width,
    PARTS: tl.constexpr,
    TOKENS: tl.constexpr,  # a power of two, at least `tokens`;
    ROWS: tl.constexpr,  # at least the tokens of a block;
    SLICE: tl.constexpr,  # at least its channels
    TALL: tl.constexpr,  # tokens read at a time
    WIDE: tl.constexpr,  # tokens compared with a block's at a time
    ADDED: tl.constexpr,  # parts added up at a time
):
    # per frame: tokens to keep, and the total before it [T]; per segment: neighbours in the density of its first
    # frame, number of frames [S], and their indices [S, steps]
    counts = schedule
    offsets = counts + frames
    neighbours = offsets + frames
    lengths = neighbours + segments
    chains = lengths + segments
    # the outputs, [T, N] each, and the number of block arrivals at the barriers of each segment [S]
    density = cleared
    distance = density + frames * tokens
    kept = (distance + frames * tokens).to(tl.pointer_type(tl.int8))
    meetings = (distance + 2 * frames * tokens).to(tl.pointer_type(tl.int32))

    s = tl.program_id(0)
    p = tl.program_id(1)
    i = tl.arange(0, TOKENS)
    inside = i < tokens
    share = tl.cdiv(width, PARTS)
    d = p * share + tl.arange(0, SLICE)
    own = (tl.arange(0, SLICE) < share) & (d < width)
    block = tl.cdiv(tokens, PARTS)
    r = p * block + tl.arange(0, ROWS)
    mine = (tl.arange(0, ROWS) < block) & (r < tokens)

    # what the blocks of a segment share: squared distances in a block's channels [P, N], how far the mean moved in
    # them (squared) [P]; the largest distance of a block's tokens [P]; log density [N], scores [N]
    partial = scratch + s * stride
    moves = partial + PARTS * tokens
    maxima = moves + PARTS
    first = maxima + PARTS
    scores = first + tokens
    orders = scores + tokens + p * tokens  # values that order the tokens [N], one copy per block

    # of the tokens kept so far: mean in the block's channels, size and scatter
    c = tl.load(means + tl.load(chains + s * steps) * width + d, mask=own, other=0.0)
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
        rows = squared + (t * tokens + r)[:, None] * tokens

        # squared distances to the mean of the kept tokens
        for start in range(0, tokens, TALL):
            k = start + tl.arange(0, TALL)
            ok = (k < tokens)[:, None] & own[None, :]
            values = tl.load(frame + k[:, None] * width + d[None, :], mask=ok, other=0.0).to(tl.float32)
            difference = tl.where(ok, values - c[None, :], 0.0)
            tl.store(partial + p * tokens + k, tl.sum(difference * difference, axis=1), mask=k < tokens)
        tl.store(moves + p, moved)
        most = tl.zeros([ROWS], tl.float32)
        for start in range(0, tokens, WIDE):
            k = start + tl.arange(0, WIDE)
            ok = mine[:, None] & (k < tokens)[None, :]
            most = tl.maximum(most, tl.max(tl.load(rows + k[None, :], mask=ok, other=0.0), axis=1))
        tl.store(maxima + p, tl.max(most, axis=0))
        if j == 0:  # log density of the block's tokens: the mean of the smallest distances
            count = tl.load(neighbours + s)
            left = tl.full([ROWS], 0, tl.int64) + count
            total = tl.zeros([ROWS], tl.float32)
            floor = tl.full([ROWS], -1.0, tl.float32)
            for _ in range(count):  # the next larger value, as often as it occurs
                nearest = tl.full([ROWS], float("inf"), tl.float32)
                times = tl.zeros([ROWS], tl.int64)
                for start in range(0, tokens, WIDE):
                    k = start + tl.arange(0, WIDE)
                    ok = mine[:, None] & (k < tokens)[None, :]
                    between = tl.load(rows + k[None, :], mask=ok, other=float("inf"))
                    between = tl.where(between > floor[:, None], between, float("inf"))
                    least = tl.min(between, axis=1)
                    here = tl.sum((between == least[:, None]).to(tl.int64), axis=1)
                    times = tl.where(least < nearest, here, tl.where(least == nearest, times + here, times))
                    nearest = tl.minimum(nearest, least)
                taken = tl.minimum(times, left)
                total += tl.where(taken > 0, nearest * taken.to(tl.float32), 0.0)
                left -= taken
                floor = nearest
            tl.store(first + r, -(total / count.to(tl.float32)), mask=mine)
        met += PARTS
        _meet(meetings + s, met)

        # values that order the tokens: log density in the first frame, then mean squared distance to those kept
        norm = tl.zeros([TOKENS], tl.float32)
        for start in range(0, PARTS, ADDED):
            q = start + tl.arange(0, ADDED)
            part = partial + q[:, None] * tokens + i[None, :]
            part = tl.load(part, mask=inside[None, :], other=0.0, cache_modifier=".cg")
            norm += tl.sum(part, axis=0)
        q = tl.arange(0, PARTS)
        largest = tl.max(tl.load(maxima + q, cache_modifier=".cg"), axis=0)
        if j > 0:
            shifts = tl.load(moves + q, cache_modifier=".cg")
            # rounding must not turn distances negative
            scatter = tl.maximum(scatter + added - size * tl.sum(shifts), 0.0)
            order = (norm + scatter / size) / width
        else:
            order = tl.load(first + i, mask=inside, other=0.0, cache_modifier=".cg")
        tl.store(orders + i, order, mask=inside)
        tl.debug_barrier()

        # rho * delta of the block's tokens
        order_r = tl.load(orders + r, mask=mine, other=0.0, cache_modifier=".cg")
        nearest = tl.full([ROWS], float("inf"), tl.float32)
        for start in range(0, tokens, WIDE):
            k = start + tl.arange(0, WIDE)
            ok = mine[:, None] & (k < tokens)[None, :]
            between = tl.load(rows + k[None, :], mask=ok, other=float("inf"))
            other = tl.load(orders + k, mask=k < tokens, other=0.0, cache_modifier=".cg")
            denser = (other[None, :] > order_r[:, None]) & ok
            nearest = tl.minimum(nearest, tl.min(tl.where(denser, between, float("inf")), axis=1))
        delta = tl.sqrt(tl.where(nearest == float("inf"), largest, nearest))
        u = order_r.to(tl.float64)
        # 1 - exp(-u), by its series for small u, where the direct form loses digits
        rise = tl.where(u < 1e-6, u * (1 - 0.5 * u), 1 - tl.exp(-u))
        log_density = tl.where(j == 0, u, tl.log(rise)).to(tl.float32)
        score = log_density + tl.log(delta.to(tl.float64)).to(tl.float32)
        tl.store(scores + r, score, mask=mine)
        tl.store(density + t * tokens + r, tl.exp(log_density.to(tl.float64)).to(tl.float32), mask=mine)
        tl.store(distance + t * tokens + r, delta, mask=mine)
        met += PARTS
        _meet(meetings + s, met)

        # keep the m highest
        key = _keys(score, r)
        rank = tl.zeros([ROWS], tl.int32)
        for start in range(0, tokens, WIDE):
            k = start + tl.arange(0, WIDE)
            other = tl.load(scores + k, mask=k < tokens, other=float("-inf"), cache_modifier=".cg")
            above = (_keys(other, k)[None, :] > key[:, None]) & (k < tokens)[None, :]
            rank += tl.sum(above.to(tl.int32), axis=1)
        tl.store(kept + t * tokens + r, (rank < m).to(tl.int8), mask=mine)
        met += PARTS
        _meet(meetings + s, met)

        if j < length - 1:
            chosen = tl.load(kept + t * tokens + i, mask=inside, other=0, cache_modifier=".cg") > 0
            added = tl.sum(tl.where(chosen, norm, 0.0))
            size += m.to(tl.float32)
            shift = tl.zeros([SLICE], tl.float32)
            for start in range(0, tokens, TALL):
                k = start + tl.arange(0, TALL)
                member = tl.load(kept + t * tokens + k, mask=k < tokens, other=0, cache_modifier=".cg") > 0
                ok = member[:, None] & own[None, :]
                values = tl.load(frame + k[:, None] * width + d[None, :], mask=ok, other=0.0).to(tl.float32)
                shift += tl.sum(tl.where(ok, values - c[None, :], 0.0), axis=0)
            shift = shift / size
            moved = tl.sum(shift * shift)
            c += shift

    for j in range(p, length, PARTS):  # each block lists the kept tokens of some frames
        t = tl.load(chains + s * steps + j)
        chosen = tl.load(kept + t * tokens + i, mask=inside, other=0, cache_modifier=".cg") > 0
        slot = tl.load(offsets + t) + tl.cumsum(chosen.to(tl.int32), axis=0) - 1
        tl.store(positions + slot, t * tokens + i, mask=chosen)


def follow_chains(
    features: Tensor, squared: Tensor, means: Tensor, schedule: Tensor, segments: int, steps: int, budget: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run TG-DPC over all segments. Returns the mask of kept tokens (bool), rho and delta (float32), each `[T, N]`, and
    the flat indices `[K]` of the kept tokens.

    `features` `[T, N, D]`; `squared` `[T, N, N]` float32, squared distances over the number of channels; `means`
    `[T, D]` float32. `schedule` int64, concatenated: tokens to keep in each frame `[T]`, and the total before it `[T]`;
    neighbours in the density of each segment's first frame `[S]`, its number of frames `[S]`, and their indices in
    order `[S, steps]`. `budget`: K.
    """
    frames, tokens, width = features.shape
    size = frames * tokens
    # all segments together take no more blocks than can run at once; a power of two, so that few variants are compiled
    parts = 1 << max(1, min(_MOST_PARTS, tokens, width, _processors(features.device) // segments)).bit_length() - 1
    stride = (2 * parts + 2) * tokens + 2 * parts
    cleared = torch.zeros(3 * size + segments, device=features.device)
    positions = torch.empty(budget, dtype=torch.int64, device=features.device)
    _chains_kernel[(segments, parts)](
        features.contiguous(),
        squared,
        means,
        schedule,
        torch.empty(segments * stride, device=features.device),
        cleared,
        positions,
        frames,
        segments,
        steps,
        stride,
        tokens,
        width,
        **tiles(tokens, width, parts),
        **(launch_options(parts) if features.is_cuda else {}),
    )
    density, distance = cleared[: 2 * size].view(2, frames, tokens)
    kept = cleared[2 * size : 3 * size].view(torch.bool)[:size].view(frames, tokens)
    return kept, density, distance, positions


@functools.cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


@functools.cache
def tiles(tokens: int, width: int, parts: int) -> dict[str, int]:
    """The sizes that the kernel is compiled for, with `parts` blocks per segment."""
    padded, rows, channels = _power(tokens), _power(-(-tokens // parts)), _power(-(-width // parts))
    return {
        "PARTS": parts,
        "TOKENS": padded,
        "ROWS": rows,
        "SLICE": channels,
        "TALL": max(1, min(padded, _TILE // channels)),
        "WIDE": max(1, min(padded, _TILE // rows)),
        "ADDED": max(1, min(parts, _TILE // padded)),
    }


def _power(least: int) -> int:
    """The smallest power of two >= `least`."""
    return 1 << (least - 1).bit_length()


def launch_options(parts: int) -> dict[str, Any]:
    """Compile and launch options: cooperative if a segment has several blocks."""
    return {"num_warps": 16, "launch_cooperative_grid": parts > 1, "enable_fp_fusion": True}
