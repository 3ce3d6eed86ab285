"""Who leads a block of a table: whom the others of its retention ratio are measured by."""

from __future__ import annotations

import math
from collections.abc import Mapping

from mmg_bench.report.answers import Key

CONTROLS = frozenset({"random", "uniform", "pooled", "fewer_frames"})
"""Methods that show what a budget is worth without any idea behind it."""
WITHIN = 0.005
"""How far the mean share of tokens that layers see may lie from the retention ratio and still count as it."""


def is_control(method: str) -> bool:
    """Whether the method behind a label such as `random` or `random(positions=contiguous)` is a control."""
    return method.split("(")[0] in CONTROLS


def competes(cell: Key, seen: float | None) -> bool:
    """Whether a cell may lead: it is no control, and its layers see no more than its ratio of the tokens.

    seen: the share that they see, on average, if it is known.
    """
    method, ratio = cell
    return not is_control(method) and (seen is None or seen <= ratio + WITHIN)


def leaders(kept: Mapping[Key, float], seen: Mapping[Key, float]) -> dict[float, Key]:
    """Retention ratio -> of the cells that compete there, the first that keeps most of dense's accuracy.

    kept: percent kept of each cell but dense; NaN where there is none. seen: see `competes`.
    """
    found: dict[float, Key] = {}
    for cell, percent in kept.items():
        if math.isfinite(percent) and competes(cell, seen.get(cell)):
            first = found.setdefault(cell[1], cell)
            if percent > kept[first]:
                found[cell[1]] = cell
    return found
