"""MMG-Vid: segments, segment budgets by marginal gain, and density-peak token selection guided by earlier frames.

Ma et al., "MMG-Vid: Maximizing Marginal Gains at Segment-level and Token-level for Efficient Video LLMs",
arXiv 2508.21044 (AAAI 2026). The authors have published no code. Where each part comes from is marked:

    [P] stated in the paper's abstract          [S] stated in reviews of the paper
    [R] reconstructed from public code of neighbouring methods          [O] our own choice

The three stages are functions of their own, so that each can be tested, replaced and measured separately:
`find_segments`, `merge_short_segments`; `marginal_gains`, `segment_ratios`, `segment_budgets`, `frame_budgets`;
`low_variance_channels`, `temporal_dpc`. T frames, N tokens a frame, D channels, S segments; a segment is a half-open
range of frames `(start, stop)`.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmg_bench.methods._ops import (
    centred_frames,
    conserve,
    distances_of_gram,
    frame_distances,
    frame_means,
    frames_per_chunk,
    gram_matrix,
    largest_remainder,
    on_device,
    spread,
    takes_triton,
    top_mask,
)
from mmg_bench.methods.base import Method, check_choice, check_range
from mmg_bench.tokens import PrunedTokens, VideoTokens

Segment = tuple[int, int]
Products = NDArray[np.float64]
Matrix = NDArray[np.float32]
Vector = NDArray[np.float32]
Indices = NDArray[np.intp]
GainSign = Literal["natural", "swapped"]
Order = Literal["temporal", "greedy"]


# ---- Stage 1: segments ------------------------------------------------------------------------------------------


def inner_products(vectors: Tensor) -> Tensor:
    """Inner products of all pairs of vectors: `[T, D]` to `[T, T]`, float64.

    Stages 1 and 2 use nothing but those of the frames' mean tokens.
    """
    vectors = vectors.double()
    return vectors @ vectors.mT


def frame_similarity(products: Products) -> list[float]:
    """Cosine similarity of the mean tokens of adjacent frames, from their `products` `[T, T]`: T - 1 values."""
    squared: list[float] = products.diagonal().tolist()
    across: list[float] = products.diagonal(1).tolist()
    return [_cosine(product, a, b) for product, (a, b) in zip(across, itertools.pairwise(squared), strict=True)]


def find_segments(similarity: Sequence[float], tau: float) -> list[Segment]:
    """[S] Cut between frames t and t + 1 wherever their similarity is below `tau` (strictly)."""
    cuts = [t + 1 for t, s in enumerate(similarity) if s < tau]
    return list(zip([0, *cuts], [*cuts, len(similarity) + 1], strict=True))


def merge_short_segments(segments: Sequence[Segment], similarity: Sequence[float], min_frames: int) -> list[Segment]:
    """[S] One-frame segments are merged; [O] how: each joins the neighbour that it resembles more.

    From left to right, a segment shorter than `min_frames` joins the neighbour whose adjacent frame is the more
    similar (ties: the left one), until it is long enough or is the only segment.
    """
    merged = list(segments)
    i = 0
    while i < len(merged):
        start, stop = merged[i]
        if stop - start >= min_frames or len(merged) == 1:
            i += 1
            continue
        left = similarity[start - 1] if i > 0 else -torch.inf
        right = similarity[stop - 1] if i + 1 < len(merged) else -torch.inf
        if left >= right:
            merged[i - 1 : i + 1] = [(merged[i - 1][0], stop)]  # long enough, since the previous one was
        else:
            merged[i : i + 2] = [(start, merged[i + 1][1])]  # checked again
    return merged


# ---- Stage 2: budgets of the segments ---------------------------------------------------------------------------


def segment_products(products: Products, segments: Sequence[Segment]) -> Products:
    """Inner products of the segments' mean tokens, from those of the frames: `[T, T]` to `[S, S]`."""
    shares = np.zeros((len(segments), len(products)))  # [S, T]: weight of each frame in the segment's mean
    for row, (start, stop) in zip(shares, segments, strict=True):
        row[start:stop] = 1 / (stop - start)
    means: Products = shares @ products @ shares.T
    return means


def marginal_gains(
    products: Products, k: float = 0.5, gain_sign: GainSign = "natural", order: Order = "temporal"
) -> list[float]:
    """[P] Budgets follow marginal gains; [R] this gain: what segment i adds to the segments taken before it.

    `products`: inner products of the segments' mean features `[S, S]`; the cosines with their sums need no more. With
    g_sel the mean feature of the segments taken before i and g_rem that of the segments left after it,

        natural [R]   MV_i = k * cos(s_i, g_rem) + (1 - k) * (1 - cos(s_i, g_sel))     representative and new
        swapped [R]   MV_i = k * cos(s_i, g_sel) + (1 - k) * (1 - cos(s_i, g_rem))

    where a term whose mean is over no segment is 0. Segments are taken in `temporal` order [R], or `greedy` [O]:
    highest gain first, ties by the lower index.
    """
    count = len(products)
    norms: list[float] = products.diagonal().tolist()  # squared
    open_segments = list(range(count))
    with_taken = np.zeros(count)  # inner products with the sum of the segments taken
    with_left = products.sum(1)  # and with the sum of those left
    taken, left = 0.0, float(products.sum())  # squared norms of these sums
    gains = [0.0] * count
    cancelled = 1e-12 * math.fsum(norms)  # a sum no longer than this is rounding noise

    def gain(i: int) -> float:
        own, old, rest = norms[i], float(with_taken[i]), float(with_left[i])
        others = left - 2 * rest + own  # without segment i
        similar_taken = _cosine(old, own, taken if taken > cancelled else 0)
        similar_left = _cosine(rest - own, own, others if others > cancelled else 0)
        attract, repel = (similar_left, similar_taken)
        has_attract, has_repel = len(open_segments) > 1, len(open_segments) < count
        if gain_sign == "swapped":
            attract, repel, has_attract, has_repel = repel, attract, has_repel, has_attract
        return k * attract * has_attract + (1 - k) * (1 - repel) * has_repel

    while open_segments:
        chosen = open_segments[0]
        if order == "greedy":
            # Rounded, because two segments always tie at first: their cosine is symmetric. The first of equals.
            chosen = max(open_segments, key=lambda i: round(gain(i), 12))
        gains[chosen] = gain(chosen)
        open_segments.remove(chosen)
        taken += 2 * float(with_taken[chosen]) + norms[chosen]
        left += norms[chosen] - 2 * float(with_left[chosen])
        with_taken = with_taken + products[chosen]
        with_left = with_left - products[chosen]
    return gains


def _cosine(product: float, a: float, b: float) -> float:
    """Cosine of two vectors from their inner product and their squared norms `a` and `b`; 0 if a norm is 0."""
    if a * b < sys.float_info.min:
        return 0.0
    return min(1.0, max(-1.0, product / math.sqrt(a * b)))


def segment_ratios(gains: Sequence[float], retention_ratio: float, r_extra: float) -> list[float]:
    """[R] R_i = R + r_extra * z_i, z the gains' z-scores (population). Not yet in [0, 1], nor conserving the budget."""
    mean = math.fsum(gains) / len(gains)
    deviation = math.sqrt(math.fsum((gain - mean) ** 2 for gain in gains) / len(gains))
    return [retention_ratio + r_extra * (gain - mean) / (deviation + 1e-8) for gain in gains]


def segment_budgets(
    ratios: Sequence[float], segments: Sequence[Segment], tokens_per_frame: int, budget: int, r_min: float = 0.0
) -> list[int]:
    """[O] Tokens of each segment: `ratios` clamped, scaled and rounded so that they add up to exactly `budget`.

    The lower bound of a segment's ratio is `r_min`, or one token per frame if that is more and `budget` allows it. A
    bound that the budget cannot meet is lowered to the even share. Rounding is by largest remainder.
    """
    frames = [stop - start for start, stop in segments]
    low = max(r_min, 1 / tokens_per_frame if budget >= sum(frames) else 0.0)
    sizes = [n * tokens_per_frame for n in frames]
    shares = conserve(ratios, sizes, budget, min(low, budget / sum(sizes)))
    return largest_remainder(shares, budget, sizes)


def frame_budgets(budgets: Sequence[int], segments: Sequence[Segment]) -> list[int]:
    """[O] Tokens of each of the T frames: each segment's budget is spread evenly, remainders to its earliest frames."""
    shares = (spread(b, stop - start) for b, (start, stop) in zip(budgets, segments, strict=True))
    return [count for share in shares for count in share]


# ---- Stage 3: tokens --------------------------------------------------------------------------------------------


class Chosen(NamedTuple):
    """Result of stage 3, `[T, N]` unless stated otherwise. A frame without budget has no scores (0)."""

    kept: Tensor
    """bool."""
    density: Tensor
    """rho, float32."""
    distance: Tensor
    """delta, float32. Tokens are ranked by gamma = rho * delta."""
    positions: Tensor
    """`[K]` int64, ascending: flat raster indices of the kept tokens."""


def low_variance_channels(features: Tensor, segments: Sequence[Segment]) -> Tensor:
    """[R] The int(D/2) channels (at least 1) of lowest population variance over each segment's tokens: bool `[S, D]`.

    Ties by the lower index; computed in float64, so that constant channels do tie.
    """
    variances = []
    for start, stop in segments:
        chunks = features[start:stop].split(frames_per_chunk(features))
        size = (stop - start) * features.shape[1]
        mean = sum(part.double().sum((0, 1)) for part in chunks) / size  # [D]
        variances.append(sum((part.double() - mean).square().sum((0, 1)) for part in chunks) / size)
    variance = torch.stack(variances)  # [S, D]
    half = torch.full((len(segments),), max(1, features.shape[2] // 2), device=features.device)
    return top_mask(-variance, half)


def temporal_dpc(
    features: Tensor,
    segments: Sequence[Segment],
    counts: Sequence[int],
    *,
    knn: int = 7,
    channels: Tensor | None = None,
    means: Tensor | None = None,
    squared: Tensor | None = None,
    fused: bool | None = None,
) -> Chosen:
    """[P] Temporal-guided DPC-KNN, [R] in this form: keep `counts[t]` tokens of each frame t of `features` `[T, N, D]`.

    Frames of a segment are taken in order; d(x, y) = ||x - y|| / sqrt(D), in float32.

        first frame    rho_i = exp(-mean of the k smallest d(x_i, x_j)^2), itself included; k = min(knn, count, N - 1)
        later frames   rho_i = 1 - exp(-mean over g in G of d(x_i, g)^2), G all tokens kept in the segment so far
        all frames     delta_i = least d(x_i, x_j) to a token of the frame with rho_j > rho_i; else its largest d

    and the tokens of highest rho * delta are kept, ties by the lower index. A frame without budget keeps nothing and is
    skipped: a segment's first frame is its first one with a budget. Plain DPC-KNN in every frame is this function with
    one-frame `segments`. `channels` (bool `[T, D]`, the same number in every row) restricts d to some channels of each
    frame. `means` (`[T, D]`): the frames' mean tokens, and `squared`: their `frame_distances`, if already known.
    `fused`: whether one kernel runs the sequential part; None: on a CUDA device, with all channels.

    Two identities keep it cheap: distances within all frames are one batched Gram matrix; and the mean squared
    distance to G is ||x - mean(G)||^2 plus the scatter of G, so G need not be stored, however large it grows.
    """
    features = features.detach()
    means = frame_means(features) if means is None else means
    weight = None if channels is None else channels.float()
    # frames with a budget, of segments that have one
    chains = [chain for segment in segments if (chain := [t for t in range(*segment) if counts[t]])]
    neighbours = [max(1, min(knn, counts[chain[0]], features.shape[1] - 1)) for chain in chains]
    if fused is None:
        fused = channels is None and takes_triton(features)
    if fused:
        squared = frame_distances(features, means, weight) if squared is None else squared
        return _one_kernel(features, squared, chains, counts, neighbours, means)
    return _step_by_step(features, squared, chains, counts, neighbours, means, weight)


def _one_kernel(
    features: Tensor,
    squared: Tensor,
    chains: Sequence[Sequence[int]],
    counts: Sequence[int],
    neighbours: Sequence[int],
    means: Tensor,
) -> Chosen:
    """The sequential part of `temporal_dpc` in one launch; tested against `_step_by_step`."""
    from mmg_bench.methods._temporal_dpc_triton import follow_chains

    steps = max(map(len, chains))
    padded = [[*chain, *[0] * (steps - len(chain))] for chain in chains]
    before = [0, *itertools.accumulate(counts)]
    lengths = [len(chain) for chain in chains]
    # a single transfer
    schedule = on_device([*counts, *before[:-1], *neighbours, *lengths, *itertools.chain(*padded)], features.device)
    return Chosen(*follow_chains(features, squared, means, schedule, len(chains), steps, before[-1]))


def _step_by_step(
    features: Tensor,
    squared: Tensor | None,
    chains: Sequence[Sequence[int]],
    counts: Sequence[int],
    neighbours: Sequence[int],
    means: Tensor,
    weight: Tensor | None,
) -> Chosen:
    """The same on the host, mostly in numpy, because a torch call costs several numpy calls."""
    frames, tokens, width = features.shape
    used = np.float32(width if weight is None else float(weight[0].sum()))
    rho, delta = np.zeros((2, frames, tokens), np.float32)
    kept = np.zeros((frames, tokens), bool)
    firsts = {chain[0]: k for chain, k in zip(chains, neighbours, strict=True)}
    guided = {t for chain in chains for t in chain[1:]}
    guides = {t for chain in chains for t in chain[:-1]}
    guide = _Guide(means.cpu().numpy(), None if weight is None else weight.cpu().numpy())

    for t, x, norms, within in _host_frames(features, squared, means, weight, used):
        if t in firsts:
            guide.restart(t, x, norms)
            order = _log_density(within, firsts[t])
            rho[t] = np.exp(order)
            delta[t] = apart = _peak_distance(order, within)
            with np.errstate(divide="ignore"):
                score = order + np.log(apart)  # log(rho * delta), without underflow
        elif t in guided:
            order = guide.distances(t, x, norms) / used  # [N]: mean squared distance to G
            rho[t] = rise = -np.expm1(-order)
            delta[t] = apart = _peak_distance(order, within)
            score = np.multiply(rise, apart, dtype=np.float64)
        else:
            continue  # no budget
        chosen = _best(score, counts[t])
        kept[t, chosen] = True
        if t in guides:
            guide.add(chosen)
    values = kept, rho, delta, np.flatnonzero(kept)
    return Chosen(*(torch.from_numpy(value).to(features.device) for value in values))


def _host_frames(
    features: Tensor, squared: Tensor | None, means: Tensor, weight: Tensor | None, used: np.float32
) -> Iterator[tuple[int, Matrix, Vector, Matrix]]:
    """Yield each frame's number, centred tokens `[N, D]`, their squared norms `[N]` and distances / `used` `[N, N]`.

    Yielded while the frame is in the CPU's cache: reading it again from memory costs more than the arithmetic.
    """
    if squared is None and features.device.type != "cpu":
        squared = frame_distances(features, means, weight)
    features, means, weight = features.cpu(), means.cpu(), None if weight is None else weight.cpu()
    for start, part in centred_frames(features, means, weight):  # [n, N, D]
        if squared is None:
            gram = gram_matrix(part)  # [n, N, N]
            norms, within = gram.diagonal(dim1=1, dim2=2).clone(), distances_of_gram(gram).div_(float(used))
        else:
            norms, within = part.square().sum(2), squared[start : start + len(part)].cpu()
        yield from zip(itertools.count(start), part.numpy(), norms.numpy(), within.numpy(), strict=False)


class _Guide:
    """G, the tokens kept so far: stores only their number, their mean, and the sum of squared distances from it.

    Frames are given by their centred tokens `[N, D]` and the squared norms of these `[N]`.
    """

    def __init__(self, means: Matrix, weight: Matrix | None):
        self.means, self.weight = means, weight  # [T, D]

    def restart(self, t: int, x: Matrix, norms: Vector) -> None:
        """Empty G and set frame t as the current one. The frame's mean stands in for that of G."""
        self.mean, self.size, self.scatter = self.means[t].copy(), 0, 0.0
        self.x, self.offset, self.norms = x, np.zeros_like(self.mean), norms

    def distances(self, t: int, x: Matrix, norms: Vector) -> Vector:
        """Mean squared distance of each token of frame t to all in G: `[N]`."""
        self.x, self.offset = x, self.mean - self.means[t]
        if self.weight is not None:
            self.offset *= self.weight[t]
        # squared distances from the mean, row by row, so that equal tokens get equal distances
        apart = norms - 2 * np.vecdot(x, self.offset) + self.offset @ self.offset
        self.norms = np.maximum(apart, 0, out=apart)
        return self.norms + np.float32(self.scatter / self.size)

    def add(self, chosen: Indices) -> None:
        """Add the tokens `chosen` of the current frame."""
        self.size += len(chosen)
        total = np.add.reduce(self.x[chosen]) - np.float32(len(chosen)) * self.offset
        shift = total / np.float32(self.size)  # [D]
        added = float(np.add.reduce(self.norms[chosen])) - self.size * float(shift @ shift)
        self.scatter = max(0.0, self.scatter + added)  # rounding must not turn distances negative
        self.mean += shift


def _log_density(within: Matrix, k: int) -> Vector:
    """`_ops.log_density` of one frame on the host: `[N, N]` to `[N]`."""
    nearest = np.partition(within, k - 1)[:, :k]
    nearest.sort()  # equal tokens have equal sums
    return np.add.reduce(nearest, 1) / np.float32(-k)


def _peak_distance(order: Vector, within: Matrix) -> Vector:
    """`_ops.peak_distance` of one frame on the host: `[N]` and `[N, N]` to `[N]`."""
    no_denser = np.less_equal.outer(order, order)  # [j, i]: is j no denser than i?
    # points that are not denser count as at the largest distance; minimum over j, as `within` is symmetric
    nearest: Vector = np.minimum.reduce(np.maximum(within, no_denser * within.max()))
    return np.sqrt(nearest, out=nearest)


def _best(scores: Vector | Matrix, count: int) -> Indices:
    """Indices of the `count` highest, ties by the lower index."""
    return (-scores).argsort(kind="stable")[:count]


# ---- The method -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MMGVid(Method):
    """Segments of similar frames, more tokens for segments that add more, and tokens unlike those already kept.

    Stage 1 cuts the video into segments, stage 2 allocates the budget among them, stage 3 (TG-DPC) picks tokens that
    are new within the segment and apart within their frame. Kept tokens are the original ones in raster order; nothing
    is merged. Exactly max(1, round(R*T*N)) tokens are kept. Neither attention nor the question is used.

    With a budget of one token, plain DPC-KNN (a segment's first frame; every frame with `stage3="dpc"`) has k = 1: all
    densities tie, all distances are the frame's largest, and the frame's token 0 is kept. With two, k = 2 and mutual
    nearest neighbours tie. Later frames of TG-DPC are not affected. With fewer tokens than frames, a segment's earliest
    frames get one each.

    Source: arXiv 2508.21044, no official code. For the marks [P], [S], [R], [O] see the module's docstring.
    """

    tau: float = 0.95
    """[S] Frames whose cosine similarity is below tau belong to different segments; in [-1, 1]."""
    min_segment_frames: int = 2
    """[S] One-frame segments are merged; [O] how: shorter segments join a neighbour. 1 switches merging off."""
    budgets: Literal["marginal_gain", "uniform"] = "marginal_gain"
    """[P] Segment budgets follow the marginal gain; `uniform` (ablation) gives all segments the ratio R."""
    k: float = 0.5
    """[R] Weight of representativeness against diversity in the marginal gain; in [0, 1]."""
    r_extra: float = 0.1
    """[R] Change of a segment's ratio for one standard deviation of gain; 0 equals `budgets="uniform"`."""
    gain_sign: GainSign = "natural"
    """[R] `natural`: like the segments to come, unlike those taken; `swapped`: the other way round."""
    order: Order = "temporal"
    """[R] Order in which segments are taken: `temporal`, or `greedy` [O], highest gain first."""
    r_min: float = 0.0
    """[O] Lower bound of a segment's ratio; in [0, 1]. At least one token per frame if the budget allows it."""
    stage3: Literal["tg_dpc", "dpc"] = "tg_dpc"
    """[P] `tg_dpc`: later frames are guided by the tokens kept; `dpc` (ablation): plain DPC-KNN in every frame."""
    knn: int = 7
    """[R] Neighbours in the density of DPC-KNN, at most the frame's budget; >= 1."""
    channels: Literal["all", "low_variance"] = "all"
    """[R] Score on all channels, or on the half with the lowest variance over the segment's tokens."""

    name: ClassVar[str] = "mmg_vid"
    finds_faults: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "tau", -1, 1)
        check_range(self, "min_segment_frames", 1, 10**6, integer=True)
        check_choice(self, "budgets", ("marginal_gain", "uniform"))
        check_range(self, "k", 0, 1)
        check_range(self, "r_extra", 0, 10**6)
        check_choice(self, "gain_sign", ("natural", "swapped"))
        check_choice(self, "order", ("temporal", "greedy"))
        check_range(self, "r_min", 0, 1)
        check_choice(self, "stage3", ("tg_dpc", "dpc"))
        check_range(self, "knn", 1, 10**6, integer=True)
        check_choice(self, "channels", ("all", "low_variance"))

    def select(self, tokens: VideoTokens) -> PrunedTokens:
        x = tokens.features.detach()  # [T, N, D]; a choice has no gradient
        means = frame_means(x)  # [T, D]
        products = inner_products(means).cpu().numpy()  # [T, T]: with the kernels, the only wait for a GPU
        # the GPU computes the distances while the host allocates the budget
        squared = frame_distances(x, means) if self.channels == "all" and x.device.type != "cpu" else None
        if not np.isfinite(products).all():
            tokens.require_finite(self.needs, self.name)

        similarity = frame_similarity(products)
        segments = merge_short_segments(find_segments(similarity, self.tau), similarity, self.min_segment_frames)

        ratios = [self.retention_ratio] * len(segments)
        if self.budgets == "marginal_gain":
            gains = marginal_gains(segment_products(products, segments), self.k, self.gain_sign, self.order)
            ratios = segment_ratios(gains, self.retention_ratio, self.r_extra)
        budgets = segment_budgets(ratios, segments, tokens.tokens_per_frame, self.budget(tokens), self.r_min)
        counts = frame_budgets(budgets, segments)

        channels = None
        if self.channels == "low_variance":
            lengths = torch.tensor([stop - start for start, stop in segments], device=x.device)
            channels = low_variance_channels(x, segments).repeat_interleave(lengths, 0)  # [T, D]
        chains = segments if self.stage3 == "tg_dpc" else [(t, t + 1) for t in range(tokens.frames)]
        chosen = temporal_dpc(x, chains, counts, knn=self.knn, channels=channels, means=means, squared=squared)
        notes = {"segments": segments, "segment_budgets": budgets, "frame_budgets": counts}
        return PrunedTokens(tokens.flat.index_select(0, chosen.positions), chosen.positions, notes)
