"""A method that looks at the attention that the language model's layers offer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from mmg_bench.methods._inside import InsideMethod
from mmg_bench.tokens import Heads, Keys, LayerTokens, Selection


@dataclass(frozen=True)
class Probe(InsideMethod):
    """Keeps everything and remembers the attention that it was offered."""

    name: ClassVar[str] = "probe"
    seen: list[dict[str, Tensor]] = field(default_factory=list, compare=False)
    heads: list[Heads] = field(default_factory=list, compare=False)
    phases: list[tuple[Tensor, Tensor]] = field(default_factory=list, compare=False)
    compared: list[tuple[Tensor, Keys]] = field(default_factory=list, compare=False)
    """Queries and keys of the layer before."""
    normed: list[tuple[Tensor, Tensor]] = field(default_factory=list, compare=False)
    """Hidden states, and what the final norm makes of them."""

    def layers(self, depth: int) -> tuple[int, ...]:
        return (2, 3)

    def select_inside(self, tokens: LayerTokens) -> Selection:
        rows = torch.arange(len(tokens.text))
        self.heads.append(tokens.attention.heads())
        self.phases.append(tokens.attention.phases())
        self.compared.append((tokens.attention.queries(), tokens.attention.keys()))
        self.normed.append((tokens.features, tokens.attention.final_norm(tokens.features)))
        self.seen.append(
            {
                "last": tokens.attention(),
                "text": tokens.attention(rows),
                "own": tokens.attention(own=True),
                "all": tokens.attention(rows, causal=False),
                "plain": tokens.attention(rows, rotary=False, causal=False),
            }
        )
        return Selection(torch.arange(len(tokens.positions)))
