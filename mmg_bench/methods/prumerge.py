"""LLaVA-PruMerge: keep the tokens of outstanding attention and add to each the tokens most similar to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mmg_bench.methods._merge import frame_groups, in_raster_order, supplied, unit
from mmg_bench.methods._ops import descending, evenly_spaced, top_mask
from mmg_bench.methods.base import Method, Positions, check_flag, check_range
from mmg_bench.tokens import PrunedTokens, VideoTokens


def outlier_ratio(attention: Tensor) -> float:
    """Share of tokens (`[N]`) whose attention exceeds Q3 + 1.5 IQR, in float32: the paper's adaptive ratio."""
    value = attention.float()
    q1, q3 = value.quantile(torch.tensor([0.25, 0.75], device=value.device))
    return int((value > q3 + 1.5 * (q3 - q1)).sum()) / len(value)


def with_grid(centres: Tensor, size: int, ratio: float) -> Tensor:
    """PruMerge+: `centres [m]`, then every (1/`ratio`/3)-th of a frame's `size` tokens, unless it is a centre already.

    Like the official code (which is fixed to 576 tokens), it never takes the frame's last token. A ratio of 0 adds
    the first token; a ratio above 1/3, for which the official step is 0, adds all tokens but the last.
    """
    step = max(1, int(1 / ratio) // 3) if ratio > 0 else size
    grid = torch.arange(0, max(1, size - 1), step, device=centres.device)
    return torch.cat([centres, grid[~torch.isin(grid, centres)]])


def merge_around(features: Tensor, attention: Tensor, keys: Tensor, centres: Tensor, neighbours: int = 32) -> Tensor:
    """Reduce frames `features [T, N, D]` to their `centres [T, m]` (m < N) and one token for all others.

    Each centre gets the attention-weighted sum of its nearest other tokens added, by the cosine of `keys [T, N, K]`.
    The last token is the attention-weighted sum of all tokens that are not centres. Returns `[T, m + 1, D]`, float32.
    """
    frames, size, _ = features.shape
    rows = torch.arange(frames, device=features.device).unsqueeze(1)
    x, direction = features.float(), unit(keys)
    similarity = direction[rows, centres] @ direction.mT  # [T, m, N]
    similarity.scatter_(2, centres.unsqueeze(2), -torch.inf)
    count = torch.full(similarity.shape[:2], min(neighbours, size - 1), device=features.device)
    near = top_mask(similarity, count)
    weights = near * attention.float().unsqueeze(1)  # [T, m, N]
    others = attention.float().scatter(1, centres, 0).unsqueeze(1)  # [T, 1, N]
    return torch.cat([x[rows, centres] + weights @ x, others @ x], 1)


@dataclass(frozen=True)
class PruMerge(Method):
    """LLaVA-PruMerge and PruMerge+ (Shang et al., ICCV 2025), per frame.

    Idea: keep the tokens that the vision tower attends to most, add to each its most similar tokens weighted by
    attention, and sum up everything not kept in one more token. PruMerge+ adds spatially uniform tokens.

    Source: arXiv 2403.15388; 42Shawn/LLaVA-PruMerge 097c041 (token_prune_merge_advanced and ..._plus).
    Parameters: see the fields. A frame's budget of b tokens (B/T, remainder to the earliest frames) is b - 1 centres
    and the summed token; with `plus` a quarter of the centres are the most attended (1 : 3 as officially), the
    others evenly spaced among the rest. Below one token a frame, later frames have none.
    Quirk kept: no sum is normalised, so merged tokens are longer than tokens, and the summed one is shorter.
    Deviations: if the tower has no class token (SigLIP), the attention is what a token receives on average; it is
    scaled to sum to 1 per frame; tokens enter the model in raster order (official: by descending attention), the summed
    one at the place of the last token that is not a centre; `plus` works for any grid (official: 576 tokens only).
    """

    plus: bool = False
    """PruMerge+, the official default: part of the centres are spatially uniform."""
    adaptive: bool = False
    """Derive each frame's count from its attention outliers, as in the paper; ignores `retention_ratio`."""
    neighbours: int = 32
    """Tokens added to each centre."""

    name: ClassVar[str] = "prumerge"
    needs: ClassVar[frozenset[str]] = frozenset({"attention", "keys"})
    positions: ClassVar[Positions] = "contiguous"

    def __post_init__(self) -> None:
        super().__post_init__()
        for flag in ("plus", "adaptive"):
            check_flag(self, flag)
        check_range(self, "neighbours", 1, 10_000, integer=True)
        object.__setattr__(self, "exact", not self.adaptive)  # the adaptive rule has no budget

    def select(self, tokens: VideoTokens) -> PrunedTokens:
        attention, keys = supplied(tokens, "attention"), supplied(tokens, "keys")
        attention = attention.float()
        # Officially the attention sums to 1 over the tokens that are summed up here; pooling averages it.
        attention = attention / attention.sum(1, keepdim=True).clamp(min=torch.finfo(attention.dtype).tiny)
        size = tokens.tokens_per_frame
        features, positions = [], []
        for run, centres in self._centres(tokens, attention):
            merged = merge_around(tokens.features[run], attention[run], keys[run], centres, self.neighbours)
            is_other = torch.ones_like(attention[run], dtype=torch.bool).scatter(1, centres, False)  # [F, N]
            last = size - 1 - is_other.flip(1).int().argmax(1, keepdim=True)  # [F, 1]
            frame = torch.arange(run.start, run.stop, device=centres.device).unsqueeze(1)
            features.append(merged.flatten(0, 1))
            positions.append((torch.cat([centres, last], 1) + frame * size).flatten())
        return in_raster_order(torch.cat(features), torch.cat(positions), tokens.features)

    def _centres(self, tokens: VideoTokens, attention: Tensor) -> list[tuple[slice, Tensor]]:
        """Runs of frames and their centres, `[frames, m]`, m < N."""
        size = tokens.tokens_per_frame
        if self.adaptive:
            centres = []
            for frame, row in enumerate(attention):
                ratio = outlier_ratio(row)
                chosen = descending(row)[: int(size * ratio)]
                chosen = with_grid(chosen, size, ratio) if self.plus else chosen
                centres.append((slice(frame, frame + 1), chosen[: size - 1].unsqueeze(0)))
            return centres
        order = descending(attention)  # [T, N]
        runs = []
        for run, count in frame_groups(self.budget(tokens), tokens.frames):
            attended = round((count - 1) / 4) if self.plus else count - 1
            rest = order[run, attended:].sort().values  # [F, N - attended], raster
            spaced = evenly_spaced(count - 1 - attended, size - attended).to(rest.device, non_blocking=True)
            runs.append((run, torch.cat([order[run, :attended], rest[:, spaced]], 1)))
        return runs
