"""What every pruning method is: a validated set of hyper-parameters with one pure function."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from mmg_bench.tokens import OPTIONAL_FIELDS, PrunedTokens, VideoTokens

Positions = Literal["original", "contiguous"]


@dataclass(frozen=True)
class Method(ABC):
    """Base class of the methods.

    A subclass is a frozen dataclass of its hyper-parameters under the names of its paper; it sets `name` (the name of
    its file), implements `select`, and checks its own fields in `__post_init__` after `super().__post_init__()`.

    Calling a method on a model gives a context manager inside which the model prunes:

        with MMGVid(retention_ratio=0.25)(model) as run:
            model.generate(**inputs)
        print(run.report)
    """

    retention_ratio: float = 0.25
    """Visual tokens that enter the language model, over T * N; in (0, 1]."""

    name: ClassVar[str]
    """Registry name, the same as the module's."""
    needs: ClassVar[frozenset[str]] = frozenset()
    """Optional fields of `VideoTokens` that `select` reads."""
    exact: ClassVar[bool] = True
    """Whether every input is left with round(R * T * N) tokens exactly."""
    positions: ClassVar[Positions] = "original"
    """Position ids of the kept tokens in the official code: their own, or renumbered without gaps."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        unknown = cls.needs - set(OPTIONAL_FIELDS)
        if unknown:
            raise TypeError(f"{cls.__name__}.needs names {sorted(unknown)}; choose from {list(OPTIONAL_FIELDS)}")

    def __post_init__(self) -> None:
        check_range(self, "retention_ratio", 0, 1, low_open=True)

    def budget(self, tokens: VideoTokens) -> int:
        """B = round(R * T * N), at least 1: the number of tokens to keep."""
        return max(1, round(self.retention_ratio * tokens.total))

    def prune(self, tokens: VideoTokens) -> PrunedTokens:
        """Prune one video. Deterministic; `tokens` is not changed.

        Raises ValueError when `tokens` lacks a field that the method needs, or holds NaN or infinite values.
        """
        tokens.require(self.needs, self.name)
        # Under mixed precision the distances would silently be taken in half precision.
        with torch.autocast(tokens.features.device.type, enabled=False):
            return self.select(tokens)

    @abstractmethod
    def select(self, tokens: VideoTokens) -> PrunedTokens:
        """The algorithm. Called by `prune` on checked input; must work for any T, N, D >= 1, dtype and device."""

    def __call__(self, model: Any, positions: Positions | None = None) -> AbstractContextManager[Any]:
        """A context in which `model` (an unmodified transformers model) prunes with this method."""
        from mmg_bench.models.hooks import pruning

        return pruning(model, self, positions=positions)


def check_range(
    method: Any, field: str, low: float, high: float, *, low_open: bool = False, integer: bool = False
) -> None:
    """Raise a ValueError that names the field, its value and the range unless `low <= value <= high`."""
    value: Any = getattr(method, field)
    number = isinstance(value, int if integer else (int, float)) and not isinstance(value, bool)
    inside = number and (low < value if low_open else low <= value) and value <= high
    if not inside:
        kind = "an integer" if integer else "a number"
        raise ValueError(
            f"{type(method).__name__}.{field}={value!r}: it must be {kind} in {'(' if low_open else '['}{low}, {high}]"
        )


def check_choice(method: object, field: str, choices: tuple[str, ...]) -> None:
    """Raise a ValueError that names the field, its value and the choices unless the value is one of them."""
    value = getattr(method, field)
    if value not in choices:
        raise ValueError(f"{type(method).__name__}.{field}={value!r}: choose one of {', '.join(choices)}")
