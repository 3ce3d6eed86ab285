"""AIM: merge similar tokens of each frame, then drop tokens of low attention PageRank inside the language model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mmg_bench.methods._inside import layers_at, most_attended
from mmg_bench.methods.base import Method, Positions, check_flag, check_range
from mmg_bench.methods.tome import Merging, merge_once, merged_frames
from mmg_bench.tokens import LayerTokens, PrunedTokens, Selection, VideoTokens

OFFICIAL_LAYERS, OFFICIAL_DEPTH = (14, 22), 28


def merge_round(state: Merging, r: int) -> Merging:
    """A round of ToMe in which every token counts as one, even if merged before: r fewer tokens in every frame."""
    return merge_once(state._replace(sizes=torch.ones_like(state.sizes)), r)


def importance(queries: Tensor, keys: Tensor, tau: float, iters: int) -> Tensor:
    """PageRank of tokens by a layer's attention, as the root mean square over heads: `[P]` float32.

    Each head's rank starts uniform and is passed on `iters` times by its attention, the causal softmax of the products
    over `tau`. `queries [heads, P, d]`, scaled; `keys [key-value heads, P, d]`.
    """
    size = keys.shape[1]
    later = torch.ones(size, size, dtype=torch.bool, device=keys.device).triu_(1)
    squares = torch.zeros(size, device=keys.device)
    for query, key in zip(queries.unflatten(0, (len(keys), -1)), keys, strict=True):  # one at a time, to save memory
        votes = (query @ key.mT / tau).masked_fill_(later, -torch.inf).softmax(-1)  # [queries of the key, P, P]
        rank = votes.new_full((len(query), 1, size), 1 / size)
        for _ in range(iters):
            rank = rank @ votes
        squares += rank.square().sum((0, 1))
    return (squares / len(queries)).sqrt()


@dataclass(frozen=True)
class AIM(Method):
    """AIM (Zhong et al., ICCV 2025): adaptive inference by token merging and pruning.

    Idea: before the language model, merge the most similar tokens of each frame, round by round. Inside it, from the
    middle on, each layer keeps an eighth less of the tokens, those with the highest PageRank over the layer's whole
    attention, until none are needed.

    Source: arXiv 2412.03248; LaVi-Lab/AIM edc24e9 (`llava/model/token_merge.py`, `get_importance` and
    `Qwen2Model.forward` in its transformers). Parameters: see the fields, with the official values.
    `retention_ratio` is the share that merging leaves (officially 25 %); `inner=false` switches the pruning off. Frame
    budgets are B/T tokens, remainder to the earliest frames.
    Quirks kept: in later rounds odd and even refer to the merged sequence, and a mean counts as one token.
    Deviations: tokens enter in raster order of the merging targets (officially unmerged ones first); dropped tokens are
    removed (officially masked: as queries they still pass rank on); one token is kept where officially none is.
    """

    inner: bool = True
    """Whether to prune inside the language model too."""
    l1: int | None = None
    """Last layer that sees all tokens: officially 14 of 28. None: the same share of the model's depth."""
    l2: int | None = None
    """First layer that sees a single token: officially 22 of 28. None: the same share of the depth."""
    tau_imp: float = 0.1
    """Temperature of the attention that PageRank uses."""
    iters: int = 5
    """PageRank iterations."""

    name: ClassVar[str] = "aim"
    positions: ClassVar[Positions] = "contiguous"
    inside_positions: ClassVar[Positions] = "original"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flag(self, "inner")
        for field in ("l1", "l2"):
            if getattr(self, field) is not None:
                check_range(self, field, 0, 10_000, integer=True)
        check_range(self, "tau_imp", 0, 1_000, low_open=True)
        check_range(self, "iters", 1, 1_000, integer=True)

    def select(self, tokens: VideoTokens) -> PrunedTokens:
        return merged_frames(tokens, self.budget(tokens), merge_round)

    def bounds(self, depth: int) -> tuple[int, int]:
        """`l1` and `l2` in a model of `depth` layers. Raises ValueError unless 0 <= l1 < l2 < depth."""
        usual = layers_at(OFFICIAL_LAYERS, OFFICIAL_DEPTH, depth) if None in (self.l1, self.l2) else (0, 0)
        first = usual[0] if self.l1 is None else self.l1
        last = usual[1] if self.l2 is None else self.l2
        if not first < last < depth:
            raise ValueError(f"AIM.l1={first}, l2={last}: l1 must be below l2, and l2 below the model's {depth} layers")
        return first, last

    def layers(self, depth: int) -> tuple[int, ...]:
        """Layers l1 + 1 to l2."""
        if not self.inner:
            return ()
        first, last = self.bounds(depth)
        return tuple(range(first + 1, last + 1))

    def select_inside(self, tokens: LayerTokens) -> Selection:
        entered = len(tokens.features) if tokens.state is None else tokens.state
        first, last = self.bounds(tokens.depth)
        share = (last - first - 1 - tokens.stage) / (last - first)
        keys = tokens.attention.keys()
        rank = importance(tokens.attention.queries(), keys.keys, self.tau_imp, self.iters)
        left = most_attended(rank[keys.visual], max(1, int(round(entered * share, 9))))
        return Selection(left, state=entered)
