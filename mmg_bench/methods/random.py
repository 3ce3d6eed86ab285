"""random: a control. What a number of tokens is worth, however they are chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mmg_bench.methods._inside import check_layer
from mmg_bench.methods.base import Method, check_range
from mmg_bench.tokens import LayerTokens, PrunedTokens, Selection, VideoTokens, keep, keep_all


def draw(count: int, total: int, seed: int, device: torch.device) -> Tensor:
    """`count` of `total` indices, drawn without replacement: ascending int64. A larger count contains a smaller one."""
    drawn = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    return drawn[:count].sort().values.to(device, non_blocking=True)


@dataclass(frozen=True)
class Random(Method):
    """Keep max(1, round(R*T*N)) of the video's tokens, drawn without replacement.

    The draw depends only on T * N and `seed`, not on the content, the device or the global random state. With the same
    seed, the tokens of a smaller retention ratio are among those of a larger one.

    With a `layer`, they are drawn inside the language model, before that layer, as in fastv: the control for methods
    that prune there. `retention_ratio` is then the share kept from the layer on; all tokens enter the earlier layers.
    """

    seed: int = 0
    """Seed of the generator created for each video; >= 0."""
    layer: int | None = None
    """Layer of the language model before which tokens are drawn; None: before the model."""

    name: ClassVar[str] = "random"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "seed", 0, 2**63 - 1, integer=True)
        if self.layer is not None:
            check_range(self, "layer", 1, 10_000, integer=True)

    @property
    def exact(self) -> bool:  # type: ignore[override]
        """True if the tokens are drawn before the model."""
        return self.layer is None

    def select(self, tokens: VideoTokens) -> PrunedTokens:
        if self.layer is not None:
            return keep_all(tokens)
        return keep(tokens, draw(self.budget(tokens), tokens.total, self.seed, tokens.features.device))

    def layers(self, depth: int) -> tuple[int, ...]:
        return () if self.layer is None else (check_layer(self, "layer", depth),)

    def select_inside(self, tokens: LayerTokens) -> Selection:
        n = len(tokens.features)
        count = max(1, round(self.retention_ratio * n))
        return Selection(draw(count, n, self.seed, tokens.features.device))
