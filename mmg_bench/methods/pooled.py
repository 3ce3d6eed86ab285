"""pooled: a control. Coarser frames, as a lower resolution would give."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, sqrt
from typing import ClassVar

import torch
from torch import Tensor

from mmg_bench.methods._ops import spread
from mmg_bench.methods.base import Method
from mmg_bench.tokens import PrunedTokens, VideoTokens


def cells(grid: tuple[int, int], count: int) -> tuple[Tensor, Tensor]:
    """Cut an H x W grid into `count` (1..H*W) rectangles, nearly square and of nearly equal size.

    Bands of whole rows, each cut into as many cells as the band above or one fewer. Returns `cell [H*W]`, the cell of
    every token, and `center [count]`, the token nearest each cell's middle (ties: the upper left one), ascending.
    """
    height, width = grid
    bands = min(height, count, max(ceil(count / width), round(sqrt(count * height / width))))
    cell = torch.empty(grid, dtype=torch.long)
    center: list[int] = []
    for band, columns in enumerate(spread(count, bands)):
        top, bottom = band * height // bands, (band + 1) * height // bands
        for column in range(columns):
            left, right = column * width // columns, (column + 1) * width // columns
            cell[top:bottom, left:right] = len(center)
            center.append((top + bottom - 1) // 2 * width + (left + right - 1) // 2)
    return cell.flatten(), torch.tensor(center)


@dataclass(frozen=True)
class Pooled(Method):
    """Average the tokens of rectangular cells of each frame; the result is placed at the cell's middle.

    The budget of max(1, round(R*T*N)) tokens is spread evenly over the frames, remainders to the earliest, and each
    frame is cut into its number of cells. With fewer tokens than frames, the earliest frames become one token each.
    """

    name: ClassVar[str] = "pooled"

    def select(self, tokens: VideoTokens) -> PrunedTokens:
        x = tokens.features
        size = tokens.tokens_per_frame
        counts = spread(self.budget(tokens), tokens.frames)
        features, positions = [], []
        for count in sorted(set(counts) - {0}, reverse=True):  # at most two; the earlier frames have the larger one
            cell, center = cells(tokens.grid, count)
            member = torch.nn.functional.one_hot(cell, count).T.float()  # [m, N]
            average = (member / member.sum(1, keepdim=True)).to(x.device, non_blocking=True)
            first, frames = counts.index(count), counts.count(count)
            features.append((average @ x[first : first + frames].float()).flatten(0, 1))  # [F * m, D]
            start = torch.arange(first, first + frames).unsqueeze(1) * size
            positions.append((start + center).flatten())
        return PrunedTokens(torch.cat(features).to(x.dtype), torch.cat(positions).to(x.device, non_blocking=True))
