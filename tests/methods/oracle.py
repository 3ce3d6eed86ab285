"""MMG-Vid once more, in plain loops and float64, written from the equations; shares nothing with the package."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def cosine(a: Array, b: Array) -> float:
    norm = math.sqrt(float(a @ a)) * math.sqrt(float(b @ b))
    return float(a @ b) / norm if norm > 0 else 0.0


def segments(x: Array, tau: float, min_frames: int) -> list[list[int]]:
    """Lists of frames."""
    mean = [frame.mean(0) for frame in x]
    near = [cosine(a, b) for a, b in pairwise(mean)]
    groups = [[0]]
    for t in range(1, len(x)):
        if near[t - 1] < tau:
            groups.append([])
        groups[-1].append(t)
    while len(groups) > 1:
        short = [g for g in range(len(groups)) if len(groups[g]) < min_frames]
        if not short:
            break
        g = short[0]
        left = near[groups[g][0] - 1] if g > 0 else None
        right = near[groups[g][-1]] if g < len(groups) - 1 else None
        into_left = right is None or (left is not None and left >= right)
        at = g - 1 if into_left else g
        groups[at : at + 2] = [groups[at] + groups[at + 1]]
    return groups


def gains(features: list[Array], k: float, gain_sign: str, order: str) -> list[float]:
    def gain(i: int, taken: list[int]) -> float:
        rest = [j for j in range(len(features)) if j not in taken and j != i]
        sel = cosine(features[i], np.mean([features[j] for j in taken], 0)) if taken else None
        rem = cosine(features[i], np.mean([features[j] for j in rest], 0)) if rest else None
        like, unlike = (rem, sel) if gain_sign == "natural" else (sel, rem)
        return (k * like if like is not None else 0) + ((1 - k) * (1 - unlike) if unlike is not None else 0)

    result = [0.0] * len(features)
    taken: list[int] = []
    while len(taken) < len(features):
        rest = [i for i in range(len(features)) if i not in taken]
        value = {i: gain(i, taken) for i in rest}
        pick = rest[0] if order == "temporal" else min(rest, key=lambda i: (-round(value[i], 12), i))
        result[pick] = value[pick]
        taken.append(pick)
    return result


def budgets(ratios: list[float], sizes: list[int], frames: list[int], budget: int, r_min: float) -> list[int]:
    """Scaling by bisection; the package solves it in closed form."""
    tokens = sizes[0] // frames[0]
    low = max(r_min, 1 / tokens) if budget >= sum(frames) else r_min
    low = min(low, budget / sum(sizes))
    clamped = [min(max(r, low, 1e-9), 1.0) for r in ratios]

    def shares(c: float) -> list[float]:
        return [min(max(c * r, low), 1.0) * n for r, n in zip(clamped, sizes, strict=True)]

    a, b = 0.0, 1 / min(clamped)
    for _ in range(300):
        middle = (a + b) / 2
        a, b = (middle, b) if sum(shares(middle)) < budget else (a, middle)
    exact = [Fraction(round(s, 8)).limit_denominator(10**8) for s in shares(b)]
    counts = [math.floor(s) for s in exact]
    by_rest = sorted(range(len(exact)), key=lambda i: (counts[i] - exact[i], i))
    for i in by_rest[: budget - sum(counts)]:
        counts[i] += 1
    return counts


def distance2(a: Array, b: Array) -> float:
    difference = a - b
    return float(difference @ difference) / len(a)


def best(frame: Array, rho: list[float], d2: list[list[float]], m: int) -> list[int]:
    largest = max(max(row) for row in d2)
    gamma = []
    for i in range(len(frame)):
        denser = [d2[i][j] for j in range(len(frame)) if rho[j] > rho[i]]
        gamma.append(rho[i] * math.sqrt(min(denser) if denser else largest))
    return sorted(sorted(range(len(frame)), key=lambda i: (-gamma[i], i))[:m])


def tokens(
    x: Array, group: list[int], counts: list[int], knn: int, channels: str, stage3: str
) -> list[tuple[int, int]]:
    """(frame, token) pairs kept in one segment."""
    if channels == "low_variance":
        flat = x[group].reshape(-1, x.shape[2])
        variance = [float(np.var(flat[:, c] - flat[0, c])) for c in range(flat.shape[1])]
        order = sorted(range(len(variance)), key=lambda c: (variance[c], c))
        x = x[:, :, sorted(order[: max(1, len(order) // 2)])]
    kept: list[tuple[int, int]] = []
    for t in group:
        frame, m = x[t], counts[t]
        if m == 0:
            continue
        d2 = [[distance2(a, b) for b in frame] for a in frame]
        if kept and stage3 == "tg_dpc":
            rho = [-math.expm1(-sum(distance2(a, x[u][n]) for u, n in kept) / len(kept)) for a in frame]
        else:
            k = max(1, min(knn, m, len(frame) - 1))
            rho = [math.exp(-sum(sorted(row)[:k]) / k) for row in d2]
        kept += [(t, n) for n in best(frame, rho, d2, m)]
    return kept


def mmg_vid(
    features: Array,
    retention_ratio: float,
    tau: float = 0.95,
    min_segment_frames: int = 2,
    budgets_rule: str = "marginal_gain",
    k: float = 0.5,
    r_extra: float = 0.1,
    gain_sign: str = "natural",
    order: str = "temporal",
    r_min: float = 0.0,
    stage3: str = "tg_dpc",
    knn: int = 7,
    channels: str = "all",
) -> list[int]:
    """Flat positions, ascending."""
    x = np.asarray(features, dtype=np.float64)
    n = x.shape[1]
    groups = segments(x, tau, min_segment_frames)
    ratios = [retention_ratio] * len(groups)
    if budgets_rule == "marginal_gain":
        mv = gains([x[g].reshape(-1, x.shape[2]).mean(0) for g in groups], k, gain_sign, order)
        mean = sum(mv) / len(mv)
        std = math.sqrt(sum((v - mean) ** 2 for v in mv) / len(mv))
        ratios = [retention_ratio + r_extra * (v - mean) / (std + 1e-8) for v in mv]
    total = max(1, round(retention_ratio * x.shape[0] * n))
    per_segment = budgets(ratios, [len(g) * n for g in groups], [len(g) for g in groups], total, r_min)
    counts = [0] * len(x)
    for group, budget in zip(groups, per_segment, strict=True):
        for j, t in enumerate(group):
            counts[t] = budget // len(group) + (j < budget % len(group))
    kept = [pair for g in groups for pair in tokens(x, g, counts, knn, channels, stage3)]
    return sorted(t * n + i for t, i in kept)
