"""How far a method can prune: the share of visual tokens at which it still keeps most of dense's accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mmg_bench.options import check_number
from mmg_bench.report.rows import DENSE, headline

RATIOS = 4
"""Minimum number of retention ratios at which a method must have been measured: fewer leave too much to interpolate."""
KEPT = (95.0, 90.0)
"""Default percentages of dense's accuracy."""


class Needed(NamedTuple):
    """The tokens that a method needs to keep a percentage of dense's accuracy."""

    method: str
    kept_percent: float
    share: float
    """Share of the visual tokens, in 0..1, that a layer sees on average."""
    bound: str
    """≤ if fewer tokens would do, > if more are needed; else empty."""
    low: float
    high: float
    """Ends of the 95 % interval."""


def tokens_needed(rows: pd.DataFrame, kept_percent: Sequence[float] = KEPT) -> dict[str, list[Needed]]:
    """The tokens that each method needs to keep `kept_percent` of dense's accuracy, in the order of the percentages.

    rows: those of one model and number of frames. Methods that need fewest for the first percentage come first; dense,
    and methods measured at fewer than RATIOS ratios, are left out.

    A method's percentages are interpolated linearly over the share. `share` is where, going down from the most tokens,
    they first fall below `kept_percent`. If they never do, it is the smallest share measured, and the bound is ≤; if
    they start below, it is the largest, and the bound is >. The interval runs from where the upper ends of the paired
    intervals fall below to where the lower ends do, within the measured range; it is NaN if those ends are.

    Raises ValueError for an empty `kept_percent`, and for a percentage that is not in 0..100.
    """
    if not kept_percent:
        raise ValueError("kept_percent=[]: give one or several percentages, such as [95]")
    for percent in kept_percent:
        check_number("kept_percent", percent)
        if percent > 100:
            raise ValueError(f"kept_percent={percent:g}: it must be at most 100, which is dense")
    main = headline(rows)
    main = main[main.value.notna() & (main.method != DENSE)]
    cell = ["method", "retention_ratio"]
    seen = main[main.metric == "retention_layer_mean"][[*cell, "value"]].rename(columns={"value": "share"})
    kept = main[main.metric == "accuracy_kept_percent"].merge(seen, on=cell).drop_duplicates(cell)
    found = {}
    for method, curve in kept.groupby("method", sort=False):
        if len(curve) < RATIOS:
            continue
        curve = curve.sort_values("share", ascending=False, kind="stable")
        found[str(method)] = [_needed(str(method), curve, percent) for percent in kept_percent]
    return dict(sorted(found.items(), key=lambda item: (item[1][0].bound == ">", item[1][0].share)))


def _needed(method: str, curve: pd.DataFrame, percent: float) -> Needed:
    """Where a curve, ordered from the most tokens down, falls below a percentage."""
    share, high, low = (
        _falls_below(percent, curve.share.to_numpy(), ends.to_numpy())
        for ends in (curve.value, curve.ci_low, curve.ci_high)
    )
    bound = "≤" if (curve.value >= percent).all() else ">" if curve.value.iloc[0] < percent else ""
    return Needed(method, percent, share, bound, low, high)


def _falls_below(level: float, shares: NDArray[np.float64], kept: NDArray[np.float64]) -> float:
    """The share at which `kept`, interpolated linearly over descending shares, first falls below `level`.

    The last share if it never does, the first if it starts below; NaN if any of `kept` is NaN.
    """
    if np.isnan(kept).any():
        return float("nan")
    below = np.flatnonzero(kept < level)
    if not len(below):
        return float(shares[-1])
    i = below[0]
    return float(np.interp(level, kept[[i, i - 1]], shares[[i, i - 1]]) if i else shares[0])
