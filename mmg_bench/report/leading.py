"""The leader of each retention ratio in a table, with which the others are compared."""

from __future__ import annotations

import math
from collections.abc import Mapping

from mmg_bench.report.answers import Key

CONTROLS = frozenset({"random", "uniform", "pooled", "fewer_frames"})
"""Baselines that show what a budget achieves without a pruning criterion."""
WITHIN = 0.005
"""Tolerance within which the mean share of tokens that layers see counts as equal to the retention ratio."""


def is_control(method: str) -> bool:
    """Whether the method of a label, such as `random` or `random(positions=contiguous)`, is a control."""
    return method.split("(")[0] in CONTROLS


def competes(cell: Key, seen: float | None) -> bool:
    """Whether a cell may lead: it is not a control, and its layers see no more than its ratio of the tokens.

    seen: the average share of tokens that its layers see, if known.
    """
    method, ratio = cell
    return not is_control(method) and (seen is None or seen <= ratio + WITHIN)


def leaders(kept: Mapping[Key, float], seen: Mapping[Key, float]) -> dict[float, Key]:
    """Retention ratio -> the competing cell that keeps most of dense's accuracy; the first of several equal ones.

    kept: percent kept of each cell except dense; NaN if undefined. seen: see `competes`.
    """
    found: dict[float, Key] = {}
    for cell, percent in kept.items():
        if math.isfinite(percent) and competes(cell, seen.get(cell)):
            first = found.setdefault(cell[1], cell)
            if percent > kept[first]:
                found[cell[1]] = cell
    return found
