"""Accuracy and paired comparison of two cells, with bootstrap intervals that respect the videos.

Questions about the same video are not independent, so the bootstrap draws whole videos. All functions are pure: the
same scores give the same result to the last digit, in any order of the questions. Scores are in 0..1, or NaN if the
question failed; percentages are in 0..100. An undefined quantity (accuracy, flips and p without questions, percent kept
of a dense accuracy of 0, the interval of a single video) is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
Labels = Sequence[str] | NDArray[np.str_]

_LEVEL = 0.95  # coverage of intervals, which all texts name
_CHUNK = 2**16  # elements of a product: those that fit the cache are several times faster than larger ones


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are made: percentile bootstrap over videos."""

    n_boot: int = 10_000
    """Number of resamples."""
    seed: int = 0
    """Equal seeds give equal resamples for the same number of videos, so all cells of a table share them."""

    def __post_init__(self) -> None:
        if self.n_boot < 1:
            raise ValueError(f"Bootstrap.n_boot={self.n_boot}: it must be at least 1")

    def sums(self, per_video: FloatArray) -> FloatArray:
        """`[V, K]` sums of each video -> `[n_boot, K]` sums over V videos drawn with replacement."""
        return _sums(per_video.tobytes(), len(per_video), self.n_boot, self.seed)

    def interval(self, samples: FloatArray) -> tuple[float, float]:
        """Ends of the middle 95 % of the resamples in which the quantity is defined."""
        samples = samples[np.isfinite(samples)]
        if not samples.size:
            return math.nan, math.nan
        tail = (1 - _LEVEL) / 2
        low, high = np.quantile(samples, [tail, 1 - tail])
        return float(low), float(high)


USUAL = Bootstrap()
"""The settings that every command uses."""


@lru_cache(maxsize=512)  # a cell has an accuracy and comparisons with dense, the best and others
def _sums(per_video: bytes, videos: int, n_boot: int, seed: int) -> FloatArray:
    """`[n_boot, K]`: see `Bootstrap.sums`."""
    values = np.frombuffer(per_video).reshape(videos, -1)
    draws, rows = _draws(videos, n_boot, seed), max(1, _CHUNK // videos)
    sums = np.concatenate([draws[i : i + rows] @ values for i in range(0, n_boot, rows)])
    sums.flags.writeable = False
    return sums


@lru_cache(maxsize=64)  # one for each number of videos: cells share those of benchmarks, skills and lost questions
def _draws(videos: int, n_boot: int, seed: int) -> NDArray[np.uint16]:
    """`[n_boot, videos]`: how often each resample holds each video."""
    rng = np.random.default_rng(seed)
    draws = np.empty((n_boot, videos), np.uint16)
    rows = max(1, _CHUNK // videos)
    for i in range(0, n_boot, rows):
        draws[i : i + rows] = rng.multinomial(videos, np.full(videos, 1 / videos), size=min(rows, n_boot - i))
    draws.flags.writeable = False
    return draws


@dataclass(frozen=True)
class Estimate:
    """A value with its interval."""

    value: float
    low: float
    high: float
    n: int
    """Number of questions that it rests on."""
    n_errors: int
    """Number of questions left out because they failed, in either cell of a pair."""
    videos: int = 0
    """Number of videos that the questions are about; 0 if it is not a mean over questions."""


@dataclass(frozen=True)
class Comparison:
    """A cell compared with another, such as dense, on the questions that both answered."""

    accuracy: float
    """In percent, like those below."""
    other_accuracy: float
    difference: Estimate
    """accuracy - other_accuracy, in points."""
    kept_percent: Estimate
    """100 * accuracy / other_accuracy."""
    flips_lost: float
    """Number of questions that the other answered better. Every value is NaN if there is no question both answered."""
    flips_won: float
    """Number of questions that the cell answered better."""
    p_mcnemar: float
    """Exact two-sided p of a split of the flips at least as uneven, if both directions were equally likely."""


def accuracy(
    scores: ArrayLike,
    videos: Labels,
    groups: Labels | None = None,
    subgroups: Labels | None = None,
    *,
    bootstrap: Bootstrap = USUAL,
) -> Estimate:
    """Mean score in percent, with its interval.

    scores: `[Q]`. videos: `[Q]`, label of each question's video; labels of different benchmarks must differ.
    groups: `[Q]`, such as each question's benchmark: the result is then the unweighted mean of the groups' means,
    resampled together. subgroups: `[Q]`, such as each question's skill: a group's mean is then in turn the unweighted
    mean of its subgroups' means.
    """
    means, counts = _group_means([scores], videos, groups, subgroups, bootstrap)
    average = 100 * means[0].mean(axis=-1)
    return Estimate(float(average[0]), *bootstrap.interval(average[1:]), *counts)


def compare(
    scores: ArrayLike,
    other: ArrayLike,
    videos: Labels,
    groups: Labels | None = None,
    subgroups: Labels | None = None,
    *,
    bootstrap: Bootstrap = USUAL,
) -> Comparison:
    """Paired comparison of a cell's `scores` (`[Q]`) with those of an `other` on the same questions in the same order.

    Questions that failed in either cell are left out of the pair and counted. With `groups` (and `subgroups`, as in
    `accuracy`) the percentages are those of the unweighted means over them; flips are counted over all questions.
    kept_percent is NaN if the other's accuracy is 0; resamples in which it is 0 are left out of the interval.
    """
    means, counts = _group_means([scores, other], videos, groups, subgroups, bootstrap)
    ours, theirs = means.mean(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        kept = np.where(theirs > 0, 100 * ours / theirs, np.nan)
    points = 100 * (ours - theirs)
    flips = np.asarray(scores, float) - np.asarray(other, float)
    lost, won = int((flips < 0).sum()), int((flips > 0).sum())
    return Comparison(
        accuracy=float(100 * ours[0]),
        other_accuracy=float(100 * theirs[0]),
        difference=Estimate(float(points[0]), *bootstrap.interval(points[1:]), *counts),
        kept_percent=Estimate(float(kept[0]), *bootstrap.interval(kept[1:]), *counts),
        flips_lost=lost if counts.n else math.nan,
        flips_won=won if counts.n else math.nan,
        p_mcnemar=mcnemar(lost, won) if counts.n else math.nan,
    )


def mcnemar(lost: int, won: int) -> float:
    """Exact two-sided p of McNemar's test: a binomial test of `lost` against `won` at 1/2; 1 without any flip."""
    if lost < 0 or won < 0:
        raise ValueError(f"flips must not be negative, got lost={lost}, won={won}")
    flips = lost + won
    term = total = 1  # C(flips, 0); integers of any length keep this exact
    for k in range(min(lost, won)):
        term = term * (flips - k) // (k + 1)
        total += term
    return min(1.0, 2 * total / 2**flips)


class _Counts(NamedTuple):
    """Counts with the meaning of the same fields of `Estimate`."""

    n: int
    n_errors: int
    videos: int


def _group_means(
    columns: Sequence[ArrayLike],
    videos: Labels,
    groups: Labels | None,
    subgroups: Labels | None,
    bootstrap: Bootstrap,
) -> tuple[FloatArray, _Counts]:
    """Means of each column in each group, `[columns, 1 + n_boot, groups]`; the first is that of the sample itself.

    Only questions that all columns answered count.
    """
    scores = np.stack([np.asarray(c, float) for c in columns])  # [C, Q]
    videos = np.asarray(videos)
    one = np.zeros(len(videos), int)
    groups, subgroups = (one if labels is None else np.asarray(labels) for labels in (groups, subgroups))
    if scores.ndim != 2 or len({scores.shape[1:], videos.shape, groups.shape, subgroups.shape}) > 1:
        raise ValueError(
            f"scores {list(scores.shape[1:])}, videos {list(videos.shape)}, groups {list(groups.shape)} and subgroups "
            f"{list(subgroups.shape)} must each have one entry per question"
        )
    if not videos.size:
        raise ValueError("there are no questions to compute statistics from")
    if not np.all(np.isnan(scores) | ((scores >= 0) & (scores <= 1))):
        raise ValueError("scores must be in 0..1, or NaN where the question failed")
    answered = ~np.isnan(scores).any(axis=0)
    video_names, video = np.unique(videos, return_inverse=True)
    group_names, group = np.unique(groups, return_inverse=True)
    _, subgroup = np.unique(subgroups, return_inverse=True)
    pairs, pair = np.unique(np.stack([group, subgroup]), axis=1, return_inverse=True)  # [2, P], [Q]
    # one order for any order of the input, so that sums round the same way
    order = np.lexsort((*scores, pair, video))
    order = order[answered[order]]
    cell = video[order] * pairs.shape[1] + pair[order]
    size = len(video_names) * pairs.shape[1]

    def per_video(weights: FloatArray) -> FloatArray:
        sums = np.bincount(cell, weights, size).astype(np.float64)
        return sums.reshape(len(video_names), pairs.shape[1])

    blocks = [per_video(np.ones(len(order))), *(per_video(s[order]) for s in scores)]
    # [1 + n_boot, (1 + C) * P]
    sums = np.hstack([np.concatenate([block.sum(axis=0, keepdims=True), bootstrap.sums(block)]) for block in blocks])
    of_group = [np.unique(video[order][group[order] == g]) for g in range(len(group_names))]
    if min(map(len, of_group)) < 2:  # one video does not show how much videos differ: no interval
        sums[1:] = np.nan
    counts, *totals = np.split(sums, len(blocks), axis=1)  # each [1 + n_boot, P]
    with np.errstate(invalid="ignore"):
        means = np.stack(totals) / counts  # 0 / 0 is NaN: a group without a question
    of_groups = [means[..., pairs[0] == g].mean(axis=-1) for g in range(len(group_names))]
    counted = _Counts(len(order), len(videos) - len(order), len(np.unique(video[order])))
    return np.stack(of_groups, axis=-1), counted
