"""DART: keep a few pivots and the visual tokens that are least similar to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mmg_bench.methods._inside import InsideMethod, check_layer
from mmg_bench.methods._merge import unit
from mmg_bench.methods._ops import descending, positions_of
from mmg_bench.methods.base import Positions, check_range
from mmg_bench.tokens import Keys, LayerTokens, Selection


def pivots(keys: Keys, of_video: int, of_text: int) -> tuple[Tensor, Tensor]:
    """The tokens with the longest keys (L1, over all heads), longest first: indices into the n and into the L.

    `of_video` visual tokens and `of_text` tokens of the text after the video, or all if there are fewer.
    """
    length = keys.keys.abs().sum((0, 2))  # [P]
    return descending(length[keys.visual])[:of_video], descending(length[keys.text])[:of_text]


def in_turn(visual: list[int], text: list[int]) -> list[int]:
    """The order in which pivots choose: indices into `[*visual, *text]`, which are places in the prompt.

    Officially the iteration order of a Python set, which follows neither the prompt nor the lengths of the keys.
    """
    number = {place: i for i, place in enumerate([*visual, *text])}
    return [number[place] for place in set([*visual, *text])]  # noqa: C405  a set of a list is filled in its order


def least_alike(similarity: Tensor, taken: Tensor, count: int) -> Tensor:
    """Each row of `similarity [p, n]` in turn takes the `count` least similar tokens that remain: bool `[n]`.

    `taken [n]` bool: tokens that are taken from the start; they stay marked.
    """
    chosen = taken.clone()
    for ranked in descending(-similarity):
        gone = chosen[ranked]
        chosen[ranked] = gone | ((~gone).cumsum(0) <= count)
    return chosen


@dataclass(frozen=True)
class DART(InsideMethod):
    """DART (Wen et al., EMNLP 2025): duplication matters more than importance.

    Idea: similar tokens are redundant, however important they are. Early in the language model, choose a few pivots,
    the visual and text tokens with the longest keys, and let each keep the visual tokens that are least similar to it.
    Attention is not used.

    Source: arXiv 2502.11494; ZichenWen1/DART 5a19452 (`DART.get_retained_image_token` of its Qwen2-VL and Qwen2.5-VL).
    Published for images; here a whole video counts as one image. Parameters: see the fields. `retention_ratio` is the
    share kept from the layer on, except for rounding: the visual pivots, and int(n * R / pivots) tokens per pivot.
    Quirk kept: pivots choose in the iteration order of a Python set of their places in the prompt.
    Deviations: float32 whatever the model's dtype; equal scores by the lower index; if there are fewer tokens than
    pivots, or than these ask for (officially errors), there are fewer pivots, or all tokens are taken.
    """

    layer: int = 2
    """Layer before which tokens are dropped (K); keys and hidden states are those of the layer before it."""
    pivot_image_token: int = 4
    """Number of visual pivots, which are all kept; at least 1."""
    pivot_text_token: int = 4
    """Number of pivots from the text after the video."""

    name: ClassVar[str] = "dart"
    positions: ClassVar[Positions] = "original"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "layer", 1, 10_000, integer=True)
        check_range(self, "pivot_image_token", 1, 10_000, integer=True)
        check_range(self, "pivot_text_token", 0, 10_000, integer=True)

    def layers(self, depth: int) -> tuple[int, ...]:
        return (check_layer(self, "layer", depth),)

    def select_inside(self, tokens: LayerTokens) -> Selection:
        keys, attention, n = tokens.attention.keys(), tokens.attention, len(tokens.features)
        visual, text = pivots(keys, self.pivot_image_token, self.pivot_text_token)
        places = keys.visual[visual].tolist(), keys.text[text].tolist()
        # rounded to the decimal value: 0.7 * 1.1 is a little less than 0.77
        count = int(round(n * self.retention_ratio, 9) / (len(visual) + len(text)))

        states = attention.final_norm(torch.cat([tokens.features, tokens.text[text]]).detach())
        direction = unit(states)  # [n + text pivots, D]
        order = torch.cat([visual, n + torch.arange(len(text), device=text.device)])[in_turn(*places)]
        similarity = direction[order] @ direction[:n].mT  # [pivots, n]
        taken = torch.zeros(n, dtype=torch.bool, device=visual.device).index_fill(0, visual, True)
        kept = least_alike(similarity, taken, count)
        left = min(n, len(visual) + count * len(order))
        return Selection(positions_of(kept, left))
