"""How methods that know only thresholds meet a budget."""

from __future__ import annotations

from collections.abc import Callable, Sized
from typing import TypeVar

Result = TypeVar("Result", bound=Sized)


def largest_within(run: Callable[[float], Result], budget: int, low: float, high: float, steps: int) -> Result:
    """Bisect the setting of `run`, whose result should grow with it, for the longest result of at most `budget`.

    Starts from `run(low)`, then takes `steps` halvings of [low, high], fewer once the budget is met exactly. Where
    results do not grow steadily, this is the longest of those tried. Where even `run(low)` exceeds the budget, it is
    returned unless a later one is shorter. Deterministic.
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
