"""Pure tensor functions shared by several methods: distances, DPC-KNN, and the allocation of a token budget.

Shapes are written as `[..., N, D]`: any leading batch dimensions (frames, windows), N points of width D. Whatever the
dtype of the features, distances and everything derived from them are float32. No function changes its input.
"""

from __future__ import annotations

import importlib.util
import math
import operator
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

RESOLUTION = 2e-6
"""Squared distances below this share of the points' squared norms are rounding noise of the Gram form: set to 0."""


_CHUNK_BYTES = {"cpu": 2**24, "cuda": 2**28}
"""Size of float32 copies, made of a few frames at a time: small enough for a CPU's cache, bounded on a GPU."""


def frames_per_chunk(features: Tensor, rows: int | None = None) -> int:
    """How many frames of `[T, N, D]` to convert or centre at once: on a CPU, the same number for each thread.

    `rows`: tokens per frame, if not N.
    """
    size = 4 * (features.shape[1] if rows is None else rows) * features.shape[2]
    most = max(1, _CHUNK_BYTES.get(features.device.type, 2**26) // size)
    threads = torch.get_num_threads() if features.device.type == "cpu" else 1
    return most - most % min(most, threads)


def frame_means(features: Tensor) -> Tensor:
    """Mean token of every frame, in float32: `[T, N, D]` to `[T, D]`."""
    if features.is_cuda:
        return features.mean(1, dtype=torch.float32)
    # as a product: on a CPU a third of the time of `mean`, for half precision and for small frames after other work
    each = features.new_full((1, 1, features.shape[1]), 1 / features.shape[1], dtype=torch.float32)
    chunks = features.split(frames_per_chunk(features))
    return _joined([float_product(each.expand(len(part), -1, -1), part).squeeze(1) for part in chunks])


def _joined(parts: list[Tensor]) -> Tensor:
    """Concatenate along the first dimension; a single part is not copied, unlike with `torch.cat`."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def on_device(values: Sequence[Any], device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor of `values` from the host on `device`; unlike `torch.tensor` it does not wait for the device."""
    return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)


def positions_of(mask: Tensor, count: int) -> Tensor:
    """Ascending flat indices of the `count` true entries of `mask`, int64 `[count]`: `nonzero` without a sync."""
    return mask.flatten().nonzero_static(size=count).squeeze(1)


def first_of_rows(counts: Sequence[int], device: torch.device) -> Tensor:
    """Flat indices of the first `counts[g]` entries of each row g of `[G, max(counts)]`: int64 `[sum(counts)]`."""
    slots = torch.arange(max(counts), device=device)
    return positions_of(slots < on_device(counts, device).unsqueeze(1), sum(counts))


def float_product(a: Tensor, b: Tensor) -> Tensor:
    """Matrix product in float32 of factors of any dtype: `[..., n, D]`, `[..., D, m]` to `[..., n, m]`.

    On a GPU, half-precision factors go to the tensor cores as they are. Their products are exact in float32 and are
    added up in float32, so the result is that of converting the factors first, in a fraction of the time.
    """
    half = a.dtype in (torch.bfloat16, torch.float16)
    if not (a.is_cuda and half and a.dtype == b.dtype):
        return a.float() @ b.float()
    a, b = a.detach(), b.detach()
    if a.dim() == 2:
        return torch.mm(a, b, out_dtype=torch.float32)
    batch = a.shape[:-2]
    a, b = (x.reshape(-1, *x.shape[-2:]) for x in (a, b))
    product = torch.bmm(a, b, out_dtype=torch.float32)
    return product.view(*batch, *product.shape[-2:])


def triton_available() -> bool:
    """Whether kernels can be compiled for a GPU: Triton comes with torch's builds for CUDA on Linux."""
    return importlib.util.find_spec("triton") is not None


def takes_triton(x: Tensor) -> bool:
    """Whether Triton kernels can read `x`: it is on a GPU and not a subclass, whose values may be elsewhere."""
    return type(x) is Tensor and x.is_cuda and triton_available()


def squared_distances(x: Tensor, *, centered: bool = False) -> Tensor:
    """Squared Euclidean distances between all points of each batch entry: `[..., N, D]` to `[..., N, N]`, float32.

    ||a||^2 + ||b||^2 - 2 a.b takes one batched matrix product instead of N^2 differences, but cancels badly when the
    points share a large offset. Their mean is therefore subtracted first, unless the caller has `centered` them.
    The result is exactly symmetric; the diagonal and the distances of equal points are exactly 0.
    """
    x = x.float()
    if not centered:
        x = x - x.mean(-2, keepdim=True)
    return distances_of_gram(gram_matrix(x))


def gram_matrix(x: Tensor) -> Tensor:
    """Inner products of all points of each batch entry: `[..., N, D]` to `[..., N, N]`.

    On a CPU the part below the diagonal is copied from above it, in a few large blocks. Small matrices are not split:
    libraries round a small block differently from the whole, and equal points would get unequal rows.
    """
    tokens, width = x.shape[-2:]
    if x.device.type != "cpu" or tokens * width < 2**16:
        return x @ x.mT
    products = x.new_empty(*x.shape[:-1], tokens)
    step = math.ceil(tokens / min(8, max(2, tokens // 128)))
    for start in range(0, tokens, step):
        rows, after = slice(start, start + step), slice(start + step, None)
        products[..., rows, start:] = x[..., rows, :] @ x[..., start:, :].mT
        products[..., after, rows] = products[..., rows, after].mT
    return products


def distances_of_gram(gram: Tensor) -> Tensor:
    """Squared distances of points from their inner products, both `[..., N, N]` float32; see `squared_distances`."""
    # Norms from the same product, not from x.square().sum(): only then do equal points cancel to 0.
    norm = gram.diagonal(dim1=-2, dim2=-1).contiguous()  # [..., N]
    norms = norm.unsqueeze(-1) + norm.unsqueeze(-2)
    # Exactly symmetric, so that mutual nearest neighbours tie in a density of two.
    squared = norms - (gram + gram.mT)
    # the mask as a float32 factor of 0 or 1: on a CPU, booleans take several times as long
    return squared.mul_(norms.mul_(RESOLUTION).le_(squared))


def frame_distances(features: Tensor, means: Tensor, weight: Tensor | None = None) -> Tensor:
    """Squared distances within frames, divided by the number of channels: `[T, N, D]` to `[T, N, N]`, float32.

    `means` `[T, D]`: the frames' mean tokens; `weight` `[T, D]`: 1 for channels that count, 0 for others.
    """
    features, means = features.detach(), means.detach()
    width = features.shape[2]
    if weight is None and features.is_cuda and features.dtype.itemsize == 2:
        # Tensor cores take half precision as it is, and are twenty times as fast. The features are not centred, as half
        # precision could not hold the result: distances keep four digits, more than the features have.
        gram = float_product(features, features.mT)
        if takes_triton(features):
            from mmg_bench.methods._distances_triton import gram_distances

            return gram_distances(gram, width, RESOLUTION)
        return distances_of_gram(gram).div_(width)
    squared = [squared_distances(x, centered=True) for _, x in centred_frames(features, means, weight)]
    return _joined(squared).div_(width if weight is None else weight[0].sum())


def centred_frames(features: Tensor, means: Tensor, weight: Tensor | None = None) -> Iterator[tuple[int, Tensor]]:
    """Yield a few frames at a time, minus their means: the number of the first one and `[n, N, D]`, float32.

    Arguments as for `frame_distances`. All parts share one buffer, because a CPU is fast only in its cache: a part is
    valid until the next one is requested.
    """
    frames, tokens, width = features.shape
    most = min(frames_per_chunk(features), frames)
    buffer = means.new_empty(most, tokens, width)  # reused: fresh memory costs a CPU more than the arithmetic
    for start in range(0, frames, most):
        part = slice(start, start + most)
        x = torch.sub(features[part], means[part].unsqueeze(1), out=buffer[: frames - start])
        yield start, x if weight is None else x.mul_(weight[part].unsqueeze(1))


def log_density(squared: Tensor, k: int | Tensor, most: int | None = None) -> Tensor:
    """log rho_i of DPC-KNN, where rho_i = exp(-mean of the k smallest squared distances of i, its own 0 included).

    `squared`: `[..., N, N]`; `k`: one int, or an int64 tensor `[...]`, in 1..N; `most`: an upper bound of that tensor,
    if the host knows one (otherwise it is read from the device). Returns `[..., N]`.
    Kept as a logarithm because rho itself rounds to equal values near 1 and underflows far from it. With k = 1 every
    density is exp(0) = 1. Du et al., arXiv 1602.07983 (2016), without random tie-breaking.
    """
    if isinstance(k, int):
        return squared.topk(k, largest=False, sorted=False).values.mean(-1).neg_()
    nearest = squared.topk(int(k.max()) if most is None else most, largest=False).values  # [..., N, k_max], ascending
    index = (k - 1)[..., None, None].expand(*squared.shape[:-1], 1)
    total = nearest.cumsum(-1).gather(-1, index).squeeze(-1)  # [..., N]
    return (total / k[..., None]).neg_()


def peak_distance(squared: Tensor, density: Tensor) -> Tensor:
    """delta_i of density-peak clustering: distance to the nearest point that is strictly denser.

    `squared`: `[..., N, N]`; `density`: `[..., N]`; only its order matters, so its logarithm will do. Returns
    `[..., N]`. A point without a denser one gets the largest distance of its batch entry (so do all if densities tie).
    """
    denser = density.unsqueeze(-2) > density.unsqueeze(-1)  # [..., i, j]: is j denser than i?
    largest = squared.amax((-2, -1), keepdim=True)
    return torch.where(denser, squared, largest).amin(-1).sqrt_()


def dpc_scores(x: Tensor, k: int | Tensor) -> Tensor:
    """log gamma_i = log rho_i + log delta_i of DPC-KNN on `[..., N, D]`, with d = ||a - b|| / sqrt(D): `[..., N]`.

    Cluster centres are the points of highest gamma: `descending(dpc_scores(x, k))[..., :m]`. Points at distance 0 of
    a denser one score -inf. `k`: one int, or an int64 tensor `[...]`, in 1..N.
    """
    squared = squared_distances(x) / x.shape[-1]
    density = log_density(squared, k)
    return density + peak_distance(squared, density).log_()


def descending(scores: Tensor) -> Tensor:
    """Indices that sort the last dimension from high to low, equal scores by the lower index: `[..., N]` int64.

    `descending(scores)[..., :m]` is a top-m whose ties are defined, unlike those of `Tensor.topk`.
    """
    return scores.sort(dim=-1, descending=True, stable=True).indices


def top_mask(scores: Tensor, counts: Tensor) -> Tensor:
    """Mark the `counts` (`[...]` int64, may differ and may be 0) highest of each row of `scores` (`[..., N]`): bool.

    Equal scores: the lower index wins.
    """
    return at_ranks(scores, torch.arange(scores.shape[-1], device=scores.device) < counts.unsqueeze(-1))


def at_ranks(scores: Tensor, chosen: Tensor) -> Tensor:
    """Mark the points of each row of `scores` (`[..., N]`) whose ranks, from the highest, are `chosen` (bool): bool.

    Equal scores: the lower index ranks higher.
    """
    return chosen.scatter(-1, descending(scores), chosen)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine similarity over the last dimension, broadcasting the others; 0 where either vector is zero."""
    norm = a.norm(dim=-1) * b.norm(dim=-1)
    return (a * b).sum(-1) / norm.clamp_min(torch.finfo(norm.dtype).tiny)


def spread(total: int, parts: int) -> list[int]:
    """Split `total` into `parts` counts that differ by at most 1, the larger ones first."""
    share, rest = divmod(total, parts)
    return [share + 1] * rest + [share] * (parts - rest)


def evenly_spaced(count: int, length: int) -> Tensor:
    """`count` distinct ascending indices into `range(length)`, each in the middle of its share: int64 on the CPU."""
    return (2 * torch.arange(count) + 1) * length // (2 * count)


def largest_remainder(shares: Sequence[float], total: int, capacity: Sequence[int]) -> list[int]:
    """Round `shares` (which add up to `total`, each at most its `capacity`) to integers that add up to `total` exactly.

    Every share is rounded down; the remainder goes to the largest fractional parts, ties by the lower index (Hamilton's
    method). No share is rounded below its floor or above its capacity.
    """
    # Nine decimals: float64 rounding must neither make an integer share smaller nor break a tie.
    counts = [min(int(s + 1e-9), c) for s, c in zip(shares, capacity, strict=True)]
    rest = total - sum(counts)
    open_parts = [i for i, c in enumerate(capacity) if counts[i] < c]
    for i in sorted(open_parts, key=lambda i: round(counts[i] - shares[i], 9))[:rest]:
        counts[i] += 1
    if sum(counts) != total:
        raise ValueError(f"shares that add up to {sum(shares)} cannot be rounded to a total of {total}")
    return counts


def conserve(ratios: Sequence[float], sizes: Sequence[int], total: int, low: float = 0.0) -> list[float]:
    """Scale `ratios` by one factor, within `[low, 1]`, so that parts of `sizes` keep `total` tokens together.

    Finds c with sum_i sizes_i * clamp(c * clamp(ratios_i, low, 1), low, 1) = total and returns the S shares
    (tokens per part, not yet rounded). The sum grows with c and is linear between the values at which a part meets a
    bound, so c is exact, without iteration. Needs sum(sizes) * low <= total <= sum(sizes).
    Zero ratios count as equal and tiny, so that they share what full parts cannot take.
    """
    ratio = [min(max(r, low, 1e-9), 1.0) for r in ratios]

    def shares(factor: float) -> list[float]:
        return [min(max(factor * r, low), 1.0) * size for r, size in zip(ratio, sizes, strict=True)]

    factor = total / math.fsum(map(operator.mul, ratio, sizes))
    if low <= factor * min(ratio) and factor * max(ratio) <= 1:  # no part meets a bound
        return shares(factor)
    bends = sorted([low / r for r in ratio] + [1 / r for r in ratio])  # [2S]
    # the first bend at which `total` is reached, except bend 0, where the sum is sum(sizes) * low
    after = bisect_left(range(len(bends) - 1), True, lo=1, key=lambda n: math.fsum(shares(bends[n])) >= total)
    below, above = (math.fsum(shares(c)) for c in bends[after - 1 : after + 1])
    part = (total - below) / (above - below) if above > below else 0.0
    return shares(bends[after - 1] + part * (bends[after] - bends[after - 1]))
