"""CDPruner: keep tokens that are diverse given the question, by a conditional determinantal point process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from mmg_bench.methods._merge import supplied, unit
from mmg_bench.methods._ops import gram_matrix, on_device, positions_of, spread
from mmg_bench.methods.base import Method, Positions, check_choice
from mmg_bench.tokens import PrunedTokens, VideoTokens, keep

EXHAUSTED = 1e-6
"""A conditional variance below this share of the token's own variance is rounding noise."""


def query_relevance(joint_features: Tensor, joint_query: Tensor, sign: int) -> Tensor:
    """Relevance of each token to the text, scaled to about [0, 1] over the whole input: `[B, N, E]` to `[B, N]`.

    `sign` times the mean cosine with the rows of `joint_query [M, E]`. All 1 if every token is equally relevant.
    """
    cosine = sign * (unit(joint_features) @ unit(joint_query).mT).mean(-1)  # [B, N]
    low, high = cosine.aminmax()
    return torch.where(high > low, (cosine - low + 1e-6) / (high - low), 1.0)


def dpp_selection(x: Tensor, relevance: Tensor, count: int) -> Tensor:
    """Greedy MAP inference of the DPP with kernel r_i cos(x_i, x_j) r_j: `[B, N, D]`, `[B, N]` to `[B, count]`.

    Each pick is the token that the previous picks explain least (largest conditional variance). Returns the picks in
    order of selection. Once nothing is left to explain, as after D picks, the most relevant tokens follow. Ties: the
    lower index. Needs count <= N; one iteration per pick, no synchronisation with the host.
    """
    batch, size, _ = x.shape
    x, relevance = (unit(x) * relevance.unsqueeze(-1)).detach(), relevance.detach()
    kernel = gram_matrix(x)  # [B, N, N]
    variance = kernel.diagonal(dim1=1, dim2=2).clone()  # [B, N]
    floor = EXHAUSTED * variance
    last_resort = relevance - relevance.amax() - 1  # [B, N], negative: below every variance
    factor = x.new_zeros(batch, count, size)  # rows of the Cholesky factor
    order = torch.empty(count, batch, 1, dtype=torch.int64, device=x.device)
    for step in range(count):
        left, pick = torch.where(variance > floor, variance, last_resort).max(-1, keepdim=True)  # [B, 1] both
        order[step] = pick
        variance.scatter_(1, pick, -torch.inf)  # taken
        last_resort.scatter_(1, pick, -torch.inf)
        place = pick.unsqueeze(-1)  # [B, 1, 1]
        row = kernel.gather(1, place.expand(-1, -1, size))  # [B, 1, N]
        if step:
            weight = factor[:, :step].gather(2, place.expand(-1, step, -1))  # [B, step, 1]
            row -= weight.mT @ factor[:, :step]  # what the picks explain
        scale = torch.where(left > 0, left.rsqrt(), 0)  # 0 for a last resort
        explained = torch.mul(row.squeeze(1), scale, out=factor[:, step])
        variance -= explained.square()
    return order.view(count, batch).T


@dataclass(frozen=True)
class CDPruner(Method):
    """CDPruner (Zhang et al., NeurIPS 2025): conditional diversity.

    Idea: a determinantal point process over the tokens, whose kernel is their cosine scaled by their relevance to the
    question. Its greedily found most probable subset is both relevant and diverse.

    Source: arXiv 2506.10967; Theia-4869/CDPruner 9541616 (LLaVA with CLIP). Parameters: see the fields.
    Keeps exactly round(R*T*N) tokens: officially every image keeps `visual_token_num`; here every frame keeps B/T,
    remainder to the earliest frames, and below one token per frame the later ones keep none.
    Relevance needs a joint image-text space (`joint_features`, `joint_query`), such as that of the vision tower's own
    contrastive head. Quirk kept: relevance is the *negative* cosine, and is scaled over all frames together.
    Deviations: if more tokens are requested than the rank of a frame (at most D), relevance decides (officially
    rounding noise or NaN); if all tokens are equally relevant (officially 0/0) relevance is 1; float32 throughout.
    """

    scope: str = "frame"
    """`frame`: one selection per frame, as for separate images; `video`: one for all T*N tokens."""
    relevance: str = "joint"
    """Space in which tokens meet the text: `joint`, that of a contrastive tower; `llm`, that of the language model."""
    sign: str = "negative"
    """`negative`, officially, since CLIP patches correlate negatively with their content; or `positive`."""

    name: ClassVar[str] = "cdpruner"
    needs: ClassVar[frozenset[str]] = frozenset({"joint_features", "joint_query"})
    """For the default options; `relevance="llm"` needs only `query`."""
    stand_ins: ClassVar[Sequence[Mapping[str, Any]]] = ({"relevance": "llm"},)
    positions: ClassVar[Positions] = "contiguous"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, "scope", ("frame", "video"))
        check_choice(self, "relevance", ("joint", "llm"))
        check_choice(self, "sign", ("negative", "positive"))
        if self.relevance == "llm":
            object.__setattr__(self, "needs", frozenset({"query"}))

    def select(self, tokens: VideoTokens) -> PrunedTokens:
        if self.relevance == "joint":
            content, query = supplied(tokens, "joint_features"), supplied(tokens, "joint_query")
        else:
            content, query = tokens.features, supplied(tokens, "query")
        relevance = query_relevance(content, query, -1 if self.sign == "negative" else 1)  # [T, N]
        x, budget = tokens.features, self.budget(tokens)
        if self.scope == "video":
            return keep(tokens, dpp_selection(tokens.flat[None], relevance.view(1, -1), budget)[0])
        counts = on_device(spread(budget, tokens.frames), x.device)  # [T]
        order = dpp_selection(x, relevance, -(-budget // tokens.frames))  # [T, most of counts]
        wanted = torch.arange(order.shape[1], device=x.device) < counts.unsqueeze(1)
        first = tokens.tokens_per_frame * torch.arange(tokens.frames, device=x.device).unsqueeze(1)
        return keep(tokens, (order + first).flatten()[positions_of(wanted, budget)])
