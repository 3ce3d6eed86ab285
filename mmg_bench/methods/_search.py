"""Search for the threshold that meets a budget, for methods without a ratio."""

from __future__ import annotations

from collections.abc import Callable, Sized
from typing import TypeVar

Result = TypeVar("Result", bound=Sized)


def largest_within(run: Callable[[float], Result], budget: int, low: float, high: float, steps: int) -> Result:
    """Bisect the setting of `run`, whose result should grow with it, for the longest result of at most `budget`.

    Starts from `run(low)`, then halves [low, high] `steps` times, or until the budget is met exactly. If results do
    not grow steadily, this is the longest of those tried. If even `run(low)` exceeds the budget, it is returned unless
    a later result is shorter. Deterministic.
    """
    best = run(low)
    for _ in range(steps):
        if len(best) == budget:
            break
        middle = (low + high) / 2
        result = run(middle)
        if len(result) > budget:
            high = middle
        else:
            low = middle
        if len(best) < len(result) <= budget or len(result) < len(best) > budget:
            best = result
    return best
