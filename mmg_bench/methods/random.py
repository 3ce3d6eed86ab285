"""random: a control. What any number of tokens is worth, however chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from mmg_bench.methods.base import Method, check_range
from mmg_bench.tokens import PrunedTokens, VideoTokens, keep


@dataclass(frozen=True)
class Random(Method):
    """Keep max(1, round(R*T*N)) of the video's tokens, drawn without replacement.

    The draw depends on T * N and `seed` alone: not on the content, the device or the global random state. With one
    seed, the tokens of a smaller retention ratio are among those of a larger one.
    """

    seed: int = 0
    """Of the generator made for each video; >= 0."""

    name: ClassVar[str] = "random"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "seed", 0, 2**63 - 1, integer=True)

    def select(self, tokens: VideoTokens) -> PrunedTokens:
        drawn = torch.randperm(tokens.total, generator=torch.Generator().manual_seed(self.seed))
        return keep(tokens, drawn[: self.budget(tokens)].to(tokens.features.device, non_blocking=True))
