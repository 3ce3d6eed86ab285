"""How far a method can be driven: the share of the visual tokens at which it still keeps most of dense's accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mmg_bench.options import check_number
from mmg_bench.report.rows import DENSE, headline

RATIOS = 4
"""At how many retention ratios a method must have been measured: between fewer, too much would be drawn by ruler."""
KEPT = (95.0, 90.0)
"""Percent of dense's accuracy that are usually asked for."""


class Needed(NamedTuple):
    """The tokens that a method needs to keep a percentage of dense's accuracy."""

    method: str
    kept_percent: float
    share: float
    """Of the visual tokens, in 0..1, that a layer sees on average."""
    bound: str
    """≤ where fewer would do, > where more are needed; else empty."""
    low: float
    high: float
    """Of the 95 % interval."""


def tokens_needed(rows: pd.DataFrame, kept_percent: Sequence[float] = KEPT) -> dict[str, list[Needed]]:
    """What each method needs to keep `kept_percent` of dense's accuracy, in this order of percentages.

    rows: of one model and number of frames. Methods that need fewest for the first percentage come first; dense, and
    those measured at fewer than RATIOS ratios, are left out.

    A method's percentages are joined by straight lines over the share; from the most tokens down, `share` is where they
    first fall below `kept_percent`. Where they never do, it is that of the fewest tokens measured, and the bound is ≤;
    where they always are below, that of the most, and >. The interval runs from where the upper ends of their paired
    intervals fall below to where the lower ends do, within what was measured; it is NaN where these are.

    Raises ValueError for no percentage, and for one that is not in 0..100.
    """
    if not kept_percent:
        raise ValueError("kept_percent=[]: name a percentage or several, such as [95]")
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
    """Where a curve from the most tokens down falls below a percentage."""
    share, high, low = (
        _falls_below(percent, curve.share.to_numpy(), ends.to_numpy())
        for ends in (curve.value, curve.ci_low, curve.ci_high)
    )
    bound = "≤" if (curve.value >= percent).all() else ">" if curve.value.iloc[0] < percent else ""
    return Needed(method, percent, share, bound, low, high)


def _falls_below(level: float, shares: NDArray[np.float64], kept: NDArray[np.float64]) -> float:
    """The share at which `kept`, joined by straight lines over descending shares, first falls below `level`.

    The last share where it never does, the first where it starts there; NaN where some of `kept` is.
    """
    if np.isnan(kept).any():
        return float("nan")
    below = np.flatnonzero(kept < level)
    if not len(below):
        return float(shares[-1])
    i = below[0]
    return float(np.interp(level, kept[[i, i - 1]], shares[[i, i - 1]]) if i else shares[0])
