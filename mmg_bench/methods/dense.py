"""dense: no pruning, the reference for every table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mmg_bench.methods.base import Method, check_range
from mmg_bench.tokens import PrunedTokens, VideoTokens, keep_all


@dataclass(frozen=True)
class Dense(Method):
    """Keep every token. `retention_ratio` can only be 1."""

    retention_ratio: float = 1.0

    name: ClassVar[str] = "dense"
    finds_faults: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_range(self, "retention_ratio", 1, 1)

    def select(self, tokens: VideoTokens) -> PrunedTokens:
        return keep_all(tokens)
